"""Label noise: repaired by a teacher that never saw the row's group, and people are never overruled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from label.distill import (
    DROP,
    KEEP,
    QUESTION,
    RELABEL,
    Rules,
    class_thresholds,
    confident_rates,
    decide,
    distill,
    posterior_rates,
    true_class,
)
from synth.errors import BadInput


class World:
    """Three clusters in the plane with a share of labels flipped."""

    def __init__(self, noise=0.15, rows=900, seed=0):
        rng = np.random.default_rng(seed)
        self.truth = rng.integers(0, 3, rows)
        centres = np.array([[0.0, 2.0], [1.8, -1.0], [-1.8, -1.0]])
        self.x = centres[self.truth] + rng.normal(0, 0.8, (rows, 2))
        self.flipped = rng.random(rows) < noise
        self.labels = np.where(self.flipped, (self.truth + rng.integers(1, 3, rows)) % 3, self.truth)
        self.ids = [f"r{at}" for at in range(rows)]
        self.groups = [f"g{at // 2}" for at in range(rows)]
        self.fits = []

    def fit_predict(self, train, labels, predict):
        self.fits.append((train, predict))
        return LogisticRegression().fit(self.x[train], labels).predict_proba(self.x[predict])

    def distill(self, human=None, rules=None):
        human = np.zeros(len(self.ids), dtype=bool) if human is None else human
        return distill(self.ids, self.groups, self.labels, human, self.fit_predict, rules)


def test_most_flips_are_repaired_and_few_good_labels_spoiled():
    world = World()
    result = world.distill()
    used = np.array([action != DROP for action in result.actions])
    before = (world.labels != world.truth).mean()
    after = (result.labels != world.truth)[used].mean()
    assert after < before / 3
    assert (result.labels == world.truth)[world.flipped].mean() > 0.7
    spoiled = ~world.flipped & (result.labels != world.truth)
    assert spoiled.mean() < 0.02


def test_clean_labels_stay_nearly_all():
    result = World(noise=0.0).distill()
    assert result.counts[KEEP] / len(result.labels) > 0.97


def test_a_human_label_is_questioned_and_never_changed_or_dropped():
    world = World()
    human = np.arange(len(world.ids)) % 2 == 0
    result = world.distill(human, Rules(rounds=2))
    assert (result.labels[human] == world.labels[human]).all()
    actions = np.array(result.actions)
    assert set(actions[human]) <= {KEEP, QUESTION}
    assert QUESTION not in set(actions[~human])
    assert (actions[human & world.flipped] == QUESTION).mean() > 0.6


def test_every_change_is_recorded_and_nothing_else_changes():
    world = World()
    human = np.arange(len(world.ids)) % 5 == 0
    result = world.distill(human)
    recorded = {change.id: change for change in result.changes}
    for row, row_id in enumerate(world.ids):
        change = recorded.get(row_id)
        if change is None:
            assert result.actions[row] == KEEP
            assert result.labels[row] == world.labels[row]
            continue
        assert change.action == result.actions[row] != KEEP
        assert change.old == world.labels[row] != change.new
        assert change.fold == result.fold[row]
        assert change.probability_new == result.probability[row, change.new]
        assert change.probability_old == result.probability[row, change.old] < 0.7
        assert result.labels[row] == (change.new if change.action == RELABEL else change.old)
    assert sum(result.counts.values()) == len(world.ids)


def test_no_teacher_judges_a_group_it_saw():
    world = World()
    world.distill(rules=Rules(folds=3, rounds=2))
    groups = np.asarray(world.groups)
    assert len(world.fits) == 6
    assert all(not set(groups[train]) & set(groups[predict]) for train, predict in world.fits)


def test_a_second_round_trains_without_the_dropped_rows():
    world = World()
    first = world.distill(rules=Rules(relabel_at=1.0, rounds=1))
    dropped = {row for row, action in enumerate(first.actions) if action == DROP}
    assert dropped
    world.fits.clear()
    world.distill(rules=Rules(relabel_at=1.0, rounds=2))
    assert all(not dropped & set(train.tolist()) for train, _ in world.fits[2:])


@given(st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_the_rule_is_what_it_says(seed):
    rng = np.random.default_rng(seed)
    probability, labels, rates = (
        rng.dirichlet(np.ones(3), 20),
        rng.integers(0, 3, 20),
        rng.dirichlet(np.ones(3), 3),
    )
    posterior = true_class(labels, probability, rates)
    code, other = decide(labels, posterior, Rules(relabel_at=0.6, drop_at=0.3))
    for row in range(20):
        joint = [probability[row, true] * rates[true, labels[row]] for true in range(3)]
        wrong = 1 - joint[labels[row]] / sum(joint)
        assert code[row] == (2 if wrong > 0.6 else 1 if wrong > 0.3 else 0)
        assert joint[other[row]] == max(joint[true] for true in range(3) if true != labels[row])


@given(st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_rates_are_distributions_over_given_labels(seed):
    rng = np.random.default_rng(seed)
    probability, labels = rng.dirichlet(np.ones(3), 30), rng.integers(0, 2, 30)
    for rates in (confident_rates(labels, probability), posterior_rates(labels, probability)):
        np.testing.assert_allclose(rates.sum(axis=1), 1.0)
        assert (rates >= 0).all()


def test_the_noise_rates_are_found():
    world = World(noise=0.2, rows=2000)
    result = world.distill(rules=Rules(folds=4))
    off_diagonal = result.rates[~np.eye(3, dtype=bool)]
    assert np.abs(off_diagonal - 0.1).max() < 0.06


def test_a_class_without_rows_is_never_proposed():
    probability = np.array([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.3, 0.7, 0.0]])
    labels = np.array([0, 1, 0])
    assert class_thresholds(labels, probability).tolist() == pytest.approx([0.45, 0.6, 1.0])
    posterior = true_class(labels, probability, confident_rates(labels, probability))
    assert (decide(labels, posterior, Rules())[1] != 2).all()


def test_rules_that_contradict_themselves_are_refused():
    for wrong in ({"relabel_at": 0.4}, {"drop_at": 0.6}, {"folds": 1}, {"rounds": 0}):
        with pytest.raises(BadInput, match="distill"):
            Rules(**wrong)


def test_a_teacher_that_answers_nonsense_is_an_error_and_one_group_is_bad_input():
    world = World(rows=30)
    with pytest.raises(ValueError, match="NaN"):
        distill(
            world.ids, world.groups, world.labels, [False] * 30, lambda t, y, p: np.full((len(p), 3), np.nan)
        )
    with pytest.raises(BadInput, match="cannot be split"):
        distill(world.ids, ["g"] * 30, world.labels, [False] * 30, world.fit_predict)
