"""The tree, the differences and the skeleton."""

from dataclasses import replace
from pathlib import Path

import pytest

from synth.errors import BadInput
from synth.policy import Policy, load_gold, load_policy
from synth.policy_tools import Touched, diff, show, skeleton, skeleton_gold, touched


@pytest.fixture
def small(tmp_path: Path) -> Policy:
    (tmp_path / "small.yaml").write_text(skeleton("small"), encoding="utf-8")
    (tmp_path / "small_gold.jsonl").write_text(skeleton_gold(), encoding="utf-8")
    return load_policy(tmp_path / "small.yaml")


def test_the_tree_shows_each_leaf_with_its_counts(small: Policy) -> None:
    assert show(small, load_gold(small)).splitlines() == [
        "small: Courtesy of messages",
        "answers 'Courtesy: Polite|Curt|Rude' on prompt",
        "1 categories, 1 leaves, 5 seeds (2 Rude 1 Curt 2 Polite), 3 keywords, 1 pairs",
        "Insult: 1 leaves",
        "└─ insult.name_calling: Name calling: 5 seeds (2 Rude 1 Curt 2 Polite), 3 keywords, 1 pairs, "
        "0 sketches [en]",
        "gold, prompts: 3 (1 Rude 1 Curt 1 Polite) [en 3]",
    ]


def test_the_same_policy_differs_in_nothing(small: Policy) -> None:
    assert diff(small, small) == []
    assert touched(small, small) == Touched((), (), False)


def test_an_edited_leaf_touches_its_rows_alone(small: Policy) -> None:
    leaf = small.leaves[0]
    other = replace(leaf, id="other", name="Other")
    seeds = (
        *leaf.seeds[1:],
        replace(leaf.seeds[0], text="You rude thing", id="new"),
        replace(leaf.seeds[0], id="n2"),
    )
    old = replace(small, leaves=(leaf, other))
    new = replace(small, leaves=(replace(leaf, seeds=seeds, definition="Words that hurt."), other))
    assert diff(old, new) == ["~ leaf insult.name_calling: definition, seeds +2 -1"]
    assert touched(old, new) == Touched(("insult.name_calling",), (), False)


def test_leaves_that_come_and_go_are_told(small: Policy) -> None:
    other = replace(small.leaves[0], id="other")
    assert diff(small, replace(small, leaves=(other,))) == ["- leaf insult.name_calling", "+ leaf other"]
    assert touched(small, replace(small, leaves=(other,))).leaves == ("insult.name_calling", "other")


def test_a_part_of_a_template_touches_those_that_include_it(small: Policy) -> None:
    new = replace(small, templates={**small.templates, "_heading": "Texts:"})
    assert diff(small, new) == ["~ template _heading"]
    assert touched(small, new) == Touched(
        (), ("_heading", "writer_continuation", "keyword_continuation"), False
    )


def test_a_new_definition_of_a_severity_touches_every_label(small: Policy) -> None:
    worse = replace(small.severities[2], definition="Everybody would.")
    new = replace(small, severities=(*small.severities[:2], worse), title="Tone")
    assert diff(small, new) == ["~ title: Courtesy of messages -> Tone", "~ severity Rude: definition"]
    assert touched(small, new).labels and touched(small, new).leaves == ("insult.name_calling",)


def test_a_change_of_order_is_told(small: Policy) -> None:
    other = replace(small.leaves[0], id="other")
    old, new = replace(small, leaves=(*small.leaves, other)), replace(small, leaves=(other, *small.leaves))
    assert diff(old, new) == ["~ order of the leaves"]


@pytest.mark.parametrize("name", ["", "two words", "../x", "1st", "naïve", "a.yaml"])
def test_a_skeleton_needs_a_plain_name(name: str) -> None:
    with pytest.raises(BadInput, match="cannot name a policy"):
        skeleton(name)
