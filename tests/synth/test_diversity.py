"""distinct-n: bounded, one for texts without repetition, blind to order, in scripts with and without spaces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.diversity import distinct, units


@pytest.mark.parametrize(("texts", "n", "value"), [
    (["a b c", "d e f"], 1, 1.0), (["a b", "a b"], 1, 0.5), (["a b c", "a b d"], 2, 0.75), (["a"], 2, None),
    ([], 1, None),
])  # fmt: skip
def test_it_is_the_share_of_different_ones(texts, n, value):
    assert distinct(texts, n) == value


def test_characters_count_where_there_are_no_spaces():
    assert units("Bread 面包!") == ["bread", "面", "包"]


@given(st.lists(st.text(max_size=30), max_size=8), st.integers(1, 3))
def test_it_is_bounded_and_falls_when_a_text_is_repeated(texts, n):
    value = distinct(texts, n)
    assert value is None or 0 < value <= 1
    if value is not None:
        assert distinct(texts[::-1], n) == value and distinct(texts * 2, n) == pytest.approx(value / 2)
