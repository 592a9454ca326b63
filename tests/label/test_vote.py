"""Combining votes: what must hold whoever votes."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label.calibration import (
    Calibration,
    abstain_threshold,
    calibration_error,
    choose_calibration,
    fit_platt,
    fit_temperature,
)
from label.combiners import Majority, decide, fit_dawid_skene, fit_weighted, votes_of
from label.folds import group_folds
from label.vote import (
    Ballots,
    Combiner,
    Gold,
    as_good,
    check_gold,
    combine,
    combine_categories,
    combine_refusal,
    fit_combiner,
    violating_f1,
)
from synth.errors import BadInput

SEVERITIES = ("Safe", "Controversial", "Unsafe")
VIOLATING = (False, True, True)


def gold_of(labels, per_group=2):
    rows = range(len(labels))
    return Gold(
        tuple(f"r{at}" for at in rows), tuple(f"g{at // per_group}" for at in rows), np.asarray(labels)
    )


def voter(rng, labels, accuracy, sharpness=4.0):
    """A voter's [n, 3] distributions: right with this probability, blurred."""
    said = np.where(rng.random(len(labels)) < accuracy, labels, rng.integers(0, 3, len(labels)))
    logits = rng.normal(0, 0.6, (len(labels), 3)) + sharpness * np.eye(3)[said]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def panel(rng, labels, accuracies):
    names = tuple(f"v{at}" for at in range(len(accuracies)))
    return Ballots(names, SEVERITIES, np.stack([voter(rng, labels, a) for a in accuracies], axis=1))


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    ballots = panel(rng, labels, (0.85, 0.6, 0.6, 0.3, 0.3))
    return ballots, gold_of(labels), fit_combiner(ballots, gold_of(labels), VIOLATING)


def test_the_chosen_combiner_beats_the_majority_where_voters_differ_in_skill(fitted):
    _, _, combiner = fitted
    scores, brier = combiner.report["cv_f1"], combiner.report["cv_brier"]
    assert scores[combiner.report["chosen"]] > scores["majority"]
    assert brier[combiner.report["chosen"]] == min(brier.values()) and "majority" not in brier
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 2000)
    fresh = panel(rng, labels, (0.85, 0.6, 0.6, 0.3, 0.3))
    predicted, confidence, abstain = combine(combiner, fresh)
    correct = predicted == labels
    assert calibration_error(confidence, correct)["debiased"] < 0.06
    plain = Majority().posterior(fresh.severity).argmax(axis=1)
    assert correct.mean() > max(0.85, (plain == labels).mean() + 0.05)
    assert not abstain.any() or correct[~abstain].mean() > correct.mean()


def test_of_combiners_equal_in_f1_the_one_that_knows_how_sure_it_is_is_chosen():
    rng = np.random.default_rng(5)
    labels, sure = rng.integers(0, 2, 600), rng.choice((0.55, 0.95), 600)
    said = np.where(rng.random(600) < sure, labels, 1 - labels)
    alike = np.zeros((600, 2)) + (1 - sure)[:, None]
    alike[np.arange(600), said] = sure
    ballots = Ballots(("a", "b"), ("Safe", "Unsafe"), np.stack([alike, alike], axis=1))
    combiner = fit_combiner(ballots, gold_of(labels), (False, True))
    scores, brier = combiner.report["cv_f1"], combiner.report["cv_brier"]
    assert scores["dawid_skene"] == pytest.approx(scores[combiner.report["chosen"]], abs=0.02)
    assert combiner.report["chosen"] != "dawid_skene" and brier["dawid_skene"] > min(brier.values()) + 0.02


def test_a_row_that_surely_violates_is_not_safe_because_nobody_knows_how_badly():
    posterior = np.array([[0.45, 0.15, 0.40], [0.45, 0.30, 0.25], [0.55, 0.05, 0.40], [1 / 3, 1 / 3, 1 / 3]])
    assert decide(posterior, np.array(VIOLATING)).tolist() == [2, 1, 0, 1]
    assert decide(posterior, np.array([False, False, True])).tolist() == [0, 0, 0, 0]
    assert decide(posterior, np.array([True, True, True])).tolist() == posterior.argmax(axis=1).tolist()


def test_a_combiner_that_is_behind_by_more_than_chance_is_not_as_good():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 300)
    said = {"best": labels.copy(), "nearly": labels.copy(), "guessing": rng.integers(0, 3, 300)}
    mild = np.flatnonzero(labels == 0)
    said["best"][mild[:20]] = said["nearly"][mild[20:41]] = 2
    flags = np.array(VIOLATING)
    means = {name: violating_f1(labels, one, flags) for name, one in said.items()}
    assert means["best"] > means["nearly"] > means["guessing"]
    assert as_good(said, means, gold_of(labels), flags) == ["best", "nearly"]


def test_a_higher_target_precision_abstains_more_and_errs_less(fitted):
    ballots, gold, _ = fitted
    combiner = fit_combiner(ballots, gold, VIOLATING, target_precision=0.98)
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 2000)
    predicted, _, abstain = combine(combiner, panel(rng, labels, (0.85, 0.6, 0.6, 0.3, 0.3)))
    correct = predicted == labels
    assert 0.02 < abstain.mean() < 0.7
    assert correct[~abstain].mean() > 0.95 > correct.mean()


def test_a_combiner_survives_json(fitted):
    ballots, _, combiner = fitted
    again = Combiner.from_dict(json.loads(json.dumps(combiner.to_dict())))
    assert again == combiner
    for before, after in zip(combine(combiner, ballots), combine(again, ballots), strict=True):
        np.testing.assert_array_equal(before, after)


def test_every_candidate_survives_json(fitted):
    from label.combiners import model_from_dict, model_to_dict
    from label.vote import candidates

    ballots, gold, _ = fitted
    for fit in candidates().values():
        model = fit(ballots.severity, gold.labels)
        again = model_from_dict(json.loads(json.dumps(model_to_dict(model))))
        np.testing.assert_array_equal(model.posterior(ballots.severity), again.posterior(ballots.severity))


def test_no_group_is_on_both_sides_of_a_fold(fitted):
    _, gold, _ = fitted
    groups = np.asarray(gold.groups)
    for folds in group_folds(gold, np.asarray(VIOLATING), 2, 0):
        tested = np.concatenate([test for _, test in folds])
        assert sorted(tested) == list(range(len(groups)))
        assert all(not set(groups[train]) & set(groups[test]) for train, test in folds)


@pytest.mark.parametrize("oddity", ["silent", "always_safe", "copy", "alone"])
def test_odd_voters_do_not_break_the_fit(oddity):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 120)
    good = voter(rng, labels, 0.8)
    odd = {
        "silent": np.full((120, 3), np.nan),
        "always_safe": np.tile([0.98, 0.01, 0.01], (120, 1)),
        "copy": good,
        "alone": None,
    }[oddity]
    voters = [good] if odd is None else [good, odd, voter(rng, labels, 0.7)]
    ballots = Ballots(tuple(f"v{at}" for at in range(len(voters))), SEVERITIES, np.stack(voters, axis=1))
    combiner = fit_combiner(ballots, gold_of(labels), VIOLATING)
    predicted, confidence, _ = combine(combiner, ballots)
    assert np.isfinite(confidence).all()
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert (predicted == labels).mean() > 0.7
    if oddity in ("silent", "always_safe"):
        assert combiner.voter_weights[1] < combiner.voter_weights[0]


def test_a_row_without_any_vote_abstains(fitted):
    ballots, _, combiner = fitted
    silent = Ballots(ballots.voters, SEVERITIES, np.full((1, 5, 3), np.nan))
    labels, confidence, abstain = combine(combiner, silent)
    assert abstain.tolist() == [True]
    assert confidence.tolist() == [0.0]
    assert 0 <= labels[0] < 3


def test_without_gold_it_is_the_majority_and_says_uncalibrated(fitted):
    ballots, _, _ = fitted
    combiner = fit_combiner(ballots, None, VIOLATING)
    assert not combiner.calibrated
    labels, _, abstain = combine(combiner, ballots)
    counts = (votes_of(ballots.severity)[:, :, None] == np.arange(3)).sum(axis=1)
    assert (counts[np.arange(len(labels)), labels] == counts.max(axis=1)).all()
    assert not abstain.any()


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_changes_no_label(seed, voters):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), (12, voters))
    probs[rng.random((12, voters)) < 0.2] = np.nan
    ballots = Ballots(tuple(f"v{at}" for at in range(voters)), SEVERITIES, probs)
    combiner = fit_combiner(ballots, None, VIOLATING)
    labels, confidence, _ = combine(combiner, ballots)
    order = rng.permutation(12)
    shuffled, confidence_shuffled, _ = combine(combiner, ballots.take(order))
    np.testing.assert_array_equal(labels[order], shuffled)
    np.testing.assert_allclose(confidence[order], confidence_shuffled)


def test_dawid_skene_confusions_are_the_smoothed_gold_counts():
    labels = np.array([0, 0, 0, 1, 1, 2])
    votes = np.array([0, 0, 1, 1, -1, 2])
    probs = np.where(votes[:, None, None] < 0, np.nan, np.eye(3)[votes][:, None, :])
    model = fit_dawid_skene(probs, labels)
    np.testing.assert_allclose(np.exp(model.log_confusion[0][0]), np.array([2 + 1 / 3, 1 + 1 / 3, 1 / 3]) / 4)
    np.testing.assert_allclose(np.exp(model.log_confusion[0][1]), np.array([1 / 3, 1 + 1 / 3, 1 / 3]) / 2)


def test_a_voter_no_better_than_chance_weighs_nothing():
    labels = np.arange(300) % 3
    probs = np.stack([np.eye(3)[labels], np.eye(3)[np.zeros(300, int)]], axis=1)
    weights = fit_weighted(probs, labels).weights
    assert weights[0] > 4
    assert weights[1] == pytest.approx(0.0, abs=1e-9)


def test_bad_gold_is_refused_with_the_row_named():
    ids, groups = ["a", "b"], ["g", "h"]
    with pytest.raises(BadInput, match=r"gold.jsonl: row 2 \(b\), severity: unknown label 'Bad'"):
        check_gold(ids, groups, ["Safe", "Bad"], SEVERITIES, VIOLATING, source="gold.jsonl")
    with pytest.raises(BadInput, match="one class"):
        check_gold(ids, groups, ["Unsafe", "Controversial"], SEVERITIES, VIOLATING)
    with pytest.raises(BadInput, match="1 rows are also in the pool that is trained on: b"):
        check_gold(ids, groups, ["Safe", "Unsafe"], SEVERITIES, VIOLATING, pool_groups=["x", "h"])
    assert check_gold(ids, groups, ["Safe", "Unsafe"], SEVERITIES, VIOLATING).labels.tolist() == [0, 2]


def test_ballots_of_other_voters_are_refused(fitted):
    ballots, _, combiner = fitted
    with pytest.raises(BadInput, match="v0"):
        combine(combiner, ballots.without(2))


def test_categories_are_the_most_frequent_answer_and_ties_go_to_the_weightier_voter():
    category = np.zeros((3, 3, 3))
    category[0, :, 0], category[0, 1:, 1] = [0.9, 0.0, 0.0], 0.8
    category[1, 0, 0], category[1, 1, 1] = 0.9, 0.9
    severity = np.tile([0.0, 0.0, 1.0], (3, 3, 1))
    ballots = Ballots(("a", "b", "c"), SEVERITIES, severity, category=category)
    combiner = Combiner(
        ("a", "b", "c"), SEVERITIES, VIOLATING, fit_combiner(ballots, None, VIOLATING).model, (0.5, 2.0, 0.1)
    )
    chosen = combine_categories(combiner, ballots, np.array([2, 2, 2]))
    assert chosen[0].tolist() == [False, True, False]
    assert chosen[1].tolist() == [True, True, False]
    assert not chosen[2].any()
    assert not combine_categories(combiner, ballots, np.zeros(3, dtype=int)).any()


def test_refusal_is_the_majority_ties_by_weight_and_unknown_without_votes():
    refusal = np.array([[0.9, 0.8, 0.1], [0.9, 0.1, np.nan], [np.nan] * 3])
    ballots = Ballots(("a", "b", "c"), SEVERITIES, np.full((3, 3, 3), 1 / 3), refusal=refusal)
    model = fit_combiner(ballots, None, VIOLATING).model
    assert combine_refusal(
        Combiner(ballots.voters, SEVERITIES, VIOLATING, model, (1.0, 2.0, 1.0)), ballots
    ).tolist() == [1, 0, -1]


def test_calibration_repairs_overconfidence_and_keeps_the_order():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.5, 1.0, 2000)
    correct = rng.random(2000) < truth
    overconfident = truth**0.2
    folds = [(np.arange(2000) % 2 == half, np.arange(2000) % 2 != half) for half in (0, 1)]
    folds = [(np.flatnonzero(train), np.flatnonzero(test)) for train, test in folds]
    result = choose_calibration(overconfident, correct, folds)
    assert calibration_error(overconfident, correct)["debiased"] > 0.1
    assert calibration_error(result.confidence, correct)["debiased"] < 0.04
    mapped = result.calibration.apply(np.linspace(0.5, 1.0, 50))
    assert (np.diff(mapped) >= 0).all()


def test_a_confidence_that_is_too_high_at_every_level_is_mended_by_a_shift():
    rng = np.random.default_rng(5)
    claimed = rng.choice([0.9, 0.95, 0.98], 3000)
    odds = claimed / (1 - claimed) * 0.2
    correct = rng.random(3000) < odds / (1 + odds)
    folds = [(np.flatnonzero(np.arange(3000) % 2 == half), np.flatnonzero(np.arange(3000) % 2 != half))
             for half in (0, 1)]  # fmt: skip
    by_slope = fit_temperature(claimed, correct).apply(claimed)
    result = choose_calibration(claimed, correct, folds)
    assert calibration_error(result.confidence, correct, bins=3)["debiased"] < 0.02
    assert result.brier["platt"] < result.brier["temperature"]
    assert calibration_error(by_slope, correct, bins=3)["debiased"] > 0.02
    assert Calibration.from_dict(result.calibration.to_dict()) == result.calibration


@pytest.mark.parametrize("outcome", [True, False])
def test_a_calibration_on_rows_of_one_outcome_stays_finite(outcome):
    told = fit_platt(np.full(50, 0.8), np.full(50, outcome)).apply(np.array([0.6, 0.8, 0.99]))
    assert np.isfinite(told).all() and (told > 0).all() and (told < 1).all()


def test_the_debiased_error_of_a_calibrated_confidence_is_smaller_than_the_plug_in():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.5, 1.0, 300)
    plug_in, debiased = [], []
    for _ in range(30):
        error = calibration_error(confidence, rng.random(300) < confidence)
        plug_in.append(error["ece"])
        debiased.append(error["debiased"])
    assert np.mean(debiased) < np.mean(plug_in)


@given(st.integers(0, 10_000), st.floats(0.5, 0.99))
@settings(max_examples=80, deadline=None)
def test_the_abstain_band_keeps_the_most_rows_at_the_target(seed, target):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 30, 60) / 30
    correct = rng.random(60) < confidence
    threshold, reached = abstain_threshold(confidence, correct, target, least_rows=10)
    kept = confidence >= threshold
    possible = [t for t in np.unique(confidence) if (confidence >= t).sum() >= 10]
    good = [t for t in possible if correct[confidence >= t].mean() >= target]
    assert reached == bool(good)
    assert correct[kept].mean() >= (
        target if good else max(correct[confidence >= t].mean() for t in possible) - 1e-12
    )
    if good:
        assert threshold == min(good)


def test_a_million_rows_of_five_voters_combine_in_seconds(fitted):
    ballots, _, combiner = fitted
    many = Ballots(ballots.voters, SEVERITIES, np.tile(ballots.severity[:250], (800, 1, 1)))
    started = time.perf_counter()
    combine(combiner, many)
    assert (time.perf_counter() - started) * 5 < 60
