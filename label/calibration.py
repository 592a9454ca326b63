"""Calibration of a label's confidence: temperature, Platt scaling or isotonic, chosen by cross-validation, and how
far off it is.

A confidence is the probability that the chosen label is right, so calibrating is a binary problem ("top-label
calibration", Gupta & Ramdas 2022): isotonic regression of correctness on the raw confidence, or scaling of its
log-odds, with a slope alone (a temperature) or with an intercept too (Platt 1999): voters that err together make a
combination too sure at every level, which no slope through zero mends. None changes which label is chosen. Measured
by the expected calibration error over bins of equal mass (plug-in, biased upwards on few rows) and by the debiased
squared error of Kumar, Liang & Ma 2019: per bin, (confidence - accuracy)^2 less the variance of the accuracy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_EDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """Raw confidences to calibrated ones. kind: identity, temperature, platt (with a shift), isotonic (knots)."""

    kind: str = "identity"
    temperature: float = 1.0
    shift: float = 0.0
    knots_x: tuple[float, ...] = ()
    knots_y: tuple[float, ...] = ()

    def apply(self, confidence: Floats) -> Floats:
        """Calibrated confidences, same shape, NaN kept."""
        if self.kind in ("temperature", "platt"):
            return _sigmoid(_logit(confidence) / self.temperature + self.shift)
        if self.kind == "isotonic":
            return np.interp(confidence, self.knots_x, self.knots_y)
        return confidence

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "temperature": self.temperature,
            "shift": self.shift,
            "knots_x": list(self.knots_x),
            "knots_y": list(self.knots_y),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Calibration":
        knots_x, knots_y = tuple(fields["knots_x"]), tuple(fields["knots_y"])
        return cls(fields["kind"], fields["temperature"], fields["shift"], knots_x, knots_y)


def _logit(probability: Floats) -> Floats:
    clipped = np.clip(probability, _EDGE, 1 - _EDGE)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def fit_temperature(confidence: Floats, correct: NDArray[np.bool_]) -> Calibration:
    """One slope on the log-odds, by maximum likelihood over temperatures 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    logits = _logit(confidence)

    def negative_log_likelihood(log_temperature: float) -> float:
        signed = np.where(correct, 1.0, -1.0) * logits / np.exp(log_temperature)
        return float(np.logaddexp(0.0, -signed).mean())

    best = minimize_scalar(negative_log_likelihood, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return Calibration("temperature", float(np.exp(best.x)))


def fit_platt(confidence: Floats, correct: NDArray[np.bool_]) -> Calibration:
    """Slope and intercept on the log-odds, by maximum a posteriori: standard normal priors on the intercept and the log
    of the temperature, since rows of one outcome alone would drive both to infinity."""
    from scipy.optimize import minimize

    logits, signs = _logit(confidence), np.where(correct, 1.0, -1.0)

    def negative_log_posterior(parameters: Floats) -> float:
        log_temperature, shift = parameters
        fit = np.logaddexp(0.0, -signs * (logits / np.exp(log_temperature) + shift)).sum()
        return float(fit + (log_temperature**2 + shift**2) / 2) / max(len(logits), 1)

    bounds = [(np.log(0.05), np.log(20.0)), (-10.0, 10.0)]
    best = minimize(negative_log_posterior, np.zeros(2), bounds=bounds)
    return Calibration("platt", float(np.exp(best.x[0])), float(best.x[1]))


def fit_isotonic(confidence: Floats, correct: NDArray[np.bool_]) -> Calibration:
    """A monotone fit; its levels are kept inside (0, 1) by what one pseudo-row would weigh."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
        confidence, correct.astype(float)
    )
    edge = 1.0 / (len(confidence) + 2.0)
    levels = np.clip(model.y_thresholds_, edge, 1 - edge)
    return Calibration(
        "isotonic", 1.0, 0.0, tuple(map(float, model.X_thresholds_)), tuple(map(float, levels))
    )


@dataclass(frozen=True)
class Calibrated:
    """The chosen calibration, cross-fitted confidences of the rows it was fitted on, Brier by kind."""

    calibration: Calibration
    confidence: Floats
    brier: dict[str, float] = field(default_factory=dict)


def choose_calibration(
    confidence: Floats, correct: NDArray[np.bool_], folds: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> Calibrated:
    """Identity, temperature, Platt or isotonic: lowest Brier over (train, test) folds, ties to the simpler."""
    fits: dict[str, Callable[[Floats, NDArray[np.bool_]], Calibration]] = {
        "identity": lambda *_: Calibration(),
        "temperature": fit_temperature,
        "platt": fit_platt,
        "isotonic": fit_isotonic,
    }
    crossed: dict[str, Floats] = {}
    for kind, fit in fits.items():
        crossed[kind] = np.empty_like(confidence)
        for train, test in folds:
            crossed[kind][test] = fit(confidence[train], correct[train]).apply(confidence[test])
    brier = {kind: float(np.mean((values - correct) ** 2)) for kind, values in crossed.items()}
    best = min(brier, key=lambda kind: round(brier[kind], 6))
    return Calibrated(fits[best](confidence, correct), crossed[best], brier)


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> list[dict[str, float]]:
    """Bins of equal mass, each {confidence, accuracy, rows}: the points of a reliability plot."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, max(1, len(order) // 5))) if len(part)]
    return [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(correct[part].mean()),
            "rows": len(part),
        }
        for part in parts
    ]


def calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> dict[str, float]:
    """{"ece": plug-in expected calibration error, "debiased": root of the debiased squared error}."""
    points = reliability(confidence, correct, bins)
    rows = sum(point["rows"] for point in points)
    if not rows:
        return {"ece": float("nan"), "debiased": float("nan")}
    ece = squared = 0.0
    for point in points:
        gap, share = point["confidence"] - point["accuracy"], point["rows"] / rows
        variance = point["accuracy"] * (1 - point["accuracy"]) / max(point["rows"] - 1, 1)
        ece += share * abs(gap)
        squared += share * (gap * gap - variance)
    return {"ece": ece, "debiased": float(np.sqrt(max(squared, 0.0)))}


def abstain_threshold(
    confidence: Floats, correct: NDArray[np.bool_], target: float, least_rows: int = 20
) -> tuple[float, bool]:
    """(threshold, reached): keep rows at or above the lowest confidence whose kept rows are `target` right.

    Where no threshold that keeps `least_rows` rows reaches the target, the one with the highest precision,
    and reached is False. A target of 0 keeps everything.
    """
    if target <= 0 or not len(confidence):
        return 0.0, target <= 0
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    precision = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    last_of_tie = np.append(ranked[:-1] > ranked[1:], True)
    allowed = last_of_tie & (np.arange(1, len(order) + 1) >= min(least_rows, len(order)))
    good = np.flatnonzero(allowed & (precision >= target))
    if len(good):
        return float(ranked[good[-1]]), True
    return float(ranked[max(np.flatnonzero(allowed), key=lambda at: precision[at])]), False
