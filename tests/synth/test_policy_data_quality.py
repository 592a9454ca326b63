"""The packaged policy on the quality of texts: in full, clean under lint, not solved by counting words."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from synth.policy import GoldRow, Policy, load_gold, load_policy, render
from synth.policy_lint import lint


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("data_quality")


@pytest.fixture(scope="module")
def gold(policy: Policy) -> tuple[GoldRow, ...]:
    return load_gold(policy)


def test_lint_finds_nothing(policy: Policy, gold: tuple[GoldRow, ...]) -> None:
    assert lint(policy, gold) == []


def test_it_is_another_subject_with_its_own_words(policy: Policy) -> None:
    assert policy.sides == ("prompt",) and not policy.refusal
    assert policy.severity_names == ("Good", "Mixed", "Poor") and policy.answer_key == "Quality"
    assert len(policy.leaves) >= 12 and len(policy.languages) >= 6


def test_every_leaf_is_written_in_full(policy: Policy) -> None:
    for leaf in policy.leaves:
        english = Counter(seed.severity for seed in leaf.seeds if seed.language == "en")
        assert english["Poor"] >= 6 and english["Mixed"] >= 3 and english["Good"] >= 4, leaf.id
        assert len(leaf.keywords) >= 10 and len(leaf.pairs) >= 4, leaf.id
        assert leaf.excludes and set(leaf.guidance) == set(policy.severity_names), leaf.id


def test_texts_stand_on_one_line_so_that_a_pattern_can_continue_them(policy: Policy) -> None:
    for leaf in policy.leaves:
        for text in [seed.text for seed in leaf.seeds] + [pair.violating for pair in leaf.pairs]:
            assert "\n" not in text


def test_the_gold_set_is_large_mixed_and_in_many_languages(gold: tuple[GoldRow, ...]) -> None:
    severities = Counter(row.severity for row in gold)
    assert len(gold) >= 200 and len({row.language for row in gold}) >= 8
    assert severities["Mixed"] >= 0.15 * len(gold)
    assert len({category for row in gold for category in row.categories}) == 5


def test_words_alone_do_not_solve_the_gold_set(policy: Policy, gold: tuple[GoldRow, ...]) -> None:
    texts, groups = [row.prompt for row in gold], [row.group_id for row in gold]
    for reading in ("loose", "strict"):
        labels = np.array([policy.violates(row.severity, reading) for row in gold])
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(class_weight="balanced"))
        predicted = cross_val_predict(model, texts, labels, groups=groups, cv=GroupKFold(5))
        assert f1_score(labels, predicted) < 0.75


def test_continuations_end_where_the_next_text_begins(policy: Policy) -> None:
    leaf = policy.leaves[0]
    for severity in policy.severity_names:
        values = {
            "leaf": leaf,
            "severity": severity,
            "language": "zh",
            "seeds": ["一", "二"],
            "keyword": "首页",
        }
        assert render(policy, "writer_continuation", **values).endswith("- 一\n- 二\n-")
        assert render(policy, "keyword_continuation", **values).endswith('"首页")\n-')
    twin = render(policy, "contrast_continuation", leaf=leaf, pairs=leaf.pairs, text="x", language="en")
    assert twin.endswith("x ->")
