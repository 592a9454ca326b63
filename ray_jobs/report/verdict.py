"""The verdict in words: what was made, and whether each guard beats what it has to beat.

A guard is compared with the majority, with TF-IDF and with its own training on shuffled labels, on the held-out gold
rows that both answered: the difference of their F1, with a percentile bootstrap that draws whole groups, the same
draws for both. Above zero as a whole: it beats the other. A positive difference whose interval holds zero settles
nothing and is said to. Anything else: it does not beat the other, and the page says so first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label.scores import violations
from ray_jobs.report.flow import main_versions
from ray_jobs.report.source import Source
from synth.policy import READINGS

AUDIT = ["side", "audit"]
GUARDS = ("gen_guard", "stream_guard")
TITLES = {
    "gen_guard": "Generative guard",
    "gen_guard_control": "Generative guard, shuffled labels",
    "stream_guard": "Streaming guard",
    "stream_guard_control": "Streaming guard, shuffled labels",
    "tfidf": "TF-IDF + logistic regression",
    "majority": "Majority",
}
AHEAD, UNSETTLED, NOT_AHEAD = "good", "unsure", "bad"
_RESAMPLES = 1000


@dataclass(frozen=True)
class Line:
    """One sentence of the verdict; kind: good, unsure, bad or note."""

    kind: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """F1 of a guard and of another system on the same rows, and the interval of the difference."""

    guard: str
    other: str
    side: str
    reading: str
    rows: int
    f1: float
    other_f1: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.f1 - self.other_f1

    @property
    def outcome(self) -> str:
        if self.difference <= 0:
            return NOT_AHEAD
        return AHEAD if self.low > 0 else UNSETTLED


def f1_difference(
    truth: NDArray[np.bool_], ours: NDArray[np.bool_], theirs: NDArray[np.bool_], groups: Sequence[str]
) -> tuple[float, float, float, float]:
    """(our F1, their F1, low, high) with the 95 % interval of the difference; [n] each, n at least 1."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    weights = np.vstack([np.ones(len(truth), dtype=np.int64), draws[:, index]])

    def f1(said: NDArray[np.bool_]) -> NDArray[np.float64]:
        return 2 * (weights @ (truth & said)) / np.maximum(weights @ truth + weights @ said, 1)

    mine, other = f1(ours), f1(theirs)
    low, high = np.percentile((mine - other)[1:], [2.5, 97.5])
    return float(mine[0]), float(other[0]), float(low), float(high)


def comparisons(source: Source) -> list[Comparison]:
    """Every guard against everything it has to beat, per side and reading."""
    columns = ["parent_id", "group_id", "system", "side", "truth", "severity"]
    told: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in source.rows("predictions", columns):
        told.setdefault((row["system"], row["side"]), {})[row["parent_id"]] = row
    return [
        compare(source, told[guard, side], told[other, side], reading)
        for guard in GUARDS
        for side in source.policy.sides
        for other in ("majority", "tfidf", f"{guard}_control")
        for reading in reversed(READINGS)
        if (guard, side) in told and told.get((other, side), {}).keys() & told[guard, side].keys()
    ]


def compare(
    source: Source, ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], reading: str
) -> Comparison:
    """Two systems on the rows that both answered."""
    shared = sorted(ours.keys() & theirs.keys())

    def flags(answers: dict[str, dict[str, Any]], column: str) -> NDArray[np.bool_]:
        return violations(source.policy, [answers[row][column] for row in shared], reading)

    groups = [ours[row]["group_id"] for row in shared]
    scored = f1_difference(flags(ours, "truth"), flags(ours, "severity"), flags(theirs, "severity"), groups)
    first, second = ours[shared[0]], theirs[shared[0]]
    return Comparison(first["system"], second["system"], first["side"], reading, len(shared), *scored)


def summary(source: Source) -> dict[str, Any]:
    """Counts for the top of the page, and the sentences."""
    found = comparisons(source)
    outcomes = [each.outcome for each in found if each.reading == "strict"]
    return {
        "numbers": numbers(source),
        "lines": lines(source, found),
        "won": outcomes.count(AHEAD),
        "unsettled": outcomes.count(UNSETTLED),
        "lost": outcomes.count(NOT_AHEAD),
        "compared": len(outcomes),
    }


def numbers(source: Source) -> list[tuple[str, int]]:
    """How many prompts, responses and labels, of the tables that are there."""
    kept = "deduped" if "deduped" in source.versions else "prompts"
    named = [
        ("prompts", kept),
        ("responses", "responses"),
        ("translations", "translations"),
        ("labels", source.samples),
        ("token labels", "token_labels"),
        ("gold rows", "gold"),
    ]
    return [(title, source.count(name)) for title, name in named if name in source.versions]


def lines(source: Source, found: list[Comparison] | None = None) -> list[Line]:
    """The verdict's sentences: each guard per side in the strict reading, then the labels and what was lost."""
    strict = [each for each in (comparisons(source) if found is None else found) if each.reading == "strict"]
    told = [
        guard_line(source, [each for each in strict if (each.guard, each.side) == key])
        for key in dict.fromkeys((each.guard, each.side) for each in strict)
    ]
    if not told:
        told = [Line("note", "No guard has been compared with anything yet.")]
    return [*told, *made_lines(source)]


def guard_line(source: Source, against: list[Comparison]) -> Line:
    """One guard on one side, in the strict reading."""
    first = against[0]
    told = f"{TITLES[first.guard]}, {first.side}s: F1 {first.f1:.2f} on {first.rows} held-out gold rows."
    named = {
        kind: [each for each in against if each.outcome == kind] for kind in (AHEAD, UNSETTLED, NOT_AHEAD)
    }
    for kind, start, end in (
        (NOT_AHEAD, "It does NOT beat", "."),
        (UNSETTLED, "It is ahead of", ", but by less than these rows can settle."),
        (AHEAD, "It beats", "."),
    ):
        if named[kind]:
            told += f" {start} {listed([other_words(each) for each in named[kind]])}{end}"
    lacking = len(against) < 3
    if lacking:
        told += " Not every comparison was made."
    worst = NOT_AHEAD if named[NOT_AHEAD] else UNSETTLED if named[UNSETTLED] or lacking else AHEAD
    return Line(worst, told)


def other_words(each: Comparison) -> str:
    names = {"majority": "the majority", "tfidf": "TF-IDF"}
    other = names.get(each.other, "its shuffled-label control")
    return f"{other} (F1 {each.other_f1:.2f}, difference {signed(each.low)} to {signed(each.high)})"


def signed(value: float) -> str:
    """Two decimals with a sign, the minus a true one."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def made_lines(source: Source) -> list[Line]:
    """What the labels are worth and where they come from; what is missing or was lost."""
    found = []
    if "translations" in source.versions and not source.count("translations"):
        found.append(
            Line("note", "Nothing was translated: there was no translator, or nothing passed its checks.")
        )
    found += [
        votes_line(row["side"], json.loads(row["audit"] or "{}")) for row in source.rows("combiner", AUDIT)
    ]
    if source.samples:
        origins = Counter(row["origin"] for row in source.rows(source.samples, ["origin"]))
        words = listed([f"{count} by {origin}" for origin, count in sorted(origins.items())] or ["none"])
        found.append(Line("note", f"Labels that training reads: {words}."))
    failed = sum(version.provenance.counts.get("failed", 0) for version in main_versions(source))
    if failed:
        found.append(Line("note", f"Failed rows, kept in the steps' quarantine tables: {failed}."))
    return found


def votes_line(side: str, audit: dict[str, Any]) -> Line:
    """What the votes on one side are worth on gold, and what the audit warns of."""
    if not audit:
        return Line(NOT_AHEAD, f"Labels on {side}s are an uncalibrated majority: there were no gold rows.")
    low, high = audit["combination"]["interval"]
    f1, rows = audit["combination"]["f1"], audit["rows"]
    told = f"Votes on {side}s: F1 {f1:.2f} ({low:.2f} to {high:.2f}) on {rows} gold rows."
    warnings = " ".join(audit["warnings"])
    return Line(NOT_AHEAD if warnings else AHEAD, f"{told} {warnings}".strip())


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
