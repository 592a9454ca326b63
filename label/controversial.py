"""Controversial labels from two readings of the same data (METHOD.md §3).

The share of safe rows in training moves a classifier's decision boundary: more safe rows make it
permissive (loose), more violating ones conservative (strict). All rows are split by group into halves A
and B; on A one loose and one strict model are trained and label B, and the reverse. Both say safe: safe.
Both say violating: violating. They differ: controversial. So no row is labelled by a model that saw its
group; the fold ids are returned as proof.

The report does not publish its ratios and takes "the most permissive and most conservative points" of a
validation set. Stated precisely here: sweep the ratio (safe rows per violating row) over a geometric grid,
train on either half and average. A ratio is *useful* when the validation F1 of the safe and of the
violating class both reach `keep` times their best value in the sweep. Loose is the useful ratio that flags
the smallest share of the validation rows, strict the one that flags the largest; ties go to the more
extreme ratio. The classifier is a parameter, so that frozen-embedding heads and a fine-tuned guard go
through the same code.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label.folds import Ints, fold_of, splits, stable_order
from synth.errors import BadInput

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FitPredict = Callable[[Ints, Bools, Ints], Floats]
"""(training rows, whether each is violating, rows to predict) -> probability of violating per prediction."""

RATIOS = tuple(float(2.0**power) for power in range(-4, 5))
SAFE, CONTROVERSIAL, VIOLATING = 0, 1, 2


@dataclass(frozen=True)
class Point:
    """One ratio of the sweep: rows trained on, and the mean over both halves' validation measures."""

    ratio: float
    train_rows: int
    flagged: float
    precision_safe: float
    recall_safe: float
    f1_safe: float
    precision_violating: float
    recall_violating: float
    f1_violating: float


@dataclass(frozen=True)
class Ratios:
    """The chosen pair (safe rows per violating row) and the sweep it was chosen from."""

    loose: float
    strict: float
    points: tuple[Point, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the report and the step's record."""
        return {
            "loose": self.loose,
            "strict": self.strict,
            "points": [asdict(point) for point in self.points],
        }


@dataclass(frozen=True)
class Annotation:
    """Per row: its fold, both probabilities of violating, and the vote (SAFE, CONTROVERSIAL, VIOLATING).

    `crossed` counts rows that the strict model calls safe and the loose one violating: they are
    Controversial by the rule, and many of them say that the two models differ by noise more than by their
    ratio.
    """

    fold: Ints
    loose: Floats
    strict: Floats
    vote: Ints
    crossed: int


def halves(groups: Sequence[str], seed: int) -> Ints:
    """[n] 0 or 1, whole groups. BadInput when all rows are of one half."""
    return fold_of(groups, 2, seed, "controversial")


def sample_by_ratio(ids: Sequence[str], violating: Bools, ratio: float, seed: int) -> Ints:
    """Positions of the rows to train on: `ratio` safe rows per violating one, thinning the plentiful class.

    The rows kept at a milder ratio contain those kept at a more extreme one. BadInput if either class is
    missing.
    """
    counts = {flag: int((violating == flag).sum()) for flag in (False, True)}
    if not all(counts.values()):
        raise BadInput(f"training rows: {counts[False]} safe and {counts[True]} violating; both are needed")
    wanted = {
        False: min(counts[False], max(1, round(ratio * counts[True]))),
        True: min(counts[True], max(1, round(counts[False] / ratio))),
    }
    order = stable_order(ids, seed, "ratio")
    kept = [order[violating[order] == flag][: wanted[flag]] for flag in (False, True)]
    return np.sort(np.concatenate(kept))


def _trained_on(
    rows: Ints,
    ids: Sequence[str],
    violating: Bools,
    ratio: float,
    seed: int,
    fit_predict: FitPredict,
    predict: Ints,
) -> tuple[Floats, int]:
    kept = rows[sample_by_ratio([ids[row] for row in rows], violating[rows], ratio, seed)]
    probability = np.asarray(fit_predict(kept, violating[kept], predict), dtype=np.float64)
    if probability.shape != predict.shape or np.isnan(probability).any():
        raise ValueError(f"fit_predict gave {probability.shape} values or NaN for {predict.shape} rows")
    return probability, len(kept)


def _measures(truth: Bools, flagged: Bools) -> dict[str, float]:
    result = {"flagged": float(flagged.mean())}
    for name, true, said in (("safe", ~truth, ~flagged), ("violating", truth, flagged)):
        both = float((true & said).sum())
        result[f"precision_{name}"] = both / max(float(said.sum()), 1.0)
        result[f"recall_{name}"] = both / max(float(true.sum()), 1.0)
        result[f"f1_{name}"] = 2 * both / max(float(true.sum() + said.sum()), 1.0)
    return result


def sweep(
    ids: Sequence[str],
    groups: Sequence[str],
    violating: Sequence[bool],
    validation: Sequence[int],
    fit_predict: FitPredict,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> tuple[Point, ...]:
    """Measures on the validation rows of models trained on either half of the other rows, per ratio.

    All arguments but `ratios` speak of one table of n rows; `validation` holds row numbers, whose
    `violating` is the truth. BadInput when a validation group is also in training, or validation lacks a
    class.
    """
    flags, held = np.asarray(violating, dtype=bool), np.asarray(validation, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(ids)), held)
    shared = {groups[row] for row in held} & {groups[row] for row in rest}
    if shared:
        raise BadInput(f"validation: {len(shared)} of its groups are also in training, such as {min(shared)}")
    if len(set(flags[held].tolist())) < 2:
        raise BadInput(f"validation: {len(held)} rows of one class; safe and violating ones are both needed")
    half = halves([groups[row] for row in rest], seed)
    points = []
    for ratio in ratios:
        measured, sizes = [], []
        for side in (0, 1):
            rows = rest[half == side]
            probability, size = _trained_on(rows, ids, flags, ratio, seed, fit_predict, held)
            measured.append(_measures(flags[held], probability >= 0.5))
            sizes.append(size)
        mean = {name: float(np.mean([one[name] for one in measured])) for name in measured[0]}
        points.append(Point(ratio=ratio, train_rows=sum(sizes) // 2, **mean))
    return tuple(points)


def choose_ratios(points: Sequence[Point], keep: float = 0.9) -> Ratios:
    """The most permissive and most conservative useful points, as stated at the top of this module.

    Where no ratio is useful for both classes, the one with the best sum of both F1 is taken for both
    readings, and nothing will be controversial: a result that says the classifier is too weak.
    """
    best_safe = max(point.f1_safe for point in points)
    best_violating = max(point.f1_violating for point in points)
    useful = [p for p in points if p.f1_safe >= keep * best_safe and p.f1_violating >= keep * best_violating]
    useful = useful or [max(points, key=lambda point: point.f1_safe + point.f1_violating)]
    loose = min(useful, key=lambda point: (point.flagged, -point.ratio))
    strict = min(useful, key=lambda point: (-point.flagged, point.ratio))
    return Ratios(loose.ratio, strict.ratio, tuple(points))


def three_way(loose: Bools, strict: Bools) -> Ints:
    """Both safe: SAFE; both violating: VIOLATING; they differ: CONTROVERSIAL."""
    return np.where(loose != strict, CONTROVERSIAL, np.where(loose, VIOLATING, SAFE))


def cross_annotate(
    ids: Sequence[str],
    groups: Sequence[str],
    violating: Sequence[bool],
    ratios: Ratios,
    fit_predict: FitPredict,
    seed: int = 0,
) -> Annotation:
    """Each half labelled by the loose and the strict model of the other half; arrays over the n rows."""
    flags, fold = np.asarray(violating, dtype=bool), halves(groups, seed)
    probability = {"loose": np.empty(len(ids)), "strict": np.empty(len(ids))}
    for train, predict in splits(fold):
        for name, ratio in (("loose", ratios.loose), ("strict", ratios.strict)):
            result, _ = _trained_on(train, ids, flags, ratio, seed, fit_predict, predict)
            probability[name][predict] = result
    loose, strict = probability["loose"] >= 0.5, probability["strict"] >= 0.5
    crossed = int((loose & ~strict).sum())
    return Annotation(fold, probability["loose"], probability["strict"], three_way(loose, strict), crossed)
