"""Noise out of the labels with a cross-fitted teacher (METHOD.md §4).

The rows are split by group into folds (two in the report); a teacher trained on the others relabels each
fold. What its probabilities change is decided by stated rules, after confident learning (Northcutt, Jiang
& Chuang 2021): the threshold of a class is the teacher's mean probability of it over the rows that carry
its label, so that classes in which the teacher is generally less sure are not all suspect. With y the
given label and j the most probable other class that reaches its own threshold:

* question: a row labelled by a person is never changed; where the rule would change it, it is put to people.
* relabel to j when p(j) - p(y) >= `relabel_margin`.
* drop when p(j) - p(y) >= `drop_margin`: the given label is doubted, the other not certain enough.
* keep otherwise, and where no other class reaches its threshold.

Further rounds train on the labels so far, without the dropped rows, and judge the *original* labels anew,
so that a change can be taken back. Every decision is recorded with old and new label, fold and probabilities.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from label.folds import Ints, fold_of, splits

Floats = NDArray[np.float64]
FitPredict = Callable[[Ints, Ints, Ints], Floats]
"""(training rows, their labels, rows to predict) -> [m, classes] probabilities, a column per class."""

KEEP, RELABEL, DROP, QUESTION = "keep", "relabel", "drop", "question"


@dataclass(frozen=True)
class Rules:
    """Margins p(other) - p(given) from which a label is changed or doubted; teacher folds and rounds."""

    relabel_margin: float = 0.4
    drop_margin: float = 0.2
    folds: int = 2
    rounds: int = 1


@dataclass(frozen=True)
class Change:
    """One row whose label the teacher does not share: a relabelled, dropped or questioned one."""

    id: str
    action: str
    old: int
    new: int
    fold: int
    probability_old: float
    probability_new: float


@dataclass(frozen=True)
class Distilled:
    """Per row: label, action, fold, teacher's probabilities [n, S]; the changes; counts of the actions."""

    labels: Ints
    actions: tuple[str, ...]
    fold: Ints
    probability: Floats
    thresholds: Floats
    changes: tuple[Change, ...]
    counts: dict[str, int]


def class_thresholds(labels: Ints, probability: Floats) -> Floats:
    """[S] mean probability of each class over the rows labelled so; 1 (never reached) without rows."""
    classes = probability.shape[1]
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=probability[np.arange(len(labels)), labels], minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)


def decide(labels: Ints, probability: Floats, thresholds: Floats, rules: Rules) -> tuple[Ints, Ints]:
    """(action code [n]: 0 keep, 1 drop, 2 relabel; the other class [n]) by the rules above, people aside."""
    rows = np.arange(len(labels))
    reached = np.where(probability >= thresholds, probability, -1.0)
    reached[rows, labels] = -1.0
    other = reached.argmax(axis=1)
    margin = reached[rows, other] - probability[rows, labels]
    code = np.where(margin >= rules.relabel_margin, 2, np.where(margin >= rules.drop_margin, 1, 0))
    return np.where(reached[rows, other] < 0, 0, code), other


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
    for _ in range(rules.rounds):
        probability = _cross_fit(current, usable, fold, fit_predict)
        thresholds = class_thresholds(current[usable], probability[usable])
        code, other = decide(given, probability, thresholds, rules)
        current = np.where((code == 2) & ~by_people, other, given)
        usable = (code != 1) | by_people
    names = np.array([KEEP, DROP, RELABEL])[code]
    actions = np.where((code > 0) & by_people, QUESTION, names)
    changes = tuple(
        Change(
            id=ids[row],
            action=str(actions[row]),
            old=int(given[row]),
            new=int(other[row]),
            fold=int(fold[row]),
            probability_old=float(probability[row, given[row]]),
            probability_new=float(probability[row, other[row]]),
        )
        for row in map(int, np.flatnonzero(code > 0))
    )
    counts = dict(sorted(Counter(actions.tolist()).items()))
    return Distilled(current, tuple(actions.tolist()), fold, probability, thresholds, changes, counts)


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
