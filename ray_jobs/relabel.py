"""What the two relabelling steps share: samples of one side as arrays, and a linear classifier on vectors as the
trainer behind label.controversial and label.distill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ray_jobs.step import Work
from ray_jobs.voters import embedded, item_text


def vectors(work: Work, role: str, rows: list[dict[str, Any]]) -> np.ndarray:
    """[n, D] vectors of samples or gold rows, from the model bound to `role`."""
    texts = [item_text(row["side"], row["prompt"], row["history"], row["response"]) for row in rows]
    return embedded(work, role, texts)


def linear_probabilities(X: np.ndarray, classes: int) -> Callable[..., np.ndarray]:
    """`fit_predict(train, labels, predict)` -> [m, classes]: logistic regression on standardised vectors, not
    reweighted, since the ratio of its training rows is what the callers vary."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def fit_predict(train: np.ndarray, labels: np.ndarray, predict: np.ndarray) -> np.ndarray:
        result = np.zeros((len(predict), classes))
        given = labels.astype(int)
        if len(set(given.tolist())) == 1:
            result[:, given[0]] = 1.0
            return result
        scale = StandardScaler().fit(X[train])
        model = LogisticRegression(C=0.03, max_iter=1000).fit(scale.transform(X[train]), given)
        result[:, model.classes_] = model.predict_proba(scale.transform(X[predict]))
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
