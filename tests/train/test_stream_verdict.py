"""Readings, debounce and thresholds."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.errors import BadInput
from train.labels import LabelMaps
from train.stream_verdict import Debounce, flags, onset, rule

MAPS = LabelMaps(
    ("Safe", "Unsafe", "Controversial"),
    ("Violent", "PII"),
    ("Violent",),
    ("Safe",),
    ("Unsafe", "Controversial"),
    ("Unsafe",),
)
RESULT = {
    "risk_level": ["Safe", "Controversial", "Unsafe"],
    "category": ["PII", "PII", "Violent"],
    "risk_probs": [[0.6, 0.2, 0.2], [0.3, 0.2, 0.5], [0.1, 0.6, 0.3]],
}


def test_controversial_is_flagged_by_the_strict_reading_only():
    assert flags(RESULT, MAPS, rule(MAPS, "strict")) == [False, True, True]
    assert flags(RESULT, MAPS, rule(MAPS, "loose")) == [False, False, True]


def test_a_third_reading_is_refused():
    with pytest.raises(BadInput, match="loose or strict"):
        rule(MAPS, "lenient")


def test_thresholds_apply_per_category_to_the_probability_that_violates():
    strict = rule(MAPS, "strict", thresholds={"PII": 0.35, "*": 0.95})
    assert flags(RESULT, MAPS, strict) == [True, True, False]
    loose = rule(MAPS, "loose", thresholds={"Violent": 0.55})
    assert flags(RESULT, MAPS, loose) == [False, False, True]


@pytest.mark.parametrize(
    ("flagged", "expected"),
    [([], None), ([1], None), ([1, 0, 1], None), ([1, 1], 1), ([0, 1, 1, 1], 2), ([1, 0, 0, 1, 1], 4)],
)
def test_a_response_is_flagged_from_the_second_of_two_flagged_tokens_in_a_row(flagged, expected):
    assert onset([bool(f) for f in flagged]) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=20), st.lists(st.integers(0, 20), max_size=4), st.integers(1, 3))
def test_pushing_in_any_chunks_equals_looking_at_all_of_it(flagged, cuts, run):
    debounce = Debounce(run)
    edges = [0, *sorted(min(cut, len(flagged)) for cut in cuts), len(flagged)]
    said = [debounce.push(flagged[a:b]) for a, b in pairwise(edges)]
    assert debounce.onset == onset(flagged, run)
    assert said[-1] == (onset(flagged, run) is not None)


def test_a_roll_back_takes_flags_back():
    debounce = Debounce()
    assert debounce.push([True, True])
    debounce.roll_back(1)
    assert debounce.onset is None
    assert not debounce.push([False, True])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=5) | st.integers(0, 6), max_size=12), st.integers(1, 3))
def test_after_pushes_and_roll_backs_the_onset_is_that_of_what_is_left(steps, run):
    debounce, left = Debounce(run), []
    for step in steps:
        if isinstance(step, list):
            debounce.push(step)
            left += step
        else:
            back = min(step, len(left))
            debounce.roll_back(back)
            left = left[: len(left) - back]
        assert debounce.onset == onset(left, run) and debounce.seen == left
