"""A step's success: its budget of failed rows checked, then side tables first, the main one last, in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from ray_jobs.step.definition import Step, StepFailed, identifying, resolve_roles
from ray_jobs.step.units import QUARANTINE, add_up, record_path
from ray_jobs.store import Provenance, Store, TableVersion
from synth.ids import stable_hash

if TYPE_CHECKING:
    from ray_jobs.step.run import Run


def committed(store: Store, step: Step, identity: str) -> dict[str, TableVersion]:
    """The versions of the step's tables that carry `identity`; empty when its main table has none."""
    main = store.find(step.main, identity)
    if main is None:
        return {}
    sides = {name: store.find(name, identity) for name in step.tables if name != step.main}
    return {step.main: main, **{name: version for name, version in sides.items() if version is not None}}


def commit(
    step: Step,
    run: Run,
    identity: str,
    versions: Mapping[str, TableVersion],
    weights: Mapping[str, str],
    records: list[dict[str, Any]],
) -> dict[str, TableVersion]:
    """Check the error budget (above it only the quarantine is committed), then side tables, then the main one, which is
    the step's success."""
    fragments, totals = add_up(records)
    told = _provenance(step, run, identity, versions, weights, totals)
    quarantine = f"{step.name}_quarantine"
    lost = fragments.get(quarantine, [])
    if _over_budget(step, run, totals):
        # under a name of its own: when a retry succeeds, `find` must not take this try's rows for that one's
        run.store.commit(quarantine, QUARANTINE, lost, replace(told, identity=f"{identity}-over-budget"))
        _forget_failed(step, run, totals, records)
    sides = [(name, schema) for name, schema in step.tables.items() if name != step.main]
    sides += [(quarantine, QUARANTINE)] if lost else []
    made = {
        name: run.store.find(name, identity) or run.store.commit(name, schema, fragments.get(name, []), told)
        for name, schema in sides
    }
    version = run.store.commit(step.main, step.tables[step.main], fragments.get(step.main, []), told)
    run.progress.finished(step.name, told)
    return {step.main: version, **made}


def _provenance(
    step: Step,
    run: Run,
    identity: str,
    versions: Mapping[str, TableVersion],
    weights: Mapping[str, str],
    totals: Mapping[str, Any],
) -> Provenance:
    bound = resolve_roles(step, run.roles)
    return Provenance(
        step=step.name,
        identity=identity,
        config=identifying(step.config),
        policy_hash=stable_hash(step.reads(run.policy, None)),
        inputs={name: version.ref for name, version in versions.items()},
        models={role: f"{model.name} ({weights[role]})" for role, model in bound.items()},
        code_revision=run.code_revision,
        counts={
            "in": totals["in"],
            "out": totals["rows"].get(step.main, 0),
            "failed": totals["failed"],
            "dropped": totals["dropped"],
        },
        tokens=_sum(totals["usage"], "prompt_tokens", "completion_tokens"),
        calls=_sum(totals["usage"], "calls"),
        usage=totals["usage"],
        seconds=totals["seconds"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _sum(usage: Mapping[str, Mapping[str, int]], *names: str) -> int:
    return sum(used.get(name, 0) for used in usage.values() for name in names)


def _over_budget(step: Step, run: Run, totals: Mapping[str, Any]) -> bool:
    """Whether a larger share of the rows failed than the recipe allows."""
    return totals["failed"] > run.error_budget * _seen(step, totals)


def _seen(step: Step, totals: Mapping[str, Any]) -> int:
    return max(totals["in"], totals["rows"].get(step.main, 0) + totals["failed"], 1)


def _forget_failed(
    step: Step, run: Run, totals: Mapping[str, Any], records: list[dict[str, Any]]
) -> NoReturn:
    """Forget the units that hold failed rows, so that a rerun tries them again, and say what happened."""
    for record in records:
        if record["failed"]:
            run.store.remove_json(record_path(step, record["identity"]))
    seen = _seen(step, totals)
    raise StepFailed(
        f"step {step.name}: {totals['failed']} of {seen} rows failed ({totals['failed'] / seen:.1%}, "
        f"budget {run.error_budget:.1%}); reasons and raw texts are in table {step.name}_quarantine"
    )
