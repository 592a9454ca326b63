"""Noise out of the labels with a cross-fitted teacher (METHOD.md §4).

The rows are split by group into folds (two in the report); a teacher trained on the other folds judges
each. How the labels went wrong is estimated beside it, as the rates T[true, given] with which a true class
was given as another, so that for each row Bayes gives the probability of every true class from what the
teacher and the given label say:

    q(true) ~ p_teacher(true | text) * T[true, given]

1. Round 1: the teacher learns the given labels. T comes from the confident joint (Northcutt, Jiang &
   Chuang 2021): a row counts as truly of the most probable class that reaches its threshold, the teacher's
   mean probability of that class over the rows labelled so; classes in which the teacher is generally less
sure are not all suspect then. 2. Later rounds: the teacher learns the labels so far, without the dropped
   rows, and T comes from the q of the round before (the M-step of Dawid & Skene, with the teacher in the
   place of the other annotators). The *given* labels are judged anew each time, so a change can be taken
   back.

With w = 1 - q(given), the probability that the given label is wrong:

* relabel to the most probable class when w > `relabel_at`;
* drop when `drop_at` < w <= `relabel_at`: doubted, and no other label certain enough;
* keep otherwise;
* question: a row labelled by a person is never changed or dropped; where the rule would, it is put to people.

Every decision is recorded with old and new label, fold and both probabilities.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from label.folds import Ints, fold_of, splits
from synth.errors import BadInput

Floats = NDArray[np.float64]
FitPredict = Callable[[Ints, Ints, Ints], Floats]
"""(training rows, their labels, rows to predict) -> [m, classes] probabilities, a column per class."""

KEEP, RELABEL, DROP, QUESTION = "keep", "relabel", "drop", "question"
_KEPT, _DROPPED, _RELABELLED = 0, 1, 2


@dataclass(frozen=True)
class Rules:
    """Probabilities of a wrong label above which it is replaced, or else dropped; the teacher's folds and rounds."""

    relabel_at: float = 0.5
    drop_at: float = 0.3
    folds: int = 2
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0.5 <= self.relabel_at <= 1 or not 0 <= self.drop_at <= self.relabel_at:
            raise BadInput(
                f"distill: need 0 <= drop_at {self.drop_at} <= relabel_at {self.relabel_at} in [0.5, 1]"
            )
        if self.folds < 2 or self.rounds < 1:
            raise BadInput(f"distill: need 2 folds and 1 round or more, not {self.folds} and {self.rounds}")


@dataclass(frozen=True)
class Change:
    """One row whose label is doubted: relabelled, dropped or questioned. Probabilities are those of `q`."""

    id: str
    action: str
    old: int
    new: int
    fold: int
    probability_old: float
    probability_new: float


@dataclass(frozen=True)
class Distilled:
    """Per row: label, action, fold, and q [n, S]; the rates T [true, given]; the changes; counts of the actions."""

    labels: Ints
    actions: tuple[str, ...]
    fold: Ints
    probability: Floats
    rates: Floats
    changes: tuple[Change, ...]
    counts: dict[str, int]


def class_thresholds(labels: Ints, probability: Floats) -> Floats:
    """[S] mean probability of each class over the rows labelled so; 1 (never reached) without rows."""
    classes = probability.shape[1]
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=probability[np.arange(len(labels)), labels], minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)


def confident_rates(labels: Ints, probability: Floats) -> Floats:
    """[S, S] T[true, given] from the confident joint, its margin over given labels that of all rows."""
    classes = probability.shape[1]
    reached = np.where(probability >= class_thresholds(labels, probability), probability, -1.0)
    sure = reached.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (reached.argmax(axis=1)[sure], labels[sure]), 1.0)
    given = np.bincount(labels, minlength=classes) / np.maximum(joint.sum(axis=0), 1.0)
    return _by_row(joint * given)


def posterior_rates(labels: Ints, posterior: Floats) -> Floats:
    """[S, S] T[true, given] as the expected counts under the posterior of the true classes."""
    joint = np.zeros((posterior.shape[1], posterior.shape[1]))
    np.add.at(joint.T, labels, posterior)
    return _by_row(joint)


def _by_row(joint: Floats) -> Floats:
    """Rows to sum 1, with one pseudo-row of every class whose label is right."""
    smoothed = joint + np.eye(len(joint))
    return smoothed / smoothed.sum(axis=1, keepdims=True)


def true_class(labels: Ints, probability: Floats, rates: Floats) -> Floats:
    """[n, S] q: the posterior of the true class from the teacher's probability and the given label."""
    joint = np.maximum(probability, 1e-12) * rates[:, labels].T
    return joint / joint.sum(axis=1, keepdims=True)


def decide(labels: Ints, posterior: Floats, rules: Rules) -> tuple[Ints, Ints]:
    """(code [n]: 0 keep, 1 drop, 2 relabel; the most probable other class [n]) by the rules above, people aside."""
    rows = np.arange(len(labels))
    wrong = 1.0 - posterior[rows, labels]
    others = posterior.copy()
    others[rows, labels] = -1.0
    code = np.where(wrong > rules.relabel_at, _RELABELLED, np.where(wrong > rules.drop_at, _DROPPED, _KEPT))
    return code, others.argmax(axis=1)


def distill(
    ids: Sequence[str],
    groups: Sequence[str],
    labels: Sequence[int],
    human: Sequence[bool],
    fit_predict: FitPredict,
    rules: Rules | None = None,
    seed: int = 0,
) -> Distilled:
    """The labels after the teacher, row by row. BadInput when the groups do not fill the folds."""
    rules = rules or Rules()
    given, by_people = np.asarray(labels, dtype=np.int64), np.asarray(human, dtype=bool)
    fold = fold_of(groups, rules.folds, seed, "distill")
    current, usable = given.copy(), np.ones(len(given), dtype=bool)
    posterior: Floats | None = None
    for _ in range(rules.rounds):
        taught = _cross_fit(current, usable, fold, fit_predict)
        rates = confident_rates(given, taught) if posterior is None else posterior_rates(given, posterior)
        posterior = true_class(given, taught, rates)
        code, other = decide(given, posterior, rules)
        current = np.where((code == _RELABELLED) & ~by_people, other, given)
        usable = (code != _DROPPED) | by_people
    assert posterior is not None
    names = np.array([KEEP, DROP, RELABEL])[code]
    actions = np.where((code != _KEPT) & by_people, QUESTION, names)
    changes = tuple(
        Change(
            id=ids[row],
            action=str(actions[row]),
            old=int(given[row]),
            new=int(other[row]),
            fold=int(fold[row]),
            probability_old=float(posterior[row, given[row]]),
            probability_new=float(posterior[row, other[row]]),
        )
        for row in map(int, np.flatnonzero(code != _KEPT))
    )
    counts = dict(sorted(Counter(actions.tolist()).items()))
    return Distilled(current, tuple(actions.tolist()), fold, posterior, rates, changes, counts)


def _cross_fit(labels: Ints, usable: NDArray[np.bool_], fold: Ints, fit_predict: FitPredict) -> Floats:
    """[n, S] probabilities of every row by the teacher trained on the usable rows of the other folds."""
    parts: list[tuple[Ints, Floats]] = []
    for train, predict in splits(fold):
        kept = train[usable[train]]
        result = np.asarray(fit_predict(kept, labels[kept], predict), dtype=np.float64)
        if result.ndim != 2 or len(result) != len(predict) or np.isnan(result).any():
            raise ValueError(f"fit_predict gave shape {result.shape} or NaN for {len(predict)} rows")
        parts.append((predict, result))
    probability = np.empty((len(labels), parts[0][1].shape[1]))
    for predict, result in parts:
        probability[predict] = result
    return probability
