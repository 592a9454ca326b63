"""Labelled texts and what guards said of them, scored: strict and loose, prompts and responses apart (METHOD.md §7).

Pure: rows and judgements in, plain records out, one per table line. Every figure is over the rows that the guard could
judge; those it could not are counted in `failed`. Two guards are compared on the rows that both could judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from label.compare import (
    average_precision,
    confusion,
    difference,
    mcnemar,
    onset_distance,
    onsets,
    token_span,
)
from label.scores import score
from ray_jobs.engine.calls import Failure
from ray_jobs.eval_formats import EvalRow
from ray_jobs.file_guards import Judged, Judgement
from synth.ids import stable_hash
from synth.policy import READINGS, Policy

SIDES = ("prompt", "response")
Record = dict[str, Any]


@dataclass(frozen=True)
class System:
    """A guard's name, policy and judgements of a file's rows, in their order."""

    name: str
    policy: Policy
    judged: Judged


@dataclass(frozen=True)
class Pairs:
    """Rows of one side with one guard's judgements of them."""

    rows: list[EvalRow]
    told: list[Judgement]

    @property
    def groups(self) -> list[str]:
        return [row.group for row in self.rows]


def sampled(rows: Sequence[EvalRow], limit: int | None, seed: int) -> list[EvalRow]:
    """At most `limit` rows, drawn one by one in an order that the seed fixes and not the file.

    Not whole groups: 60 answers to one question would leave an interval over groups nothing to draw from.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    keys = [stable_hash("limit", seed, row.side, row.prompt, row.response) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (keys[i], i))
    return [rows[i] for i in sorted(order[:limit])]


def score_file(
    rows: Sequence[EvalRow], systems: Sequence[System], resamples: int, seed: int
) -> dict[str, list[Record]]:
    """All tables of one file: scores, refusal, categories, onsets, pairs, failed."""
    draws = {"resamples": resamples, "seed": seed}
    tables: dict[str, list[Record]] = {
        name: [] for name in ("scores", "refusal", "categories", "onsets", "pairs", "failed")
    }
    for system in systems:
        tables["failed"] += list(_failed(system))
        for side in SIDES:
            common = {"system": system.name, "side": side}
            tables["scores"] += [
                common | one for one in _scores(system, _labelled(rows, system, side), draws)
            ]
            tables["refusal"] += [common | one for one in _refusal(_of(rows, system, side), draws)]
            tables["categories"] += [common | one for one in _categories(_labelled(rows, system, side))]
            tables["onsets"] += [common | one for one in _onsets(_of(rows, system, side), draws)]
    for first, second in combinations(systems, 2):
        tables["pairs"] += list(_compared(rows, first, second, draws))
    return tables


def _failed(system: System) -> Iterator[Record]:
    """How many rows were not judged, or not wholly, by reason."""
    reasons = Counter(told.reason if isinstance(told, Failure) else told.unread for told in system.judged)
    for reason, rows in sorted(reasons.items()):
        if reason:
            yield {"system": system.name, "reason": reason, "rows": rows}


def _of(rows: Sequence[EvalRow], system: System, side: str) -> Pairs:
    both = [
        (row, told)
        for row, told in zip(rows, system.judged, strict=True)
        if row.side == side and isinstance(told, Judgement)
    ]
    return Pairs([row for row, _ in both], [told for _, told in both])


def _labelled(rows: Sequence[EvalRow], system: System, side: str) -> Pairs:
    found = _of(rows, system, side)
    kept = [i for i, row in enumerate(found.rows) if row.violates is not None]
    return Pairs([found.rows[i] for i in kept], [found.told[i] for i in kept])


def _truth(rows: Sequence[EvalRow], reading: str) -> np.ndarray:
    return np.array([row.violating(reading) for row in rows], dtype=bool)


def _flagged(policy: Policy, told: Sequence[Judgement], reading: str) -> np.ndarray:
    return np.array([policy.violates(one.severity, reading) for one in told], dtype=bool)


def _scores(system: System, pairs: Pairs, draws: dict[str, int]) -> Iterator[Record]:
    """F1 with precision, recall and AUPRC, per reading. Rows of one class have no AUPRC."""
    for reading in READINGS if pairs.rows else ():
        truth = _truth(pairs.rows, reading)
        found = score(truth, _flagged(system.policy, pairs.told, reading), pairs.groups, **draws)
        ranked = [one.violating[reading] for one in pairs.told]
        area = average_precision(truth, ranked, pairs.groups, **draws)
        both = truth.any() and not truth.all()
        more = {"groups": len(set(pairs.groups)), "auprc": asdict(area) if both else None}
        yield {"reading": reading} | asdict(found) | more


def _refusal(pairs: Pairs, draws: dict[str, int]) -> Iterator[Record]:
    """F1 of refusals, on the rows that say and guards that said whether they are."""
    both = [
        (row, told.refusal)
        for row, told in zip(pairs.rows, pairs.told, strict=True)
        if row.refusal is not None and told.refusal is not None
    ]
    if both:
        truth, said = (
            np.array(column, dtype=bool)
            for column in zip(*((r.refusal, told) for r, told in both), strict=True)
        )
        found = asdict(score(truth, said, [row.group for row, _ in both], **draws))
        yield {"refusals" if name == "violating" else name: value for name, value in found.items()}


def _categories(pairs: Pairs) -> Iterator[Record]:
    """The benchmark's categories against the guard's, on violating rows where both named any."""
    kept = [
        (row.category, told.category)
        for row, told in zip(pairs.rows, pairs.told, strict=True)
        if row.category and row.violating("strict") and told.category is not None
    ]
    if kept:
        found = confusion([a for a, _ in kept], [b for _, b in kept])
        yield {"truth": list(found.truth), "said": list(found.said), "counts": found.counts.tolist()}


def _onsets(pairs: Pairs, draws: dict[str, int]) -> Iterator[Record]:
    """Distances from the first marked span to the first flagged token, per reading."""
    for reading in READINGS:
        distances, groups = [], []
        for row, told in zip(pairs.rows, pairs.told, strict=True):
            if not row.onset or told.onset is None or told.offsets is None or not row.violating(reading):
                continue
            span = token_span(told.offsets, row.onset[0])
            if span is not None:
                distances.append(onset_distance(told.onset[reading], span))
                groups.append(row.group)
        if distances:
            yield {"reading": reading} | asdict(onsets(distances, groups, **draws))


def _compared(
    rows: Sequence[EvalRow], first: System, second: System, draws: dict[str, int]
) -> Iterator[Record]:
    """Two guards on the labelled rows that both could judge: McNemar's exact test and the F1 gap."""
    for side in SIDES:
        kept = [
            (row, a, b)
            for row, a, b in zip(rows, first.judged, second.judged, strict=True)
            if row.side == side and row.violates and isinstance(a, Judgement) and isinstance(b, Judgement)
        ]
        for reading in READINGS if kept else ():
            truth = _truth([row for row, _, _ in kept], reading)
            one = _flagged(first.policy, [a for _, a, _ in kept], reading)
            other = _flagged(second.policy, [b for _, _, b in kept], reading)
            gap = difference(truth, one, other, [row.group for row, _, _ in kept], **draws)
            about = {
                "first": first.name,
                "second": second.name,
                "side": side,
                "reading": reading,
                "rows": len(kept),
            }
            yield about | asdict(mcnemar(truth, one, other)) | {"f1_difference": asdict(gap)}
