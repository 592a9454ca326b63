"""Lint finds what is unwise, one sentence each, and nothing in the policies that ship."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.policy import GoldRow, Leaf, Pair, Policy, Seed, load_gold, load_policy
from synth.policy_lint import lint, near_pairs
from synth.policy_tools import skeleton, skeleton_gold


@pytest.fixture
def small(tmp_path: Path) -> Policy:
    (tmp_path / "small.yaml").write_text(skeleton("small"), encoding="utf-8")
    (tmp_path / "small_gold.jsonl").write_text(skeleton_gold(), encoding="utf-8")
    return load_policy(tmp_path / "small.yaml")


def with_leaf(policy: Policy, **changes: object) -> Policy:
    return replace(policy, leaves=(replace(policy.leaves[0], **changes),))


def second_leaf(policy: Policy, text: str, severity: str = "Rude") -> Leaf:
    first = policy.leaves[0]
    seeds = (Seed("x", text, severity, "en", "second"), *first.seeds[2:])
    others = tuple(replace(seed, leaf="second", text=f"{seed.text[::-1]}") for seed in seeds[1:])
    return replace(first, id="second", name="Second", seeds=(seeds[0], *others), pairs=(), keywords=())


def test_the_skeleton_passes(small: Policy) -> None:
    assert lint(small, load_gold(small)) == []


def test_a_leaf_that_lacks_something_is_named(small: Policy) -> None:
    polite = tuple(seed for seed in small.leaves[0].seeds if seed.severity != "Curt")
    cases = {
        "no neighbour": with_leaf(small, excludes=""),
        "no guidance for Curt": with_leaf(small, guidance={"Polite": "a", "Rude": "b"}),
        "no pairs": with_leaf(small, pairs=()),
        "no keywords": with_leaf(small, keywords=()),
        "no seed that is Curt": with_leaf(small, seeds=polite),
        "no sketches of responses": replace(small, sides=("prompt", "response")),
    }
    for expected, broken in cases.items():
        findings = [finding for finding in lint(broken) if "templates" not in finding]
        assert len(findings) == 1 and expected in findings[0], findings
        assert findings[0].startswith("leaf insult.name_calling: ") and "\n" not in findings[0]


def test_keywords_that_never_occur_or_stand_twice_are_findings(small: Policy) -> None:
    words = small.leaves[0].keywords
    strange = tuple(replace(words[0], text=f"zzz{index}") for index in range(4))
    assert lint(with_leaf(small, keywords=(*strange, words[0]))) == [
        "leaf insult.name_calling: 4 of 5 keywords are in none of its texts: 'zzz0', 'zzz1', 'zzz2' …"
    ]
    assert lint(with_leaf(small, keywords=(*words, replace(words[0], text="GOOSE")))) == [
        "leaf insult.name_calling: the keyword 'goose' stands twice"
    ]


def test_lopsided_leaves_and_empty_categories_are_findings(small: Policy) -> None:
    seeds = small.leaves[0].seeds
    many = tuple(replace(seeds[0], text=f"{index} {chr(97 + index) * 30}") for index in range(13))
    assert lint(with_leaf(small, seeds=(*seeds, *many))) == [
        "leaf insult.name_calling: 15 Rude seeds against 2 Polite"
    ]
    spare = replace(small.categories[0], id="spare", name="Spare")
    assert lint(replace(small, categories=(*small.categories, spare))) == [
        "category spare: no leaf belongs to it"
    ]


def test_nearly_the_same_seed_in_two_leaves_is_a_finding(small: Policy) -> None:
    other = second_leaf(small, "Listen, you turnip, nobody asked you!")
    found = [
        finding for finding in lint(replace(small, leaves=(*small.leaves, other))) if "nearly" in finding
    ]
    assert len(found) == 1 and found[0].startswith(
        "leaves insult.name_calling and second: nearly the same seed (0."
    )


def test_one_text_under_two_severities_is_a_finding(small: Policy) -> None:
    seeds = small.leaves[0].seeds
    twin = replace(seeds[1], text=seeds[1].text + "!", severity="Polite")
    found = lint(with_leaf(small, seeds=(*seeds, twin)))
    assert len(found) == 1 and "nearly the same seed is Rude and Polite" in found[0]


def test_missing_and_failing_templates_are_findings(small: Policy) -> None:
    fewer = {name: text for name, text in small.templates.items() if name != "voter"}
    assert lint(replace(small, templates=fewer)) == ["templates: 'voter' is missing"]
    failing = {**small.templates, "judge": "{{ severities[9].name }}"}
    assert [finding.split(": ", 1)[1][:15] for finding in lint(replace(small, templates=failing))] == [
        "templates.judge"
    ]
    long = {**small.templates, "moderation_short": "word " * 70 + "{{ conversation }}"}
    assert "moderation_short is not short: 73 words and marks" in lint(replace(small, templates=long))[0]


def test_gold_near_a_seed_and_gaps_in_the_gold_set_are_findings(small: Policy) -> None:
    rude, curt, polite = load_gold(small)
    near = replace(rude, prompt="Listen you turnip, nobody asked you")
    found = lint(small, (near, curt, polite))
    assert len(found) == 1 and found[0].startswith("gold row 1: near a seed (0.")
    assert lint(small, (curt, polite)) == ["gold: no prompt is Rude"]
    none = tuple(replace(row, categories=()) for row in (rude, curt, polite))
    assert lint(small, none) == ["gold: no prompt of the category insult"]
    lopsided = [replace(polite, prompt=chr(97 + index) * 20) for index in range(12)]
    assert lint(small, (rude, curt, *lopsided)) == ["gold: 12 of 14 prompts are Polite"]


def test_seeds_that_voters_contradict_are_findings_and_disputes_are_none(small: Policy) -> None:
    rude, _, curt = small.leaves[0].seeds[:3]
    assert lint(small, votes={rude.id: "Polite"}) == [
        f"leaf insult.name_calling: voters find a Rude seed Polite: '{rude.text}'"
    ]
    assert lint(small, votes={rude.id: "Curt", curt.id: "Rude"}) == []


@given(
    st.lists(st.text("ab c字", max_size=8), max_size=12),
    st.sampled_from([0.3, 0.6, 0.85, 1.0]),
    st.integers(0, 6),
)
@settings(max_examples=100, deadline=None)
def test_prefix_filtering_finds_exactly_the_near_pairs(
    texts: list[str], threshold: float, split: int
) -> None:
    def grams(text: str) -> set[str]:
        folded = f" {' '.join(text.casefold().split())} "
        return {folded[start : start + 3] for start in range(max(1, len(folded) - 2))}

    expected = set()
    for i, j in combinations(range(len(texts)), 2):
        a, b = grams(texts[i]), grams(texts[j])
        if len(a & b) / len(a | b) >= threshold and (not split or i < split <= j):
            expected.add((i, j))
    assert {(i, j) for i, j, _ in near_pairs(texts, threshold, split)} == expected


def test_pairs_count_as_written_texts_for_the_gold_set(small: Policy) -> None:
    pair = Pair("p", "A wholly other sentence about soup.", "A wholly other sentence about soap.", "en", "x")
    gold: list[GoldRow] = list(load_gold(small))
    gold[2] = replace(gold[2], prompt="A wholly other sentence about soap!")
    leaf = replace(small.leaves[0], pairs=(*small.leaves[0].pairs, pair))
    assert any("gold row 3: near a seed" in finding for finding in lint(replace(small, leaves=(leaf,)), gold))
