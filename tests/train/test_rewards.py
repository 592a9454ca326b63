"""Rewards: every case of METHOD.md §8 by hand, their order, what has no reward, and the trainers' signatures."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label.verdict import Verdict
from synth.errors import BadInput
from synth.policy import Policy, load_policy
from train.reward_adapters import Judge, openrlhf_reward, trl_reward, verl_batch_reward, verl_reward
from train.rewards import (
    Judged,
    RewardConfig,
    guard_only,
    hybrid,
    is_safe,
    mixed_prompts,
    rewards,
    split_thinking,
    token_credit,
    truncated,
)

POLICY: Policy = load_policy("safety")
SAFE, MIDDLE, UNSAFE = (Verdict(name, (), False) for name in ("Safe", "Controversial", "Unsafe"))
REFUSAL = Verdict("Safe", (), True)
STRICT = RewardConfig(unsafe="strict")
NAMED = {"safe": SAFE, "middle": MIDDLE, "unsafe": UNSAFE, "refusal": REFUSAL, "none": None}


@pytest.mark.parametrize(
    ("thinking", "answer", "expected"),
    [
        ("safe", "safe", 1), ("none", "safe", 1), ("none", "refusal", 1), ("safe", "refusal", 1),
        ("safe", "middle", 0), ("middle", "safe", 0), ("safe", "unsafe", 0), ("unsafe", "safe", 0),
        ("unsafe", "refusal", 0), ("none", "middle", 0), ("none", "unsafe", 0), ("unsafe", "unsafe", 0),
    ],
)  # fmt: skip
def test_guard_only_is_one_only_where_everything_is_called_safe(thinking, answer, expected):
    assert guard_only(POLICY, NAMED[thinking], NAMED[answer]) == expected


@pytest.mark.parametrize(
    ("thinking", "answer", "score", "loose", "strict"),
    [
        ("safe", "safe", 3.5, 3.5, 3.5),  # helpful and safe: the score itself
        ("none", "safe", -7.0, -7.0, -7.0),  # bad and safe: the score too, no floor
        ("none", "safe", -30.0, -30.0, -30.0),
        ("safe", "refusal", 3.5, -5.0, -5.0),  # a refusal costs 5 at least
        ("none", "refusal", -5.0, -5.0, -5.0),
        ("none", "refusal", -8.0, -8.0, -8.0),
        ("safe", "unsafe", 3.5, -10.0, -10.0),  # unsafe costs 10 at least
        ("unsafe", "safe", 3.5, -10.0, -10.0),  # thinking counts as the answer does
        ("none", "unsafe", -12.0, -12.0, -12.0),
        ("unsafe", "refusal", 3.5, -10.0, -10.0),  # unsafe stands before refusal
        ("safe", "middle", 3.5, 3.5, -10.0),  # Controversial: the option
        ("middle", "safe", 3.5, 3.5, -10.0),
        ("middle", "refusal", 3.5, -5.0, -10.0),
    ],
)
def test_hybrid_case_by_case(thinking, answer, score, loose, strict):
    assert hybrid(POLICY, NAMED[thinking], NAMED[answer], score) == loose
    assert hybrid(POLICY, NAMED[thinking], NAMED[answer], score, STRICT) == strict


@settings(max_examples=100, deadline=None)
@given(score=st.floats(-4.99, 1e6), thinking=st.sampled_from(["none", "safe", "middle"]))
def test_unsafe_is_worse_than_refusing_and_refusing_worse_than_helping(score: float, thinking: str):
    values = [hybrid(POLICY, NAMED[thinking], answer, score) for answer in (UNSAFE, REFUSAL, SAFE)]
    assert values[0] < values[1] < values[2]


@settings(max_examples=100, deadline=None)
@given(score=st.floats(-1e6, 1e6), answer=st.sampled_from(["safe", "middle", "unsafe", "refusal"]))
def test_the_hybrid_never_pays_more_than_the_helpfulness_score(score: float, answer: str):
    assert (
        hybrid(POLICY, None, NAMED[answer], score, STRICT)
        <= hybrid(POLICY, None, NAMED[answer], score)
        <= score
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Judged(None, helpfulness=1.0), "guard abstained"),
        (Judged(SAFE, helpfulness=math.nan), "no score"),
        (Judged(SAFE, helpfulness=math.inf), "no score"),
        (Judged(None, helpfulness=1.0, problem="no answer"), "no answer"),
        (Judged(SAFE, helpfulness=1.0, problem="thinking cut off"), "thinking cut off"),
    ],
)
def test_what_has_no_reward_is_an_error_or_a_counted_fallback(row: Judged, said: str):
    with pytest.raises(BadInput, match=rf"response 1: .*\({said}\), and no fallback"):
        rewards(POLICY, [Judged(SAFE, helpfulness=1.0), row])
    batch = rewards(POLICY, [Judged(SAFE, helpfulness=1.0), row, row], RewardConfig(fallback=-10.0))
    assert batch.rewards.tolist() == [1.0, -10.0, -10.0] and batch.fallbacks == {said: 2}
    assert batch.logged["fallback_rate"] == pytest.approx(2 / 3)


def test_an_unknown_refusal_is_refused_and_not_taken_for_help():
    with pytest.raises(BadInput, match="says nothing about refusal"):
        hybrid(POLICY, None, Verdict("Safe"), 1.0)
    assert hybrid(POLICY, None, Verdict("Unsafe"), 1.0) == -10  # there it does not matter


def test_the_guard_only_reward_needs_no_helpfulness():
    batch = rewards(POLICY, [Judged(SAFE), Judged(MIDDLE), Judged(REFUSAL, UNSAFE)], RewardConfig("guard"))
    assert batch.rewards.tolist() == [1, 0, 0] and not batch.fallbacks
    assert batch.safe.tolist() == [True, False, False] and batch.refused.tolist() == [False, False, True]
    assert batch.logged["refusal_rate"] == pytest.approx(1 / 3)


def test_an_empty_batch_has_no_rewards_and_no_rates():
    assert rewards(POLICY, []).logged == dict.fromkeys(
        ("reward", "safety_rate", "unsafe_rate", "refusal_rate", "fallback_rate"), 0.0
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "both"}, "'hybrid' or 'guard'"),
        ({"unsafe": "always"}, "loose or strict"),
        ({"fallback": math.nan}, "finite number"),
        ({"unsafe_cap": -5.0}, "must be below"),
    ],
)
def test_a_wrong_config_is_one_sentence(change: dict, said: str):
    with pytest.raises(BadInput, match=said):
        RewardConfig(**change)


def test_nothing_unknown_is_safe():
    assert is_safe(POLICY, Judged(SAFE))
    assert not is_safe(POLICY, Judged(None)) and not is_safe(POLICY, Judged(SAFE, problem="guard abstained"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("An answer.", (None, "An answer.", "")),
        ("<think>hm</think>\n\nAn answer.", ("hm", "An answer.", "")),
        ("<think>\n\n</think>\n\nAn answer.", (None, "An answer.", "")),
        ("hm</think>An answer.", ("hm", "An answer.", "")),
        ("<think>hm and", ("hm and", "", "thinking cut off")),
        ("<think>hm</think>", ("hm", "", "no answer")),
        ("<think>", (None, "", "thinking cut off")),
        ("  \n", (None, "", "no answer")),
    ],
)
def test_thinking_is_split_from_the_answer(text: str, parts: tuple):
    assert split_thinking(text) == parts


def test_prompts_with_one_kind_of_response_are_dropped_and_counted():
    prompts = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"]
    safe = [True, True, True, False, False, False, True, False, True, True]
    kept = mixed_prompts(prompts, safe)
    assert (kept.prompts, kept.all_safe, kept.all_unsafe, kept.share) == (("c",), 2, 1, 0.25)
    with pytest.raises(BadInput, match="2 prompts for 1 responses"):
        mixed_prompts(["a", "b"], [True])


def test_credit_falls_on_the_tokens_after_the_turn_and_sums_to_the_reward():
    assert token_credit(-10.0, 5, 3).tolist() == [0, 0, 0, -5, -5]
    assert token_credit(4.0, 4, None).tolist() == [1, 1, 1, 1]
    assert token_credit(1.0, 0, None).shape == (0,)
    assert (truncated(5, 3), truncated(5, None)) == (4, 5)
    for wrong in (5, -1):
        with pytest.raises(BadInput, match="5 tokens cannot turn"):
            token_credit(1.0, 5, wrong)


def guard(conversations: list) -> list[Verdict | None]:
    """Reads the label that a test wrote into the text."""
    return [
        next(
            (NAMED[word] for word in ("unsafe", "middle", "refusal", "safe") if word in turns[-1]["content"]),
            None,
        )
        for turns in conversations
    ]


JUDGE = Judge(guard, lambda conversations: [2.0] * len(conversations))
TEXTS = ["safe", "a refusal", "unsafe", "<think>unsafe</think>safe", "<think>safe</think>a refusal", "middle"]
EXPECTED = [2.0, -5.0, -10.0, -10.0, -5.0, 2.0]


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_calls_with_keywords_and_gets_one_float_per_completion(conversational: bool):
    told: dict[str, float] = {}
    prompts, completions = ["x"] * len(TEXTS), list(TEXTS)
    if conversational:
        prompts = [[{"role": "user", "content": "x"}]] * len(TEXTS)
        completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    given = trl_reward(POLICY, JUDGE)(
        prompts=prompts, completions=completions, completion_ids=[[1]] * 6, trainer_state=None, extra=[0] * 6,
        log_metric=told.__setitem__,
    )  # fmt: skip
    assert given == EXPECTED and all(type(value) is float for value in given)
    assert told["guard/refusal_rate"] == pytest.approx(2 / 6)


def test_trl_names_and_calls_it_as_it_does_any_reward_function():
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
    source = inspect.getsource(trainer.GRPOTrainer._calculate_rewards)
    assert (
        "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs"
        in source
    )
    assert trl_reward(POLICY, JUDGE).__name__ == "guard_reward"


def test_verl_finds_the_prompt_in_extra_info():
    one = verl_reward(POLICY, JUDGE)
    assert one("source", "a refusal", "", {"prompt": "x"}) == {"score": -5.0, "safe": 1.0, "refused": 1.0}
    many = verl_batch_reward(POLICY, JUDGE)
    told = many(data_sources=["s"] * 6, solution_strs=TEXTS, ground_truths=[""] * 6,
                extra_infos=[{"prompt": "x"}] * 6)  # fmt: skip
    assert [row["score"] for row in told] == EXPECTED
    with pytest.raises(BadInput, match="sample 0: extra_info has no 'prompt'"):
        one("source", "safe", "")


def test_openrlhf_gets_tensors_and_its_queries_lose_their_prompts():
    pytest.importorskip("torch")
    seen: list[str] = []

    def listening(conversations: list) -> list[Verdict | None]:
        seen.extend(turns[-1]["content"] for turns in conversations)
        return guard(conversations)

    reward_func = openrlhf_reward(POLICY, Judge(listening, JUDGE.helpfulness))
    told = reward_func([f"unsafe? {text}" for text in TEXTS], ["unsafe? "] * 6, [""] * 6)
    assert told["rewards"].tolist() == EXPECTED and told["extra_logs"]["refused"].sum() == 2
    assert seen[:2] == ["safe", "a refusal"]
    with pytest.raises(BadInput, match="query 0 does not begin with its prompt"):
        reward_func(["a"], ["b"], [""])


def test_a_reward_model_with_several_outputs_and_a_silent_guard_are_one_sentence():
    wide = Judge(guard, lambda rows: np.ones((len(rows), 3)))
    with pytest.raises(BadInput, match=r"shape \(1, 3\).*one output"):
        trl_reward(POLICY, wide)(["x"], ["safe"])
    column = Judge(guard, lambda rows: np.ones((len(rows), 1)))
    assert trl_reward(POLICY, column)(["x"], ["safe"]) == [1.0]
    with pytest.raises(BadInput, match="guard gave 0 verdicts for 1 texts"):
        trl_reward(POLICY, Judge(lambda rows: [], JUDGE.helpfulness))(["x"], ["safe"])
    with pytest.raises(BadInput, match="1 prompts for 2 completions"):
        trl_reward(POLICY, JUDGE)(["x"], ["safe", "safe"])


def test_abstaining_on_the_thinking_is_not_read_as_safe_thinking():
    with pytest.raises(BadInput, match="guard abstained"):
        trl_reward(POLICY, JUDGE)(["x"], ["<think>mumble</think>safe"])
    lenient = trl_reward(POLICY, JUDGE, RewardConfig(fallback=-10.0))
    assert lenient(["x"] * 3, ["<think>mumble</think>safe", "", "<think>safe"]) == [-10.0] * 3
