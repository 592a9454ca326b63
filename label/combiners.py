"""Four ways to turn several severity distributions into one: majority, weighted, Dawid-Skene, stacked.

* majority: one vote per voter that answers (its most probable severity); ties go to the higher mean
  probability.
* weighted: the same votes, weighted by the log-odds of the voter's smoothed accuracy on the gold set,
  never below 0.
* dawid_skene: Dawid & Skene 1979 through crowd-kit, the gold labels fixed in every E-step, so that each
  voter's confusion matrix is estimated on gold; then smoothed by one pseudo-row, and applied as naive Bayes.
* stacked: multinomial logistic regression, L2-regularised, on the voters' centred log-probabilities
  (Wolpert 1992); an abstention contributes zeros and sets an indicator. Perfectly correlated voters share
  one weight there, while they count double everywhere else.

Every model is a frozen dataclass of plain tuples: it goes to JSON and back without pickle.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FLOOR = 1e-4


def who_answered(probs: Floats) -> NDArray[np.bool_]:
    """[n, V, S] -> [n, V], False where a voter abstained."""
    return np.asarray(~np.isnan(probs).any(axis=2))


def votes_of(probs: Floats) -> Ints:
    """[n, V, S] probabilities -> [n, V] index of the most probable severity, -1 where the voter abstained."""
    answered = who_answered(probs)
    return np.where(answered, np.argmax(np.where(answered[:, :, None], probs, 0.0), axis=2), -1)


def mean_probability(probs: Floats) -> Floats:
    """[n, V, S] -> [n, S] mean over the voters that answered; uniform where none did."""
    answered = who_answered(probs)
    total = np.where(answered[:, :, None], probs, 0.0).sum(axis=1)
    count = answered.sum(axis=1)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), 1.0 / probs.shape[2])


def decide(posterior: Floats, violating: NDArray[np.bool_]) -> Ints:
    """[n, S] -> [n]: whether a row violates goes before how badly.

    Where the violating severities together have more than half, the likeliest of them, else the likeliest of the rest:
    a row that is surely Controversial or Unsafe is not Safe because neither of the two has as much as Safe.
    """
    flagged = posterior[:, violating].sum(axis=1) > 0.5
    return np.where(flagged[:, None] == violating, posterior, -1.0).argmax(axis=1)


def share_of(posterior: Floats, labels: Ints) -> Floats:
    """[n] what each row's label has of its posterior [n, S]."""
    return np.take_along_axis(posterior, labels[:, None], axis=1)[:, 0]


def _one_hot(votes: Ints, severities: int) -> Floats:
    return (votes[:, :, None] == np.arange(severities)).astype(np.float64)


def _normalise(log_posterior: Floats) -> Floats:
    shifted = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Majority:
    """Needs no gold."""

    kind: str = "majority"

    def posterior(self, probs: Floats) -> Floats:
        """[n, V, S] -> [n, S], rows sum to 1: the share of votes, a hundredth of it the mean probability."""
        counts = _one_hot(votes_of(probs), probs.shape[2]).sum(axis=1)
        voters = counts.sum(axis=1, keepdims=True)
        share = np.where(voters > 0, counts / np.maximum(voters, 1), 1.0 / probs.shape[2])
        return 0.99 * share + 0.01 * mean_probability(probs)


@dataclass(frozen=True)
class Weighted:
    """weights: one per voter, log-odds of its accuracy against guessing."""

    weights: tuple[float, ...]
    kind: str = "weighted"

    def posterior(self, probs: Floats) -> Floats:
        """[n, V, S] -> [n, S], rows sum to 1."""
        scores = np.einsum("nvs,v->ns", _one_hot(votes_of(probs), probs.shape[2]), np.asarray(self.weights))
        return _normalise(scores + 0.01 * mean_probability(probs))


@dataclass(frozen=True)
class DawidSkene:
    """log_prior [S] and log_confusion [V][true severity][voted severity]."""

    log_prior: tuple[float, ...]
    log_confusion: tuple[tuple[tuple[float, ...], ...], ...]
    kind: str = "dawid_skene"

    def posterior(self, probs: Floats) -> Floats:
        """[n, V, S] -> [n, S], rows sum to 1."""
        seen = np.einsum(
            "nvs,vts->nt", _one_hot(votes_of(probs), probs.shape[2]), np.asarray(self.log_confusion)
        )
        return _normalise(seen + np.asarray(self.log_prior))


@dataclass(frozen=True)
class Stacked:
    """coefficients [S][V * (S + 1)] on `stack_features`, and intercepts [S]."""

    coefficients: tuple[tuple[float, ...], ...]
    intercepts: tuple[float, ...]
    strength: float
    kind: str = "stacked"

    def posterior(self, probs: Floats) -> Floats:
        """[n, V, S] -> [n, S], rows sum to 1."""
        return _normalise(
            stack_features(probs) @ np.asarray(self.coefficients).T + np.asarray(self.intercepts)
        )


CombinerModel = Majority | Weighted | DawidSkene | Stacked


def stack_features(probs: Floats) -> Floats:
    """[n, V, S] -> [n, V * (S + 1)]: per voter the centred log-probabilities, then whether it abstained."""
    rows, voters, severities = probs.shape
    logs = np.log(np.clip(probs, _FLOOR, 1.0))
    logs -= logs.mean(axis=2, keepdims=True)
    abstained = ~who_answered(probs)
    logs[abstained] = 0.0
    return np.concatenate([logs, abstained[:, :, None]], axis=2).reshape(rows, voters * (severities + 1))


def fit_weighted(probs: Floats, labels: Ints) -> Weighted:
    """Weights from accuracy on answered rows, smoothed by one right and S - 1 wrong pseudo-rows."""
    votes, severities = votes_of(probs), probs.shape[2]
    answered = (votes >= 0).sum(axis=0)
    accuracy = ((votes == labels[:, None]).sum(axis=0) + 1.0) / (answered + severities)
    weights = np.log(accuracy * (severities - 1)) - np.log1p(-accuracy)
    return Weighted(tuple(float(weight) for weight in np.maximum(weights, 0.0)))


def fit_dawid_skene(probs: Floats, labels: Ints) -> DawidSkene:
    """Confusion matrices by crowd-kit with the gold labels given; a voter that never answers says nothing."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene as CrowdKitDawidSkene

    votes, (_, voters, severities) = votes_of(probs), probs.shape
    row, voter = np.nonzero(votes >= 0)
    seen, errors = np.zeros((voters, severities)), np.zeros((voters, severities, severities))
    np.add.at(seen, (voter, labels[row]), 1.0)
    if len(row):
        ballots = pd.DataFrame({"task": row, "worker": voter, "label": votes[row, voter]})
        truth = pd.Series(labels[np.unique(row)], index=np.unique(row))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            table = pd.DataFrame(CrowdKitDawidSkene(n_iter=1).fit(ballots, true_labels=truth).errors_)
        every = pd.MultiIndex.from_product([range(voters), range(severities)])
        table = table.reindex(every).reindex(columns=range(severities)).fillna(0.0)
        errors = table.to_numpy().reshape(voters, severities, severities).transpose(0, 2, 1)
    prior = np.bincount(labels, minlength=severities) + 1.0
    confusion = (errors * seen[:, :, None] + 1.0 / severities) / (seen[:, :, None] + 1.0)
    logs = np.log(confusion)
    return DawidSkene(
        tuple(float(value) for value in np.log(prior / prior.sum())),
        tuple(tuple(tuple(float(value) for value in line) for line in matrix) for matrix in logs),
    )


def fit_stacked(probs: Floats, labels: Ints, strength: float = 1.0) -> Stacked:
    """strength: scikit-learn's C. Severities that the labels lack get an intercept that rules them out."""
    from sklearn.linear_model import LogisticRegression

    severities = probs.shape[2]
    features = stack_features(probs)
    present = np.unique(labels)
    coefficients, intercepts = np.zeros((severities, features.shape[1])), np.full(severities, -20.0)
    if len(present) == 1:
        intercepts[present] = 0.0
    else:
        model = LogisticRegression(C=strength, max_iter=500).fit(features, labels)
        if len(present) == 2:
            coefficients[present], intercepts[present] = (
                [[0.0], [1.0]] * model.coef_,
                [0.0, model.intercept_[0]],
            )
        else:
            coefficients[present], intercepts[present] = model.coef_, model.intercept_
    return Stacked(
        tuple(tuple(float(value) for value in line) for line in coefficients),
        tuple(float(value) for value in intercepts),
        strength,
    )


def model_to_dict(model: CombinerModel) -> dict[str, Any]:
    """JSON-able fields, `kind` among them."""
    return asdict(model)


def model_from_dict(fields: dict[str, Any]) -> CombinerModel:
    """The inverse of `model_to_dict`."""
    classes = {cls.kind: cls for cls in (Majority, Weighted, DawidSkene, Stacked)}
    return classes[fields["kind"]](**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
