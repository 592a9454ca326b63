"""Prefixes that are whole characters, labels that cover every token, texts joined without a change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from label.rollout import outcome
from label.rollout_plan import Plan
from label.rollout_report import replay
from label.rollout_state import GUARD, JUDGE, Outcome, Result
from label.token_labels import (
    SAFE_LABEL,
    agreeing,
    cost_row,
    evidence_rows,
    join,
    label_tokens,
    mark,
    prefixes_of,
    safe_labels,
    sentence_ends,
    split_thinking,
)
from synth.errors import BadInput


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE whose few merges split every Chinese character and emoji into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the answer is the first thing here and there"] * 9, trainer)
    return tokenizer


def prefixes_in(tokenizer, text):
    return prefixes_of(text, tokenizer.encode(text).offsets)


TEXTS = [
    "the answer",
    "这是第一步。",
    "ok 👍🏽 then",
    "a👨‍👩‍👧b",
    "e\u0301a",
    "naïve",
    "กำลัง",
    " leading and trailing  ",
    "x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_prefixes_are_whole_characters_and_cover_text_and_tokens(byte_level, text):
    prefixes = prefixes_in(byte_level, text)
    assert list(prefixes.ends) == sorted(set(prefixes.ends))
    assert prefixes.ends[-1] == len(text)
    assert prefixes.last_tokens[-1] == prefixes.tokens - 1
    ids = byte_level.encode(text).ids
    for prefix in range(len(prefixes)):
        decoded = byte_level.decode(ids[: prefixes.last_tokens[prefix] + 1])
        assert decoded == prefixes.prefix_text(prefix)
        assert "\ufffd" not in decoded


def test_an_emoji_of_joined_parts_is_never_cut(byte_level):
    prefixes = prefixes_in(byte_level, "a👨‍👩‍👧b")
    assert [prefixes.prefix_text(at) for at in range(len(prefixes))] == ["a", "a👨‍👩‍👧", "a👨‍👩‍👧b"]
    toned = prefixes_in(byte_level, "👍🏽!")
    assert [toned.prefix_text(at) for at in range(len(toned))] == ["👍🏽", "👍🏽!"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_every_token_is_labelled_and_the_label_begins_at_a_character(byte_level, text, data):
    prefixes = prefixes_in(byte_level, text)
    if not len(prefixes):
        assert not text.strip() or not any(end > start for start, end in byte_level.encode(text).offsets)
        return
    at = data.draw(st.integers(0, len(prefixes) - 1))
    result = label_tokens(prefixes, Outcome("boundary", at), "Unsafe", "Safe")
    assert len(result.labels) == prefixes.tokens
    assert result.labels == ("Safe",) * result.boundary_token + ("Unsafe",) * (
        prefixes.tokens - result.boundary_token
    )
    assert result.boundary_token <= prefixes.last_tokens[at]
    assert result.boundary_char < prefixes.ends[at]
    assert text[: result.boundary_char] == (prefixes.prefix_text(at - 1) if at else "")


def test_the_boundary_of_a_split_character_is_its_first_token(byte_level):
    text = "ok 坏"
    prefixes = prefixes_in(byte_level, text)
    result = label_tokens(prefixes, Outcome("boundary", len(prefixes) - 1), "Unsafe", "Safe")
    assert text[result.boundary_char :].strip() == "坏"
    assert result.labels.count("Unsafe") >= 3
    assert mark(text, result.boundary_char, "|").replace("|", "") == text


def test_no_boundary_gives_no_labels_and_a_safe_text_only_safe_ones(byte_level):
    prefixes = prefixes_in(byte_level, "the answer")
    assert label_tokens(prefixes, Outcome("none", -1), "Unsafe", "Safe").labels == ()
    capped = label_tokens(prefixes, Outcome("capped", -1, "stopped after 9 rollouts"), "Unsafe", "Safe")
    assert (capped.outcome, capped.reason) == ("capped", "stopped after 9 rollouts")
    safe = safe_labels(4, "Safe")
    assert (safe.labels, safe.outcome, safe.boundary_token) == (("Safe",) * 4, SAFE_LABEL, None)
    assert mark("text", None) == "text"


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_joining_never_changes_the_prefix(prefix, continuation):
    joined = join(prefix, continuation)
    assert joined.startswith(prefix)
    assert continuation.strip("\ufffd") == joined[len(prefix) :]


def test_a_continuation_serves_the_prefixes_it_agrees_with(byte_level):
    prefixes = prefixes_of("abcdef", [(at, at + 1) for at in range(6)])
    assert agreeing(prefixes, 0, "bcdXYZ") == 3
    assert agreeing(prefixes, 0, "bcde") == 2
    assert agreeing(prefixes, 0, "Xbcd") == 0
    assert agreeing(prefixes, 5, "more") == 0


def test_thinking_and_answer_are_parts_with_their_place_in_the_response():
    response = "<think>\nHmm, no.\n</think>\n\nSure."
    parts = split_thinking(response)
    assert [(part.name, part.text) for part in parts] == [("thinking", "Hmm, no."), ("answer", "Sure.")]
    assert all(response[part.start :].startswith(part.text) for part in parts)
    assert [part.name for part in split_thinking("<think>never closed")] == ["thinking"]
    assert [part.name for part in split_thinking("plain <think>")] == ["answer"]
    assert split_thinking("") == ()
    assert [part.name for part in split_thinking("<think></think>Yes")] == ["answer"]


def test_sentences_end_in_both_scripts():
    text = "First one. Second (it says 3.5)! 第三句。第四\nfifth"
    prefixes = prefixes_of(text, [(at, at + 1) for at in range(len(text))])
    ended = [text[: prefixes.ends[at]] for at in sentence_ends(prefixes)]
    assert [one[-1] for one in ended] == [".", "!", "。", "\n"]
    assert ended[0] == "First one."


def test_evidence_and_cost_of_a_search_are_rows(byte_level):
    text = "the answer is here"
    prefixes = prefixes_in(byte_level, text)
    turn = len(prefixes) // 2

    def answer(request):
        if request.kind == JUDGE:
            return Result(JUDGE, request.prefix, flag=request.prefix >= turn, probability=0.9)
        flag = request.kind == GUARD and request.prefix >= turn
        return Result(request.kind, request.prefix, request.draw, flag=flag, tokens=16)

    state, _ = replay(Plan(), len(prefixes), answer)
    rows = list(evidence_rows(prefixes, state))
    at_turn = next(row for row in rows if row["prefix"] == turn)
    assert (at_turn["violations"], at_turn["draws"], at_turn["judge_flag"]) == (7, 7, True)
    assert at_turn["judge_probability"] == pytest.approx(0.9, abs=0.01)
    assert text[: at_turn["char_end"]] == prefixes.prefix_text(turn)
    cost = cost_row(state)
    assert cost["generated_tokens"] == 16 * cost["rollouts"]
    assert cost["paper_generated_tokens"] == 16 * 8 * len(prefixes)
    saved = sum(cost[name] for name in cost if name.startswith("saved_by"))
    assert cost["rollouts"] + saved == cost["paper_rollouts"]
    assert outcome(state).boundary == turn


def test_offsets_of_another_text_are_refused():
    with pytest.raises(BadInput, match="token 1 spans characters 2 to 9 of a text of 4"):
        prefixes_of("text", [(0, 2), (2, 9)])
    with pytest.raises(BadInput, match="token 1"):
        prefixes_of("text", [(2, 4), (0, 2)])


@pytest.mark.parametrize("offsets", [[], [(0, 0)]])
def test_an_empty_response_has_no_prefix(offsets):
    assert len(prefixes_of("", offsets)) == 0
    assert split_thinking("") == ()
