"""Folds by group: the same group always falls into the same fold, whatever else is in the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from synth.errors import BadInput
from synth.ids import stable_hash

if TYPE_CHECKING:
    from label.vote import Gold

Ints = NDArray[np.int64]
Fold = tuple[NDArray[Any], NDArray[Any]]


def stable_order(ids: Sequence[str], *salt: object) -> Ints:
    """[n] positions of `ids` in a pseudo-random order that depends on each id and the salt alone."""
    return np.argsort(np.array([stable_hash(*salt, row) for row in ids], dtype="U20"), kind="stable")


def fold_of(groups: Sequence[str], folds: int, *salt: object) -> Ints:
    """[n] fold of each row, 0 to folds - 1. BadInput when a fold stays empty: too few groups to cross-fit."""
    names, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    of_name = np.array([int(stable_hash(*salt, str(name)), 16) % folds for name in names], dtype=np.int64)
    if len(np.unique(of_name)) < folds:
        raise BadInput(f"{len(names)} groups cannot be split into {folds} folds that each hold one")
    return of_name[index]


def splits(fold: Ints) -> Iterator[tuple[Ints, Ints]]:
    """(train, predict) row indices per fold: a row is predicted by a model that saw none of its fold."""
    for held in np.unique(fold):
        yield np.flatnonzero(fold != held), np.flatnonzero(fold == held)


def group_folds(gold: Gold, violating: NDArray[np.bool_], repeats: int, seed: int) -> list[list[Fold]]:
    """`repeats` lists of (train, test) row indices, groups whole, classes spread. BadInput below 2 groups."""
    from sklearn.model_selection import StratifiedGroupKFold  # combining in a worker needs none of this

    parts = min(5, len(set(gold.groups)))
    if parts < 2:
        raise BadInput("gold: all rows are one group; cross-validation needs at least two")
    classes = violating[gold.labels]
    result = []
    for repeat in range(repeats):
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed + repeat)
        result.append(list(folds.split(np.zeros(len(classes)), classes, list(gold.groups))))
    return result
