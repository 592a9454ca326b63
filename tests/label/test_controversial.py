"""Loose and strict readings: ratios searched, halves kept apart, differences called Controversial."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from label.controversial import (
    CONTROVERSIAL,
    RATIOS,
    SAFE,
    VIOLATING,
    Point,
    Ratios,
    choose_ratios,
    cross_annotate,
    halves,
    sample_by_ratio,
    sweep,
    three_way,
)
from synth.errors import BadInput


class World:
    """Rows on a line: safe on the left, violating on the right, between them labels are a coin toss."""

    def __init__(self, rows=1200, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(-3, 3, rows)
        chance = np.clip((self.x + 1) / 2, 0, 1)
        self.violating = rng.random(rows) < chance
        self.ids = [f"r{at}" for at in range(rows)]
        self.groups = [f"g{at // 3}" for at in range(rows)]
        self.fits = []

    def fit_predict(self, train, violating, predict):
        self.fits.append((train, predict))
        model = LogisticRegression().fit(self.x[train, None], violating)
        return model.predict_proba(self.x[predict, None])[:, 1]


def test_differing_readings_fall_where_the_labels_are_a_coin_toss():
    world = World()
    points = sweep(world.ids, world.groups, world.violating, range(300), world.fit_predict)
    ratios = choose_ratios(points)
    assert ratios.loose > 1 > ratios.strict
    annotation = cross_annotate(world.ids, world.groups, world.violating, ratios, world.fit_predict)
    found = annotation.vote == CONTROVERSIAL
    assert 0.1 < found.mean() < 0.45
    assert np.abs(world.x[found]).mean() < 0.8
    assert (annotation.vote[world.x < -2] == SAFE).all()
    assert (annotation.vote[world.x > 2] == VIOLATING).all()
    assert annotation.crossed == 0


def test_more_safe_rows_in_training_flag_fewer_rows():
    world = World()
    points = sweep(world.ids, world.groups, world.violating, range(300), world.fit_predict)
    flagged = [point.flagged for point in points]
    assert [point.ratio for point in points] == sorted(RATIOS)
    assert all(before >= after for before, after in pairwise(flagged))
    assert points[0].recall_violating > points[-1].recall_violating


def test_no_row_is_labelled_by_a_model_that_saw_its_group():
    world = World()
    annotation = cross_annotate(
        world.ids, world.groups, world.violating, Ratios(4.0, 0.25), world.fit_predict
    )
    groups = np.asarray(world.groups)
    predicted = []
    for train, predict in world.fits:
        assert not set(groups[train]) & set(groups[predict])
        assert not set(annotation.fold[train]) & set(annotation.fold[predict])
        predicted.extend(predict)
    assert np.bincount(predicted).tolist() == [2] * len(groups)
    assert all(len(set(annotation.fold[groups == group])) == 1 for group in set(groups[:60]))


@given(st.lists(st.sampled_from("abcdefghij"), min_size=40, max_size=60), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_halves_depend_on_the_group_alone(groups, seed):
    try:
        half = halves(groups, seed)
    except BadInput:
        return
    assert dict(zip(groups, half.tolist(), strict=True)) == dict(
        zip(groups[::-1], halves(groups[::-1], seed).tolist(), strict=True)
    )


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 20.0), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_a_sample_has_the_ratio_and_wastes_no_row_of_the_scarce_class(safe, violating, ratio, seed):
    flags = np.array([False] * safe + [True] * violating)
    kept = sample_by_ratio([str(at) for at in range(len(flags))], flags, ratio, seed)
    kept_safe, kept_violating = int((~flags[kept]).sum()), int(flags[kept].sum())
    assert len(set(kept.tolist())) == len(kept)
    assert kept_safe == safe or kept_violating == violating
    assert min(kept_safe, kept_violating) >= 1
    if kept_violating == violating:
        assert kept_safe == min(safe, max(1, round(ratio * violating)))
    else:
        assert kept_violating == max(1, round(safe / ratio))


def test_the_sample_does_not_depend_on_the_order_of_the_table():
    ids, flags = [str(at) for at in range(30)], np.arange(30) % 3 == 0
    kept = {ids[at] for at in sample_by_ratio(ids, flags, 0.5, 7)}
    order = np.random.default_rng(0).permutation(30)
    shuffled = [ids[at] for at in order]
    assert {shuffled[at] for at in sample_by_ratio(shuffled, flags[order], 0.5, 7)} == kept


def test_the_useful_points_are_those_where_both_classes_keep_their_f1():
    def point(ratio, flagged, safe, violating):
        return Point(ratio, 10, flagged, 0.0, 0.0, safe, 0.0, 0.0, violating)

    points = [
        point(0.1, 0.9, 0.2, 0.6),
        point(0.5, 0.6, 0.76, 0.8),
        point(2.0, 0.3, 0.8, 0.79),
        point(9, 0.1, 0.8, 0.3),
    ]
    assert choose_ratios(points).to_dict()["loose"] == 2.0
    assert choose_ratios(points).strict == 0.5
    none_useful = [point(0.1, 0.9, 0.1, 0.9), point(9, 0.1, 0.9, 0.05)]
    assert choose_ratios(none_useful).loose == choose_ratios(none_useful).strict == 0.1


@pytest.mark.parametrize(
    ("loose", "strict", "vote"),
    [
        (False, False, SAFE),
        (True, True, VIOLATING),
        (False, True, CONTROVERSIAL),
        (True, False, CONTROVERSIAL),
    ],
)
def test_the_three_way_vote(loose, strict, vote):
    assert three_way(np.array([loose]), np.array([strict])).tolist() == [vote]


def test_leaking_or_one_sided_validation_is_refused():
    world = World(60)
    with pytest.raises(BadInput, match="1 of its groups are also in training, such as g0"):
        sweep(world.ids, world.groups, world.violating, [0], world.fit_predict)
    only_safe = [row for row in range(60) if not world.violating[row]][:1]
    with pytest.raises(BadInput, match="one class"):
        sweep(world.ids, [str(at) for at in range(60)], world.violating, only_safe, world.fit_predict)
    with pytest.raises(BadInput, match="0 violating"):
        sample_by_ratio(["a"], np.array([False]), 1.0, 0)
    with pytest.raises(BadInput, match="cannot be split"):
        halves(["only"] * 5, 0)
