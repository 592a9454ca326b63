"""Charts are well-formed, stay in their frame, and say their numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.report import svg

UNIT = st.floats(0, 1)
WORDS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=60
)


def inside(markup: str) -> None:
    """Parses, and no coordinate leaves the frame by more than a stroke."""
    tree = ElementTree.fromstring(markup)
    width, height = map(float, tree.attrib["viewBox"].split()[2:])
    for element in tree.iter():
        for name, value in element.attrib.items():
            if name in ("x", "x1", "x2", "cx"):
                assert -10 <= float(value) <= width + 10
            if name in ("y", "y1", "y2", "cy"):
                assert -10 <= float(value) <= height + 10
            if name in ("width", "height"):
                assert float(value) >= 0


@given(st.lists(st.tuples(WORDS, UNIT, UNIT, UNIT, st.sampled_from(["s0", "s3"])), max_size=6))
@settings(max_examples=50, deadline=None)
def test_interval_charts_are_well_formed_for_any_names_and_values(rows: list) -> None:
    inside(svg.intervals(rows, "F1"))


@given(
    st.lists(
        st.fixed_dictionaries({"confidence": UNIT, "accuracy": UNIT, "rows": st.integers(1, 99)}), max_size=15
    )
)
@settings(max_examples=50, deadline=None)
def test_reliability_plots_draw_one_dot_per_bin_inside_the_frame(points: list) -> None:
    markup = svg.reliability(points, "reliability")
    inside(markup)
    assert markup.count("<circle") == len(points)


@given(
    st.dictionaries(WORDS, st.lists(st.tuples(st.floats(-5, 5), UNIT), min_size=1, max_size=9), max_size=3)
)
@settings(max_examples=50, deadline=None)
def test_curves_are_well_formed_for_any_series(series: dict) -> None:
    inside(svg.lines(series, [], [], ("x", "y"), "curves"))


@given(st.lists(st.tuples(WORDS, st.integers(0, 10_000)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_histograms_show_every_count(counts: list) -> None:
    markup = svg.histogram(counts, "bins", "counts")
    inside(markup)
    assert all(f">{count}<" in markup for _, count in counts if count)


def test_a_chart_escapes_what_it_is_told() -> None:
    markup = svg.bars([("<script>", 2.0, "a & b"), ("x", 0.0, "")], "<title>")
    inside(markup)
    assert "<script>" not in markup and "&lt;script&gt;" in markup and "a &amp; b" in markup


def test_the_longest_bar_fills_the_width_and_others_follow_in_proportion() -> None:
    found = re.findall(r'<rect [^>]*width="([\d.]+)"', svg.bars([("a", 4.0, ""), ("b", 1.0, "")], "t"))
    assert [float(width) for width in found] == [svg.WIDTH - 8, (svg.WIDTH - 8) / 4]
