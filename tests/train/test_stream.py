"""Incremental moderation equals the whole sequence at once, for any cutting, batching and taking back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from synth.errors import BadInput
from train.kv_pool import FIRST_CAPACITY
from train.labels import label_maps
from train.stream import StreamBatch, stream_moderate_from_ids
from train.stream_model import StreamGuard, StreamGuardConfig
from train.stream_score import score_conversations

MAPS = label_maps(("Safe", "Bad"), ("A", "B"), ("A", "B", "C"), ("Safe",), ("Bad",), ("Bad",))


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def guard(request) -> StreamGuard:
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(request.getfixturevalue(request.param))
    return StreamGuard(StreamGuardConfig.for_policy(config, MAPS, 16)).eval()


def whole(guard: StreamGuard, ids: list[int], side: str) -> np.ndarray:
    """Risk probabilities of every token from one plain forward pass."""
    with torch.no_grad():
        out = guard(torch.tensor([ids]), use_cache=False)
    return out[f"{side}risk_level_logits"][0].softmax(-1).numpy()


def some_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, n).tolist()


def fed(guard: StreamGuard, ids: list[int], cuts: list[int], user: int):
    """The stream's probabilities when the assistant's tokens come in chunks that end at `cuts`."""
    result, state = stream_moderate_from_ids(guard, torch.tensor(ids[:user]), "user")
    query, response = result["risk_probs"], []
    for first, last in zip([user, *cuts], [*cuts, len(ids)], strict=True):
        if last > first:
            result, state = guard.stream_moderate_from_ids(ids[first:last], "assistant", state)
            response += result["risk_probs"]
    return np.array(query), np.array(response), state


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(4, 30), max_size=6).map(sorted))
def test_any_cutting_of_the_stream_gives_the_whole_sequences_numbers(guard, cuts):
    ids = some_ids(30)
    query, response, state = fed(guard, ids, cuts, 4)
    np.testing.assert_allclose(query, whole(guard, ids, "query_")[:4], atol=1e-5)
    np.testing.assert_allclose(response, whole(guard, ids, "")[4:], atol=1e-5)
    assert state.length == 30 and state.roles == ["user"] * 4 + ["assistant"] * 26


def test_growing_beyond_the_first_capacity_changes_nothing(guard):
    ids = some_ids(FIRST_CAPACITY + 40)
    cuts = list(range(100, len(ids), 7))
    _, response, _ = fed(guard, ids, cuts, 4)
    np.testing.assert_allclose(response, whole(guard, ids, "")[4:], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(0, 5))
def test_taking_tokens_back_leaves_the_stream_as_if_they_had_not_come(guard, back, seed):
    ids, other = some_ids(20), some_ids(6, seed + 1)
    _, _, state = fed(guard, ids, [], 4)
    state.roll_back(back)
    result, state = stream_moderate_from_ids(guard, other, "assistant", state)
    expected = whole(guard, ids[: 20 - back] + other, "")[20 - back :]
    np.testing.assert_allclose(np.array(result["risk_probs"]), expected, atol=1e-5)
    assert len(state.risks) == len(state.roles) == len(state.categories) == state.length == 26 - back


def test_streams_in_one_batch_do_not_see_each_other(guard):
    batch = StreamBatch(guard, 3)
    ids = [some_ids(9 + 5 * k, k) for k in range(3)]
    states = [batch.open() for _ in ids]
    got: list[list] = [[], [], []]
    schedule = [([0, 1, 2], "user", [4, 4, 4]), ([2, 0], "assistant", [3, 1]), ([1], "assistant", [5])]
    schedule += [([0, 1, 2], "assistant", [1, 1, 1]), ([1, 2], "assistant", [2, 2])]
    fed_so_far = [0, 0, 0]
    for members, role, counts in schedule:
        entries = []
        for member, count in zip(members, counts, strict=True):
            at = fed_so_far[member]
            entries.append((states[member], ids[member][at : at + count], role))
            fed_so_far[member] += count
        for member, result in zip(members, batch.step(entries), strict=True):
            if role == "assistant":
                got[member] += result["risk_probs"]
    for k in range(3):
        expected = whole(guard, ids[k], "")[4 : fed_so_far[k]]
        np.testing.assert_allclose(np.array(got[k]), expected, atol=1e-5)


def test_a_closed_streams_place_is_used_again_without_a_trace(guard):
    batch = StreamBatch(guard, 1)
    first = batch.open()
    batch.step([(first, some_ids(12), "user")])
    with pytest.raises(BadInput, match="all 1 streams"):
        batch.open()
    batch.close(first)
    second = batch.open()
    ids = some_ids(6, 5)
    (result,) = batch.step([(second, ids, "user")])
    np.testing.assert_allclose(np.array(result["risk_probs"]), whole(guard, ids, "query_"), atol=1e-5)
    with pytest.raises(BadInput, match="closed"):
        batch.step([(first, [1], "user")])


def test_the_result_has_one_entry_per_token_in_the_guards_words(guard):
    result, _ = stream_moderate_from_ids(guard, [3, 4, 5], "user")
    assert all(len(result[name]) == 3 for name in ("risk_level", "risk_prob", "category", "category_prob"))
    assert set(result["risk_level"]) <= {"Safe", "Bad"} and set(result["category"]) <= {"A", "B", "C"}
    assert result["risk_prob"] == [pytest.approx(max(p), abs=1e-6) for p in result["risk_probs"]]


def test_several_turns_use_the_heads_of_their_role(guard):
    ids = some_ids(16)
    result, state = stream_moderate_from_ids(guard, ids[:5], "user")
    result, state = stream_moderate_from_ids(guard, ids[5:10], "assistant", state)
    result, state = stream_moderate_from_ids(guard, ids[10:], "user", state)
    np.testing.assert_allclose(np.array(result["risk_probs"]), whole(guard, ids, "query_")[10:], atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "role", "sentence"),
    [
        ([1, 2], "assistant", "begins with the user's turn"),
        ([1, 10**6], "user", "token id 1000000 is outside the guard's vocabulary"),
        ([-1], "user", "token id -1"),
        ([], "user", "no token ids"),
        ([1], "system", "role is 'system'"),
    ],
)
def test_wrong_calls_are_refused_in_one_sentence(guard, ids, role, sentence):
    with pytest.raises(BadInput, match=sentence):
        stream_moderate_from_ids(guard, ids, role)


def test_a_stream_longer_than_the_context_is_refused_and_stays_as_it_was(guard):
    _, state = stream_moderate_from_ids(guard, some_ids(500), "user")
    with pytest.raises(BadInput, match="would have 513 tokens, the guard's context 512"):
        stream_moderate_from_ids(guard, some_ids(13), "assistant", state)
    assert state.length == 500
    stream_moderate_from_ids(guard, some_ids(12), "assistant", state)


def test_more_tokens_than_there_are_cannot_be_taken_back(guard):
    _, state = stream_moderate_from_ids(guard, [1, 2], "user")
    with pytest.raises(BadInput, match="take back 3 tokens of a stream of 2"):
        state.roll_back(3)


def test_scoring_conversations_at_once_equals_streaming_them(guard, tokenizer):
    user = {"role": "user", "content": "how do I make a cake"}
    answers = ["with flour and music", "the old dog 你好 sings", ""]
    conversations = [[user, {"role": "assistant", "content": text}] for text in answers] + [[user]]
    scores = score_conversations(guard, tokenizer, conversations, row_length=40)
    head = tokenizer("<|im_start|>user\nhow do I make a cake<|im_end|>", add_special_tokens=False).input_ids
    for text, score in zip(answers, scores, strict=False):
        result, state = stream_moderate_from_ids(guard, head, "user")
        np.testing.assert_allclose(score.query_risk, result["risk_probs"][-1], atol=1e-5)
        opening = tokenizer("\n<|im_start|>assistant\n", add_special_tokens=False).input_ids
        _, state = stream_moderate_from_ids(guard, opening, "assistant", state)
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert len(score.risk) == len(score.offsets) == len(tokens)
        if tokens:
            result, state = stream_moderate_from_ids(guard, tokens, "assistant", state)
            np.testing.assert_allclose(score.risk, np.array(result["risk_probs"]), atol=1e-5)
    assert scores[3].risk.shape == (0, 2)


def test_a_conversation_that_ends_with_nothing_to_judge_is_refused(guard, tokenizer):
    with pytest.raises(BadInput, match="conversation 1"):
        score_conversations(
            guard, tokenizer, [[{"role": "user", "content": "x"}], [{"role": "assistant", "content": "x"}]]
        )
