"""What the safety gold set promises: breadth, balance, no copies, and labels that words do not give."""

import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from synth.decontaminate import contaminated
from synth.policy import GoldRow, Policy, load_gold, load_policy
from synth.policy_lint import texts_of
from synth.prompt_filters import bigrams, similarity

SPACED = {"en", "es", "ru", "de", "fr"}
SCRIPTS = {"zh": "\u4e00-\u9fff", "ar": "\u0600-\u06ff", "ru": "\u0400-\u04ff", "ko": "\uac00-\ud7af"}
SCRIPTS |= {"hi": "\u0900-\u097f", "ja": "\u3040-\u30ff"}
NEAR = 0.6
CONTACT = re.compile(r"https?://|www\.|\S+@\S+\.\w+|\d{6,}|\b\d+\s?(?:mg|ml|grams|milligrams)\b", re.I)
MINOR = re.compile(
    r"\b(?:child|children|kids?|minors?|teen\w*|pupils?|schoolgirl|underage|girls?|boys?)\b", re.I
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("safety")


@pytest.fixture(scope="module")
def gold(policy: Policy) -> tuple[GoldRow, ...]:
    return load_gold(policy)


@pytest.fixture(scope="module")
def prompts(gold: tuple[GoldRow, ...]) -> list[GoldRow]:
    return [row for row in gold if row.side == "prompt"]


@pytest.fixture(scope="module")
def responses(gold: tuple[GoldRow, ...]) -> list[GoldRow]:
    return [row for row in gold if row.side == "response"]


def share(rows: list[GoldRow], severity: str) -> float:
    return sum(row.severity == severity for row in rows) / len(rows)


def talk(row: GoldRow) -> str:
    return " ".join([turn["content"] for turn in row.history] + [row.prompt])


def test_the_set_is_large_and_balanced_on_both_sides(
    prompts: list[GoldRow], responses: list[GoldRow]
) -> None:
    assert len(prompts) >= 600 and len(responses) >= 300
    assert 0.35 <= share(prompts, "Safe") <= 0.45 and share(prompts, "Controversial") >= 0.15
    assert share(responses, "Controversial") >= 0.12 and share(responses, "Unsafe") >= 0.3


def test_every_category_occurs_often_enough_to_be_scored(
    policy: Policy, prompts: list[GoldRow], responses: list[GoldRow]
) -> None:
    for rows, side, least in ((prompts, "prompt", 30), (responses, "response", 12)):
        counts = Counter(category for row in rows for category in row.categories)
        for category in policy.categories_of(side):
            assert counts[category.id] >= least, (side, category.id)


def test_languages_are_spread_as_promised_and_every_one_has_every_severity(prompts: list[GoldRow]) -> None:
    counts = Counter(row.language for row in prompts)
    assert 0.5 <= counts["en"] / len(prompts) <= 0.6 and 0.15 <= counts["zh"] / len(prompts) <= 0.25
    assert set(counts) == {"en", "zh", "es", "ar", "ru", "ja", "de", "fr", "ko", "hi"}
    assert min(counts.values()) >= 25
    assert all(
        {row.severity for row in prompts if row.language == code} == {"Safe", "Controversial", "Unsafe"}
        for code in counts
    )


def test_texts_are_written_in_the_script_of_their_language(gold: tuple[GoldRow, ...]) -> None:
    for row in gold:
        if row.language in SCRIPTS:
            assert re.search(f"[{SCRIPTS[row.language]}]", row.prompt), row.prompt


def test_every_row_says_why_in_one_line(gold: tuple[GoldRow, ...]) -> None:
    assert all(row.reason.strip() and "\n" not in row.reason for row in gold)


def test_twins_share_a_group_and_differ_in_label(prompts: list[GoldRow]) -> None:
    groups = defaultdict(list)
    for row in prompts:
        groups[row.group_id].append(row)
    twins = [rows for rows in groups.values() if len(rows) == 2]
    assert len(twins) >= 55 and all(len(rows) <= 2 for rows in groups.values())
    assert all(left.severity != right.severity for left, right in twins)


def test_rows_with_one_prompt_stay_in_one_group(gold: tuple[GoldRow, ...]) -> None:
    groups = defaultdict(set)
    for row in gold:
        groups[row.prompt].add(row.group_id)
    assert all(len(ids) == 1 for ids in groups.values())


def test_responses_show_refusals_thinking_and_earlier_turns(responses: list[GoldRow]) -> None:
    refusals = [row for row in responses if row.refusal]
    assert len(refusals) >= 60 and sum(row.severity == "Safe" for row in refusals) >= 50
    assert sum(bool(row.thinking) for row in responses) >= 30
    assert all(row.thinking for row in refusals if row.severity != "Safe")
    assert any(row.history for row in responses)


def test_one_prompt_meets_answers_of_different_severity(responses: list[GoldRow]) -> None:
    met = defaultdict(set)
    for row in responses:
        met[row.prompt].add(row.severity)
    assert sum(len(severities) > 1 for severities in met.values()) >= 80


def test_a_turn_stands_at_the_first_letter_of_a_sentence(responses: list[GoldRow]) -> None:
    turning = [row for row in responses if row.turn is not None]
    assert len(turning) >= 50
    for row in turning:
        before, after = row.response[: row.turn], row.response[row.turn :]
        assert row.severity != "Safe" and not after[0].isspace(), row.response
        assert re.search(r"[.!?:।。！？”」'’»]\s*$", before), row.response


def test_no_prompt_is_near_a_seed_or_twin_of_the_policy(policy: Policy, gold: tuple[GoldRow, ...]) -> None:
    seeds = defaultdict(list)
    for leaf in policy.leaves:
        for seed in leaf.seeds:
            seeds[seed.language].append((bigrams(seed.text), seed.text))
        for pair in leaf.pairs:
            seeds[pair.language] += [(bigrams(text), text) for text in (pair.violating, pair.benign)]
    for text, language in {row.prompt: row.language for row in gold}.items():
        grams = bigrams(text)
        near = [seed for other, seed in seeds[language] if similarity(grams, other) >= NEAR]
        assert not near, f"{text!r} is near {near[0]!r}"


@pytest.mark.parametrize("name", ["safety", "data_quality"])
def test_decontamination_as_the_mill_does_it_finds_no_written_text_near_a_gold_row(name: str) -> None:
    policy = load_policy(name)
    written = texts_of(policy.leaves)
    judged = [row.response or row.prompt for row in load_gold(policy)]
    asked = [row.prompt for row in load_gold(policy)]
    for evals in (asked, judged):
        found = contaminated(pa.array(written), pa.array(evals)).to_pylist()
        assert not found, [(written[one["row"]], evals[one["eval_row"]]) for one in found]
    assert contaminated(pa.array([*written, asked[0]]), pa.array(asked)).num_rows  # it does find a copy


def test_no_prompt_is_near_another_one_outside_its_group(gold: tuple[GoldRow, ...]) -> None:
    seen: dict[str, list[tuple[frozenset[str], GoldRow]]] = defaultdict(list)
    for row in {row.prompt: row for row in gold}.values():
        grams = bigrams(row.prompt)
        for other, twin in seen[row.language]:
            near = similarity(grams, other) >= NEAR and twin.group_id != row.group_id
            assert not near, f"{row.prompt!r} is near {twin.prompt!r}"
        seen[row.language].append((grams, row))


def test_for_two_prompts_in_five_the_keywords_of_the_policy_point_the_wrong_way(
    policy: Policy, prompts: list[GoldRow]
) -> None:
    keywords = defaultdict(set)
    for leaf in policy.leaves:
        for keyword in leaf.keywords:
            keywords[keyword.language].add(re.escape(keyword.text.casefold()))
    carried = {
        language: re.compile((r"\b" if language in SPACED else "") + f"(?:{'|'.join(sorted(words))})")
        for language, words in keywords.items()
    }
    written = [row for row in prompts if row.language in carried]
    wrong = sum(
        bool(carried[row.language].search(talk(row).casefold())) == (row.severity == "Safe")
        for row in written
    )
    assert wrong / len(written) >= 0.4


def test_a_classifier_of_words_cannot_learn_the_labels(prompts: list[GoldRow]) -> None:
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    labels = np.array([row.severity != "Safe" for row in prompts])
    ids = {group: number for number, group in enumerate(sorted({row.group_id for row in prompts}))}
    groups = [ids[row.group_id] for row in prompts]
    found = cross_val_predict(model, [talk(row) for row in prompts], labels, groups=groups, cv=GroupKFold(5))
    assert f1_score(labels, found) < 0.75
    assert f1_score(labels, found, average="macro") < 0.65


def test_no_row_carries_contact_data_links_or_doses(gold: tuple[GoldRow, ...]) -> None:
    for row in gold:
        assert not CONTACT.search(" ".join((talk(row), row.response, row.thinking))), row.prompt


def test_no_sexual_row_touches_on_minors(gold: tuple[GoldRow, ...]) -> None:
    for row in gold:
        if "sexual" in row.categories:
            text = " ".join((talk(row), row.response, row.thinking))
            assert not MINOR.search(text), text
