"""Who made this and at what price: the header, and what went into, came out of and was lost in every step."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from ray_jobs.report.source import Source
from ray_jobs.store import TableVersion


@dataclass(frozen=True)
class StepLine:
    """One step's yield and costs. `share` of the run's seconds; `reads` are its exact inputs."""

    step: str
    ref: str
    reads: tuple[str, ...]
    rows_in: int
    rows_out: int
    dropped: tuple[tuple[str, int], ...]
    failed: int
    calls: int
    tokens: int
    seconds: float
    share: float

    @property
    def lost(self) -> int:
        return sum(count for _, count in self.dropped)


def head(source: Source, recipe: str) -> dict[str, Any]:
    """What the page is about. "When" is the newest version's time: the page has no clock of its own."""
    made = [version.provenance for version in main_versions(source)]
    revisions = sorted({provenance.code_revision for provenance in made if provenance.code_revision})
    return {
        "title": source.policy.title,
        "policy": source.policy.id,
        "policy_hash": source.policy.hash,
        "recipe": recipe,
        "root": source.store.root,
        "when": max((provenance.created for provenance in made), default=""),
        "revisions": revisions,
    }


def main_versions(source: Source) -> list[TableVersion]:
    """The first table of every step, in the order given: a step's main table is first in its flow."""
    first: dict[tuple[str, str], TableVersion] = {}
    for version in source.versions.values():
        first.setdefault((version.provenance.step, version.provenance.identity), version)
    return list(first.values())


def steps(source: Source) -> dict[str, Any]:
    """Lines per step and their totals."""
    versions = main_versions(source)
    total = sum(version.provenance.seconds for version in versions)
    lines = [step_line(version, total) for version in versions]
    return {
        "lines": lines,
        "calls": sum(line.calls for line in lines),
        "tokens": sum(line.tokens for line in lines),
        "seconds": total,
        "failed": sum(line.failed for line in lines),
        "roles": roles(versions),
    }


def roles(versions: list[TableVersion]) -> list[tuple[str, dict[str, int]]]:
    """Calls, those that the request cache answered, and tokens, by role over all steps; dearest first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for version in versions:
        for role, used in version.provenance.usage.items():
            found[role].update(used)
    told = [(role, dict(used)) for role, used in found.items()]
    return sorted(
        told, key=lambda one: (-one[1].get("prompt_tokens", 0) - one[1].get("completion_tokens", 0), one[0])
    )


def step_line(version: TableVersion, total: float) -> StepLine:
    made = version.provenance
    dropped = made.counts.get("dropped") or {}
    return StepLine(
        step=made.step,
        ref=version.ref,
        reads=tuple(made.inputs.values()),
        rows_in=made.counts.get("in", 0),
        rows_out=made.counts.get("out", version.rows),
        dropped=tuple(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
        failed=made.counts.get("failed", 0),
        calls=made.calls,
        tokens=made.tokens,
        seconds=made.seconds,
        share=made.seconds / total if total else 0.0,
    )
