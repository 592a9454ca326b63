"""What the two relabelling steps share: a first pass over the samples that keeps what fits need, and a linear
classifier on vectors as the trainer behind label.controversial and label.distill.

Neither step holds its rows. Of a row the first pass keeps id, group and label (about 250 bytes); its vector goes to a
file. A second pass gives the labels, one part of the table at a time. The classifier is trained on FIT_ROWS rows at
most, by a hash of their ids: it has as many weights as a vector has numbers and gains nothing from more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_jobs.head_features import embedded
from ray_jobs.step import Work
from ray_jobs.voters import item_text
from synth.ids import stable_hash

PART = 8_192  # rows in memory at a time
FIT_ROWS = 50_000


class Vectors:
    """[n, D] float32 in a file without a name, which ends with this object. Appended in order, taken by position."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self.count, self.size = 0, 0

    def append(self, vectors: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
        self.file.flush()
        self.count, self.size = self.count + len(vectors), vectors.shape[1]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        mapped = np.memmap(self.file, np.float32, "r", shape=(self.count, self.size))
        return np.asarray(mapped[positions])


@dataclass
class Seen:
    """What is kept of one side's certain rows, in the order in which they came. `label`: index of the severity."""

    vectors: Vectors = field(default_factory=Vectors)
    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    human: list[bool] = field(default_factory=list)

    def add(self, work: Work, rows: list[dict[str, Any]]) -> None:
        """Take up rows and the vectors that the role `teacher` gives them."""
        for first in range(0, len(rows), PART):
            part = rows[first : first + PART]
            texts = [item_text(row["side"], row["prompt"], row["history"], row["response"]) for row in part]
            self.vectors.append(embedded(work, "teacher", texts))
        names = {name: at for at, name in enumerate(work.policy.severity_names)}
        self.ids += [row["id"] for row in rows]
        self.groups += [row["group_id"] for row in rows]
        self.label += [names[row["severity"]] for row in rows]
        self.human += [row.get("origin") == "human" for row in rows]

    def violating(self, work: Work) -> list[bool]:
        """Whether each row violates in the strict reading."""
        flags = [work.policy.violates(name, "strict") for name in work.policy.severity_names]
        return [flags[label] for label in self.label]

    def both_classes(self, work: Work, least: int = 8) -> bool:
        """Whether there are enough rows of either class to train halves on."""
        violating = sum(self.violating(work))
        return min(violating, len(self.ids) - violating) >= least


def seen_by_side(work: Work, parts: Iterator[list[dict[str, Any]]]) -> dict[str, Seen]:
    """The certain rows of all parts, by side."""
    found = {side: Seen() for side in work.policy.sides}
    for rows in parts:
        for side, seen in found.items():
            if here := [row for row in rows if row["side"] == side and not row["abstain"]]:
                seen.add(work, here)
    return found


def parts_of(work: Work, name: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """An input's rows, so many at a time."""
    for batch in work.store.batches(work.versions[name].ref, columns=columns, rows=PART):
        yield batch.to_pylist()


def linear_probabilities(
    X: np.ndarray | Vectors, classes: int, ids: Sequence[str] = (), limit: int = FIT_ROWS
) -> Callable[..., np.ndarray]:
    """`fit_predict(train, labels, predict)` -> [m, classes]: logistic regression on standardised vectors, not
    reweighted, since the ratio of its training rows is what the callers vary. `ids` of the rows say which `limit` of
    them are trained on where there are more."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    keys = [int(stable_hash(row)[:15], 16) for row in ids] if len(ids) > limit else range(len(X))
    order = np.array(keys, dtype=np.int64)

    def fit_predict(train: np.ndarray, labels: np.ndarray, predict: np.ndarray) -> np.ndarray:
        result = np.zeros((len(predict), classes))
        if ids and len(train) > limit:
            kept = np.sort(np.argsort(order[train], kind="stable")[:limit])
            train, labels = train[kept], labels[kept]
        given = labels.astype(int)
        if len(set(given.tolist())) == 1:
            result[:, given[0]] = 1.0
            return result
        vectors = X[train]
        scale = StandardScaler().fit(vectors)
        model = LogisticRegression(C=0.03, max_iter=1000).fit(scale.transform(vectors), given)
        for first in range(0, len(predict), PART):
            told = model.predict_proba(scale.transform(X[predict[first : first + PART]]))
            result[first : first + PART, model.classes_] = told
        return result

    return fit_predict


def as_samples(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Rows reduced to the given columns."""
    return [{name: row[name] for name in names} for row in rows]


def set_label(work: Work, row: dict[str, Any], severity: str, origin: str) -> None:
    """Give a row another severity, and categories that fit it: none for the mildest, else its own or its leaf's."""
    policy = work.policy
    row["severity"], row["origin"] = severity, origin
    if severity == policy.mildest:
        row["categories"] = []
    elif not row["categories"] and row["leaf"]:
        category = policy.leaf(row["leaf"]).category
        sides = next(c.sides for c in policy.categories if c.id == category)
        row["categories"] = [category] if row["side"] in sides else []
