"""Comparisons: against scikit-learn, scipy and figures worked out by hand; intervals over groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label.compare import (
    average_precision,
    confusion,
    difference,
    mcnemar,
    onset_distance,
    onsets,
    rate,
    token_span,
)
from label.scores import ONSET_BINS, score
from synth.errors import BadInput

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30)


def ids(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS)
def test_average_precision_is_scikit_learns_also_with_ties(rows: list[tuple[bool, int]]):
    from sklearn.metrics import average_precision_score

    truth = np.array([violating for violating, _ in rows])
    scores = [value / 5 for _, value in rows]
    told = average_precision(truth, scores, ids(len(rows)), resamples=10)
    expected = average_precision_score(truth, scores) if truth.any() else 0.0
    assert told.value == pytest.approx(expected)
    assert 0 <= told.low <= told.high <= 1 + 1e-9


def test_average_precision_by_hand():
    told = average_precision(flags(1, 0, 1, 0), [0.9, 0.8, 0.7, 0.1], ids(4), resamples=50)
    assert told.value == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_weighted_draw_equals_the_repeated_rows():
    """A group drawn twice counts as its rows written twice: the bootstrap's statistic is the plain one."""
    truth, scores = flags(1, 0, 1, 0, 1), np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    twice = average_precision(np.repeat(truth, 2), np.repeat(scores, 2), ids(10), resamples=1)
    assert twice.value == pytest.approx(average_precision(truth, scores, ids(5), resamples=1).value)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(BadInput, match="row 1: the score is no finite number"):
        average_precision(flags(1, 0), [0.5, float("nan")], ids(2))


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(*[st.booleans()] * 3), max_size=40))
def test_mcnemar_is_the_exact_binomial_test(rows: list[tuple[bool, bool, bool]]):
    from scipy.stats import binomtest

    truth, first, second = (np.array([row[i] for row in rows], dtype=bool) for i in range(3))
    told, swapped = mcnemar(truth, first, second), mcnemar(truth, second, first)
    differing = told.only_first + told.only_second
    assert told.p == pytest.approx(binomtest(told.only_first, differing).pvalue if differing else 1.0)
    assert (swapped.only_first, swapped.only_second, swapped.p) == (told.only_second, told.only_first, told.p)


def test_mcnemar_by_hand():
    """Six rows that only the first gets right, one that only the second does: 2 * (1 + 7) / 128."""
    truth, first = np.ones(10, bool), flags(1, 1, 1, 1, 1, 1, 0, 1, 1, 0)
    second = flags(0, 0, 0, 0, 0, 0, 1, 1, 1, 0)
    told = mcnemar(truth, first, second)
    assert (told.only_first, told.only_second, told.p) == (6, 1, 0.125)
    assert mcnemar(np.ones(20000, bool), np.ones(20000, bool), np.zeros(20000, bool)).p == 0.0


def test_the_difference_is_that_of_the_two_f1():
    rng = np.random.default_rng(0)
    truth, first, second = (rng.random(60) < share for share in (0.4, 0.5, 0.3))
    told = difference(truth, first, second, ids(60), resamples=200)
    apart = [score(truth, said, ids(60), resamples=10).f1 for said in (first, second)]
    assert told.value == pytest.approx(apart[0] - apart[1])
    assert told.low <= told.value <= told.high
    same = difference(truth, first, first, ids(60), resamples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_rates_draw_whole_groups():
    rng = np.random.default_rng(1)
    hits = rng.random(40) < 0.5
    single = rate(hits, ids(40))
    copies = rate(np.repeat(hits, 10), [str(i) for i in range(40) for _ in range(10)])
    assert copies.value == single.value == hits.mean()
    assert copies.high - copies.low == pytest.approx(single.high - single.low, abs=0.05)
    assert rate(np.zeros(0, bool), []).value == 0


def test_draws_in_chunks_are_the_same_as_at_once(monkeypatch):
    hits = np.random.default_rng(2).random(30) < 0.3
    whole = rate(hits, ids(30), resamples=64)
    monkeypatch.setattr("label.compare.CHUNK", 30 * 7)
    assert rate(hits, ids(30), resamples=64) == whole


def test_confusion_counts_every_pair_and_no_category():
    told = confusion(["violence", "violence", "", "fraud"], ["Violent", "PII", "", "Violent"])
    assert told.truth == ("violence", "(none)", "fraud") and told.said == ("Violent", "(none)", "PII")
    assert told.counts.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert confusion([], []).counts.shape == (0, 0)


@pytest.mark.parametrize(
    ("flagged", "distance"), [(None, None), (0, -3), (2, -1), (3, 0), (5, 0), (6, 1), (38, 33)]
)
def test_onset_distance_is_zero_within_the_span_and_runs_from_its_ends(flagged, distance):
    assert onset_distance(flagged, (3, 5)) == distance


def test_a_span_of_characters_becomes_the_tokens_it_touches():
    offsets = np.array([[0, 3], [3, 4], [4, 9], [9, 9], [9, 12]])
    assert token_span(offsets, (3, 9)) == (1, 2)
    assert token_span(offsets, (2, 5)) == (0, 2)
    assert token_span(offsets, (20, 22)) is None
    assert token_span(np.zeros((0, 2), int), (0, 1)) is None


def test_onsets_fall_into_the_published_bins():
    distances = [-4, 0, 0, 1, 32, 33, 64, 65, 128, 129, 256, 257, None]
    told = onsets(distances, ids(13), resamples=50)
    assert list(told.bins) == list(ONSET_BINS) and list(told.bins.values()) == [1, 2, 2, 2, 2, 2, 1, 1]
    assert told.rows == 13 and told.hit.value == pytest.approx(2 / 13)
    assert told.stopped.value == pytest.approx(9 / 13)  # those stopped too early included, as published


def test_columns_of_different_length_are_refused():
    with pytest.raises(BadInput, match="differ in length: 1, 2"):
        mcnemar(flags(1, 0), flags(1, 0), flags(1))
