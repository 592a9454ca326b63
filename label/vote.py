"""Votes into one label with a calibrated confidence, fitted on a small gold set (METHOD.md §2).

Fitting compares the combiners of `combiners.py` by repeated cross-validation in which no group (a prompt,
its twin, its translations) is on both sides, on the F1 of the violating class. The rule: of those whose F1 lies within
one standard error of the highest (of the paired gap, bootstrapped over groups), the one whose calibrated held-out
confidences have the lowest Brier score, since F1 does not see how sure a label is; equal ones go to the earlier in the
order majority, weighted, dawid_skene, stacked (weaker regularisation last). Its calibration and abstain band come from
the same held-out confidences. Without gold there is the majority, flagged as uncalibrated, and nothing is known about
its quality. A label says first whether a row violates and then how badly (`combiners.decide`). Categories and
refusal: most frequent answer, ties broken by the voters' calibrated weight.
"""

from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label import combiners
from label.calibration import (
    Calibration,
    abstain_threshold,
    calibration_error,
    choose_calibration,
    reliability,
)
from label.combiners import CombinerModel, Floats, Ints, Majority, decide, share_of
from label.compare import difference
from label.folds import Fold, group_folds
from synth.errors import BadInput

Fit = Callable[[Floats, Ints], CombinerModel]
_STRENGTHS = (0.03, 0.3, 3.0)


@dataclass(frozen=True)
class Ballots:
    """What the voters said. NaN rows are abstentions.

    severity [n, V, S] distributions; category [n, V, C] probability per category, and refusal [n, V],
    where asked.
    """

    voters: tuple[str, ...]
    severities: tuple[str, ...]
    severity: Floats
    category: Floats | None = None
    refusal: Floats | None = None

    def __post_init__(self) -> None:
        expected = (len(self.voters), len(self.severities))
        if self.severity.ndim != 3 or self.severity.shape[1:] != expected:
            raise BadInput(f"ballots: severity has shape {self.severity.shape}, expected (rows, {expected})")

    def take(self, rows: NDArray[Any]) -> "Ballots":
        """The ballots of some rows (indices or mask)."""
        category = None if self.category is None else self.category[rows]
        refusal = None if self.refusal is None else self.refusal[rows]
        return Ballots(self.voters, self.severities, self.severity[rows], category, refusal)

    def without(self, voter: int) -> "Ballots":
        """The ballots with one voter left out."""
        keep = [at for at in range(len(self.voters)) if at != voter]
        category = None if self.category is None else self.category[:, keep]
        refusal = None if self.refusal is None else self.refusal[:, keep]
        names = tuple(self.voters[at] for at in keep)
        return Ballots(names, self.severities, self.severity[:, keep], category, refusal)


@dataclass(frozen=True)
class Gold:
    """People's labels of the ballots' rows: ids [n], groups [n], labels [n] (severity index)."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Ints


@dataclass(frozen=True)
class Combiner:
    """A fitted combination. `calibrated` is False without gold: its confidence is then a share of votes."""

    voters: tuple[str, ...]
    severities: tuple[str, ...]
    violating: tuple[bool, ...]
    model: CombinerModel
    voter_weights: tuple[float, ...]
    calibration: Calibration = field(default_factory=Calibration)
    abstain_below: float = 0.0
    calibrated: bool = False
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives an equal combiner back."""
        return {
            "voters": list(self.voters),
            "severities": list(self.severities),
            "violating": list(self.violating),
            "model": combiners.model_to_dict(self.model),
            "voter_weights": list(self.voter_weights),
            "calibration": self.calibration.to_dict(),
            "abstain_below": self.abstain_below,
            "calibrated": self.calibrated,
            "report": self.report,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Combiner":
        return cls(
            voters=tuple(fields["voters"]),
            severities=tuple(fields["severities"]),
            violating=tuple(fields["violating"]),
            model=combiners.model_from_dict(fields["model"]),
            voter_weights=tuple(fields["voter_weights"]),
            calibration=Calibration.from_dict(fields["calibration"]),
            abstain_below=fields["abstain_below"],
            calibrated=fields["calibrated"],
            report=fields["report"],
        )


def check_gold(
    ids: Sequence[str],
    groups: Sequence[str],
    labels: Sequence[str],
    severities: Sequence[str],
    violating: Sequence[bool],
    pool_groups: Sequence[str] = (),
    source: str = "gold",
) -> Gold:
    """Gold in index form. BadInput for unknown labels, one class, or groups that are also in the pool."""
    known = {name: at for at, name in enumerate(severities)}
    for row, (row_id, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in known:
            raise BadInput(f"{source}: row {row + 1} ({row_id}), severity: unknown label '{label}'")
    indices = np.array([known[label] for label in labels], dtype=np.int64)
    if len({bool(violating[at]) for at in indices}) < 2:
        raise BadInput(f"{source}: {len(ids)} rows of one class; violating and other rows are both needed")
    refuse_leaked(ids, groups, set(pool_groups), source)
    return Gold(tuple(ids), tuple(groups), indices)


def refuse_leaked(ids: Sequence[str], keys: Sequence[Hashable], pool: Set[Any], source: str = "gold") -> None:
    """BadInput that names the gold rows whose key (a group, a text) is also in the pool that is trained on."""
    leaked = [row_id for row_id, key in zip(ids, keys, strict=True) if key in pool]
    if leaked:
        named = ", ".join(leaked[:5]) + (f" and {len(leaked) - 5} more" if len(leaked) > 5 else "")
        raise BadInput(f"{source}: {len(leaked)} rows are also in the pool that is trained on: {named}")


def candidates() -> dict[str, Fit]:
    """The combiners compared, simplest first."""
    fits: dict[str, Fit] = {
        "majority": lambda probs, labels: Majority(),
        "weighted": combiners.fit_weighted,
        "dawid_skene": combiners.fit_dawid_skene,
    }
    for strength in _STRENGTHS:
        fits[f"stacked C={strength}"] = _stacked(strength)
    return fits


def _stacked(strength: float) -> Fit:
    return lambda probs, labels: combiners.fit_stacked(probs, labels, strength)


def held_out(fit: Fit, probs: Floats, labels: Ints, folds: Sequence[Fold]) -> Floats:
    """[n, S] posteriors of each row by a model that saw none of its group."""
    posterior = np.full((len(labels), probs.shape[2]), 1.0 / probs.shape[2])
    for train, test in folds:
        posterior[test] = fit(probs[train], labels[train]).posterior(probs[test])
    return posterior


def violating_f1(labels: Ints, predicted: Ints, violating: NDArray[np.bool_]) -> float:
    """F1 of the violating class, 0 where undefined."""
    from sklearn.metrics import f1_score

    return float(f1_score(violating[labels], violating[predicted], zero_division=0.0))


def as_good(
    said: dict[str, Ints], means: dict[str, float], gold: Gold, violating: NDArray[np.bool_]
) -> list[str]:
    """The combiners that are not behind the one of the highest F1 by more than one standard error of the gap."""
    truth, best = violating[gold.labels], max(means, key=lambda name: means[name])
    flagged = {name: violating[labels] for name, labels in said.items()}
    gaps = {name: difference(truth, flagged[best], flagged[name], gold.groups, 200) for name in flagged}
    return [name for name, gap in gaps.items() if means[best] - means[name] <= gap.standard_error]


def fit_combiner(
    ballots: Ballots,
    gold: Gold | None,
    violating: Sequence[bool],
    target_precision: float = 0.9,
    repeats: int = 3,
    seed: int = 0,
) -> Combiner:
    """Choose, calibrate and set the abstain band on gold ballots; without gold the uncalibrated majority.

    violating: per severity, whether it counts as violating (the strict reading by convention).
    target_precision: share of right labels among those not abstained.
    """
    flags = np.asarray(violating, dtype=bool)
    names = (ballots.voters, ballots.severities, tuple(flags.tolist()))
    if gold is None:
        even = tuple(1.0 for _ in ballots.voters)
        return Combiner(*names, Majority(), even, report={"gold_rows": 0})
    probs, fits = ballots.severity, candidates()
    folds = group_folds(gold, flags, repeats, seed)
    posteriors = {
        name: [held_out(fit, probs, gold.labels, fold) for fold in folds] for name, fit in fits.items()
    }
    decided = {name: [decide(one, flags) for one in repeated] for name, repeated in posteriors.items()}
    means = {
        name: round(float(np.mean([violating_f1(gold.labels, labels, flags) for labels in repeated])), 3)
        for name, repeated in decided.items()
    }
    said = {name: repeated[0] for name, repeated in decided.items()}
    calibrated = {
        name: choose_calibration(
            share_of(posteriors[name][0], said[name]), said[name] == gold.labels, folds[0]
        )
        for name in as_good(said, means, gold, flags)
    }
    brier = {name: round(min(one.brier.values()), 4) for name, one in calibrated.items()}
    chosen = min(brier, key=lambda name: brier[name])
    crossed, correct = calibrated[chosen], said[chosen] == gold.labels
    threshold, reached = abstain_threshold(crossed.confidence, correct, target_precision)
    report = {
        "gold_rows": len(gold.ids),
        "chosen": chosen,
        "cv_f1": means,
        "cv_brier": brier,
        "calibration": {"brier": crossed.brier, **calibration_error(crossed.confidence, correct)},
        "reliability": reliability(crossed.confidence, correct),
        "target_precision": target_precision,
        "target_reached": reached,
        "gold_kept": float((crossed.confidence >= threshold).mean()),
    }
    model, weighted = fits[chosen](probs, gold.labels), combiners.fit_weighted(probs, gold.labels)
    return Combiner(*names, model, weighted.weights, crossed.calibration, threshold, True, report)


def combine(combiner: Combiner, ballots: Ballots) -> tuple[Ints, Floats, NDArray[np.bool_]]:
    """(labels [n] severity index, confidence [n], abstain [n]). Rows without votes abstain."""
    if (ballots.voters, ballots.severities) != (combiner.voters, combiner.severities):
        raise BadInput(f"ballots of voters {ballots.voters} given to a combiner of {combiner.voters}")
    posterior = combiner.model.posterior(ballots.severity)
    silent = (combiners.votes_of(ballots.severity) < 0).all(axis=1)
    labels = decide(posterior, np.asarray(combiner.violating))
    confidence = np.where(silent, 0.0, combiner.calibration.apply(share_of(posterior, labels)))
    return labels, confidence, silent | (confidence < combiner.abstain_below)


def combine_categories(
    combiner: Combiner, ballots: Ballots, labels: Ints, threshold: float = 0.5
) -> NDArray[np.bool_]:
    """[n, C]: the category most voters named, and any other that at least half of the naming voters named.

    Ties go to the larger summed voter weight times probability. Rows of severity 0 (the mildest) get none.
    """
    if ballots.category is None:
        raise BadInput("ballots: no category votes")
    probs = np.nan_to_num(ballots.category)
    named = probs >= threshold
    counts = named.sum(axis=1)
    naming = named.any(axis=2).sum(axis=1)
    weight = np.asarray(combiner.voter_weights)[None, :, None] + 1e-3
    strength = (weight * probs).sum(axis=1)
    score = counts + strength / (strength.max(axis=1, keepdims=True) + 1.0)
    top = np.zeros_like(counts, dtype=bool)
    top[np.arange(len(score)), score.argmax(axis=1)] = True
    chosen = top | ((2 * counts >= naming[:, None]) & (counts > 0))
    return chosen & (labels > 0)[:, None] & (probs.max(axis=(1, 2)) > 0)[:, None]


def combine_refusal(combiner: Combiner, ballots: Ballots) -> Ints:
    """[n]: 1 refusal, 0 none, -1 where no voter answered. Ties by voter weight, then by mean probability."""
    if ballots.refusal is None:
        raise BadInput("ballots: no refusal votes")
    answered = ~np.isnan(ballots.refusal)
    probs = np.where(answered, ballots.refusal, 0.5)
    sign = np.where(answered, np.where(probs >= 0.5, 1.0, -1.0), 0.0)
    weights = np.asarray(combiner.voter_weights)
    votes, weighted, mean = sign.sum(axis=1), sign @ weights, (probs - 0.5).sum(axis=1)
    decided = np.where(votes != 0, votes, np.where(np.abs(weighted) > 1e-12, weighted, mean))
    return np.where(answered.any(axis=1), (decided >= 0).astype(np.int64), -1)
