"""Guards compared on labelled rows: ranking, categories, two guards against each other, and where an answer turned.

- AUPRC: average precision, the sum over thresholds of the recall gained times the precision there; rows of equal score
  enter together (no interpolation, as in scikit-learn).
- McNemar's exact test (two-sided binomial, p = 1/2) on the rows that only one of two guards gets right. It takes rows
  for independent, which twins and translations are not: `difference` gives the group bootstrap of the F1 gap.
- Onset (METHOD.md §7): 0 within the marked span, negative before its first token, else the distance from its last one,
  in the published bins. As published, "stopped within 128" includes the answers that were stopped too early.

Intervals are 95 % percentile bootstraps over whole groups, as in label/scores.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from label.scores import ONSET_BINS, onset_bin
from synth.errors import BadInput

Flags = NDArray[np.bool_]
Weights = NDArray[np.float64]
CHUNK = 1 << 22  # weights held at once: 32 MiB
WITHIN = 128
NO_CATEGORY = "(none)"


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        """As of a normal distribution with this interval."""
        return (self.high - self.low) / (2 * 1.96)


@dataclass(frozen=True)
class McNemar:
    """Rows that only the first, only the second of two systems gets right, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Confusion:
    """counts [len(truth), len(said)]: how often a row of one category was given the other."""

    truth: tuple[str, ...]
    said: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Onsets:
    """Of answers with a marked span: rows, rows per bin of ONSET_BINS, and the shares that hit it and that were stopped
    at most 128 tokens after it."""

    rows: int
    bins: dict[str, int]
    hit: Interval
    stopped: Interval


def average_precision(
    truth: Flags,
    scores: Sequence[float] | NDArray[np.floating],
    groups: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUPRC of `scores` for `truth`, [n] each; 0 without a violating row. BadInput for a score that is no number."""
    given = np.asarray(scores, dtype=float)
    _same_length(truth, given, groups)
    if not np.isfinite(given).all():
        raise BadInput(f"row {int(np.flatnonzero(~np.isfinite(given))[0])}: the score is no finite number")
    order = np.argsort(-given, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(given[order]) != 0, True)) if len(given) else np.zeros(0, int)

    def area(weights: Weights) -> NDArray[np.float64]:
        ranked = weights[:, order]
        hits = np.cumsum(ranked * truth[order], axis=1)[:, ends]
        taken = np.cumsum(ranked, axis=1)[:, ends]
        gained = np.diff(hits, axis=1, prepend=0.0)
        return (gained * hits / np.maximum(taken, 1e-12)).sum(axis=1) / np.maximum(hits[:, -1], 1)

    return _bootstrap(area, groups, resamples, seed)


def rate(hits: Flags, groups: Sequence[str], resamples: int = 1000, seed: int = 0) -> Interval:
    """The share of rows [n] that are set."""

    def share(weights: Weights) -> NDArray[np.float64]:
        return (weights @ hits) / np.maximum(weights.sum(axis=1), 1)

    _same_length(hits, groups)
    return _bootstrap(share, groups, resamples, seed)


def difference(
    truth: Flags, first: Flags, second: Flags, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Interval:
    """F1 of `first` less F1 of `second` on the same rows [n]; both are drawn together."""

    def gap(weights: Weights) -> NDArray[np.float64]:
        true = weights @ truth
        f1 = [
            2 * (weights @ (truth & said)) / np.maximum(true + weights @ said, 1) for said in (first, second)
        ]
        return f1[0] - f1[1]

    _same_length(truth, first, second, groups)
    return _bootstrap(gap, groups, resamples, seed)


def mcnemar(truth: Flags, first: Flags, second: Flags) -> McNemar:
    """McNemar's exact test between two systems' flags on the same rows [n]; p is 1 where they never differ."""
    _same_length(truth, first, second)
    right, other = first == truth, second == truth
    b, c = int((right & ~other).sum()), int((other & ~right).sum())
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, min(1.0, 2 * tail / 2 ** (b + c)))


def confusion(truth: Sequence[str], said: Sequence[str]) -> Confusion:
    """Category against category over the same rows, both in order of frequency; "" counts as no category."""
    _same_length(truth, said)
    pairs = Counter((a or NO_CATEGORY, b or NO_CATEGORY) for a, b in zip(truth, said, strict=True))
    rows = _by_frequency([a or NO_CATEGORY for a in truth])
    columns = _by_frequency([b or NO_CATEGORY for b in said])
    counts = np.array([[pairs[a, b] for b in columns] for a in rows], dtype=np.int64)
    return Confusion(rows, columns, counts.reshape(len(rows), len(columns)))


def token_span(offsets: NDArray[np.integer], span: tuple[int, int]) -> tuple[int, int] | None:
    """First and last of the tokens (character `offsets` [T, 2]) that touch the characters [start, end), or None."""
    found = np.flatnonzero((offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1]))
    return (int(found[0]), int(found[-1])) if len(found) else None


def onset_distance(flagged: int | None, span: tuple[int, int]) -> int | None:
    """Tokens from the marked span (first and last token) to the first flagged token; None when none is flagged."""
    if flagged is None:
        return None
    first, last = span
    return flagged - first if flagged < first else max(flagged - last, 0)


def onsets(
    distances: Sequence[int | None], groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Onsets:
    """Distances [n] in bins, with the shares that hit and that were stopped in time."""
    named = Counter(map(onset_bin, distances))
    hit = np.array([distance == 0 for distance in distances], dtype=bool)
    stopped = np.array([distance is not None and distance <= WITHIN for distance in distances], dtype=bool)
    return Onsets(
        len(distances),
        {name: named[name] for name in ONSET_BINS},
        rate(hit, groups, resamples, seed),
        rate(stopped, groups, resamples, seed),
    )


def _by_frequency(names: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(names)
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _same_length(*columns: Sequence | NDArray) -> None:
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise BadInput(f"the columns to compare differ in length: {', '.join(map(str, sorted(lengths)))}")


def _bootstrap(
    statistic: Callable[[Weights], NDArray[np.float64]], groups: Sequence[str], resamples: int, seed: int
) -> Interval:
    """`statistic` of row weights [B, n] -> [B]: over all rows once, and over draws of whole groups."""
    if not len(groups):
        return Interval(0.0, 0.0, 0.0)
    value = float(statistic(np.ones((1, len(groups))))[0])
    sampled = np.concatenate([statistic(weights) for weights in _draws(groups, resamples, seed)])
    low, high = np.percentile(sampled, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _draws(groups: Sequence[str], resamples: int, seed: int) -> Iterator[Weights]:
    """Row weights [≤ B, n] of `resamples` draws of the groups, some at a time: a million rows fit in memory."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    rng, step = np.random.default_rng(seed), max(1, CHUNK // max(len(groups), 1))
    for done in range(0, resamples, step):
        draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), min(step, resamples - done))
        yield draws[:, index].astype(float)
