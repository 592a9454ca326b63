"""What the votes are worth: the audit of a combination on the gold set.

Everything about the combination is held out twice: in every outer fold the whole fit (choice of the combiner,
calibration, band) is done anew on the other folds, so that choosing costs nothing of the honesty. Single
voters need no fitting, and the best of them is picked on all gold rows, which favours it. Intervals are
percentile bootstraps over groups, the same resamples for everything compared, so that the differences have
intervals too. Agreement is Krippendorff's alpha for nominal data with missing votes (Krippendorff 2011).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label.calibration import calibration_error, reliability
from label.combiners import Floats, Ints, Majority, decide, votes_of, who_answered
from label.folds import group_folds
from label.vote import (
    Ballots,
    Combiner,
    Gold,
    candidates,
    combine,
    fit_combiner,
    held_out,
    violating_f1,
)

_RESAMPLES = 1000


def krippendorff_alpha(votes: Ints, values: int) -> float:
    """Nominal alpha of [n, V] votes (-1 missing), 1 for perfect agreement, NaN when no row has two votes."""
    counts = (votes[:, :, None] == np.arange(values)).sum(axis=1).astype(np.float64)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return float("nan")
    per_row = counts.sum(axis=1, keepdims=True)
    agreeing = (counts * (counts - 1) / (per_row - 1)).sum()
    totals = counts.sum(axis=0)
    total = totals.sum()
    observed = 1 - agreeing / total
    expected = 1 - (totals * (totals - 1)).sum() / (total * (total - 1))
    return 1.0 if expected == 0 else float(1 - observed / expected)


def confusion(labels: Ints, votes: Ints, values: int) -> list[list[int]]:
    """[true][voted] counts; the last column counts abstentions."""
    table = np.zeros((values, values + 1), dtype=np.int64)
    np.add.at(table, (labels, np.where(votes < 0, values, votes)), 1)
    return table.tolist()


def _resamples(groups: Sequence[str], seed: int) -> NDArray[np.float64]:
    """[R, n] row weights of bootstrap resamples that draw whole groups."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), _RESAMPLES
    )
    return draws[:, index].astype(np.float64)


def _f1_samples(truth: NDArray[np.bool_], flagged: NDArray[np.bool_], weights: Floats) -> Floats:
    """[R] F1 of the violating class on each resample."""
    both, either = weights @ (truth & flagged), weights @ truth + weights @ flagged
    return 2 * both / np.maximum(either, 1e-12)


def _interval(samples: Floats) -> list[float]:
    return [float(value) for value in np.percentile(samples, [2.5, 97.5])]


def audit(
    ballots: Ballots,
    gold: Gold,
    violating: Sequence[bool],
    slices: Mapping[str, Sequence[str]] | None = None,
    costs: Mapping[str, float] | None = None,
    target_f1: float = 0.9,
    target_precision: float = 0.9,
    seed: int = 0,
    repeats: int = 2,
) -> dict[str, Any]:
    """A JSON-able report on voters and combination.

    slices: attribute name -> its value per gold row (language, category, …), for confusions by slice.
    costs: voter -> cost per row in any unit, repeated beside what the voter adds.
    repeats: cross-validations by which every outer fold chooses its combiner.
    """
    flags = np.asarray(violating, dtype=bool)
    votes, truth = votes_of(ballots.severity), flags[gold.labels]
    weights = _resamples(gold.groups, seed)
    labels, confidence, abstain, mass = _held_out_combination(
        ballots, gold, flags, target_precision, seed, repeats
    )
    combined = _f1_samples(truth, flags[labels], weights)
    majority = flags[decide(Majority().posterior(ballots.severity), flags)]
    single = {name: _flagged(ballots.severity[:, at], flags) for at, name in enumerate(ballots.voters)}
    f1 = {name: _f1_of(truth, flagged) for name, flagged in single.items()}
    best = max(f1, key=lambda name: f1[name])
    compared = {"best_voter": single[best], "majority": majority}
    overall = violating_f1(gold.labels, labels, flags)
    return {
        "rows": len(gold.labels),
        "alpha": krippendorff_alpha(votes, len(ballots.severities)),
        "combination": {"f1": overall, "interval": _interval(combined)},
        "best_voter_name": best,
        **{
            name: {
                "f1": _f1_of(truth, flagged),
                "interval": _interval(_f1_samples(truth, flagged, weights)),
                "combination_minus_this": _interval(combined - _f1_samples(truth, flagged, weights)),
            }
            for name, flagged in compared.items()
        },
        "surest": {
            str(share): _surest_f1(gold.labels, labels, confidence, flags, share) for share in (0.8, 0.9, 1.0)
        },
        "surest_violating": {
            "0.8": _surest_f1(gold.labels, labels, np.abs(mass - 0.5), flags, 0.8),
        },
        "abstained": float(abstain.mean()),
        "precision_kept": float((labels == gold.labels)[~abstain].mean()) if (~abstain).any() else None,
        "calibration": calibration_error(confidence, labels == gold.labels),
        "calibration_interval": _calibration_interval(confidence, labels == gold.labels, gold.groups, seed),
        "reliability": reliability(confidence, labels == gold.labels),
        "voters": _voter_reports(ballots, gold, flags, slices or {}, costs or {}, seed),
        "warnings": _warnings(ballots, votes, overall, target_f1),
    }


def _flagged(probs: Floats, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n] whether one voter, [n, S], says that a row violates; not where it abstained."""
    answered = who_answered(probs[:, None])[:, 0]
    return answered & flags[decide(np.nan_to_num(probs), flags)]


def _f1_of(truth: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> float:
    return float(_f1_samples(truth, flagged, np.ones((1, len(truth))))[0])


def _held_out_combination(
    ballots: Ballots, gold: Gold, flags: NDArray[np.bool_], target_precision: float, seed: int, repeats: int
) -> tuple[Ints, Floats, NDArray[np.bool_], Floats]:
    """(labels, confidence, abstain, probability of violating) of every gold row by a combiner of other groups."""
    labels, confidence = np.zeros(len(gold.labels), dtype=np.int64), np.zeros(len(gold.labels))
    abstain, mass = np.zeros(len(gold.labels), dtype=bool), np.zeros(len(gold.labels))
    for train, test in group_folds(gold, flags, 1, seed)[0]:
        inner = Gold(
            tuple(gold.ids[at] for at in train), tuple(gold.groups[at] for at in train), gold.labels[train]
        )
        one_group = len(set(inner.groups)) < 2
        fitted = fit_combiner(
            ballots.take(train), None if one_group else inner, flags.tolist(), target_precision, repeats, seed
        )
        labels[test], confidence[test], abstain[test] = combine(fitted, ballots.take(test))
        mass[test] = fitted.model.posterior(ballots.severity[test])[:, flags].sum(axis=1)
    return labels, confidence, abstain, mass


def _surest_f1(
    labels: Ints, predicted: Ints, confidence: Floats, flags: NDArray[np.bool_], share: float
) -> float:
    """F1 on the share of rows with the highest confidence."""
    kept = np.argsort(-confidence, kind="stable")[: max(1, round(share * len(labels)))]
    return violating_f1(labels[kept], predicted[kept], flags)


def _calibration_interval(
    confidence: Floats, correct: NDArray[np.bool_], groups: Sequence[str], seed: int
) -> list[float]:
    """Percentile interval of the debiased calibration error over 200 resamples of groups."""
    draws = _resamples(groups, seed)[:200].astype(np.int64)
    rows = (np.repeat(np.arange(len(correct)), draw) for draw in draws)
    return _interval(np.array([calibration_error(confidence[at], correct[at])["debiased"] for at in rows]))


def _voter_reports(
    ballots: Ballots,
    gold: Gold,
    flags: NDArray[np.bool_],
    slices: Mapping[str, Sequence[str]],
    costs: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """Per voter: abstentions, F1, confusion overall and by slice, and what it adds to the combination."""
    votes, values, truth = votes_of(ballots.severity), len(ballots.severities), flags[gold.labels]
    folds = group_folds(gold, flags, 1, seed)[0]
    fit = candidates()[fit_combiner(ballots, gold, flags.tolist(), seed=seed).report["chosen"]]
    full = violating_f1(
        gold.labels, decide(held_out(fit, ballots.severity, gold.labels, folds), flags), flags
    )
    result: dict[str, Any] = {}
    for at, name in enumerate(ballots.voters):
        mine = votes[:, at]
        result[name] = {
            "abstained": float((mine < 0).mean()),
            "f1": _f1_of(truth, _flagged(ballots.severity[:, at], flags)),
            "cost": costs.get(name),
            "confusion": confusion(gold.labels, mine, values),
            "by": {
                attribute: {
                    value: confusion(gold.labels[rows], mine[rows], values)
                    for value in sorted(set(of_row))
                    for rows in [np.asarray([other == value for other in of_row])]
                }
                for attribute, of_row in slices.items()
            },
        }
        if len(ballots.voters) > 1:
            rest = decide(held_out(fit, ballots.without(at).severity, gold.labels, folds), flags)
            result[name]["adds_f1"] = full - violating_f1(gold.labels, rest, flags)
    return result


def _warnings(ballots: Ballots, votes: Ints, f1: float, target_f1: float) -> list[str]:
    """Sentences for people: a target missed, voters that are silent, constant or copies of another."""
    found = []
    if f1 < target_f1:
        found.append(f"F1 on gold is {f1:.3f}, under the target of {target_f1}.")
    for at, name in enumerate(ballots.voters):
        answers = votes[votes[:, at] >= 0, at]
        if not len(answers):
            found.append(f"Voter {name} never answers.")
        elif len(np.unique(answers)) == 1:
            found.append(f"Voter {name} always says {ballots.severities[answers[0]]}.")
        for other in range(at):
            if len(answers) and np.array_equal(votes[:, at], votes[:, other]):
                found.append(f"Voters {ballots.voters[other]} and {name} always agree.")
    return found


def summary(combiner: Combiner) -> str:
    """One sentence on where the labels come from, to stand wherever they appear."""
    if not combiner.calibrated:
        return "Labels by majority of the voters, uncalibrated: there was no gold set."
    report = combiner.report
    chosen, f1 = report["chosen"], report["cv_f1"][report["chosen"]]
    return (
        f"Labels by {chosen} of {len(combiner.voters)} voters, fitted on {report['gold_rows']} gold rows "
        f"(cross-validated F1 {f1:.3f}), calibrated by {combiner.calibration.kind}."
    )
