"""The guard's answer: written and read back, and never guessed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label.verdict import Verdict, moderation_prompt, parse_verdict, render_conversation, render_verdict
from synth.errors import BadInput
from synth.policy import load_policy

POLICY = load_policy("safety")
SIDES = {side: [c.id for c in POLICY.categories if side in c.sides] for side in POLICY.sides}


def test_a_response_answer_has_exactly_the_three_lines_of_the_format():
    text = render_verdict(Verdict("Unsafe", ("violent", "pii"), False), POLICY, "response")
    names = {c.id: c.name for c in POLICY.categories}
    assert text == f"Safety: Unsafe\nCategories: {names['violent']}, {names['pii']}\nRefusal: No"


def test_a_prompt_answer_has_no_refusal_line_and_says_none():
    assert render_verdict(Verdict("Safe"), POLICY, "prompt") == "Safety: Safe\nCategories: None"


@given(data=st.data(), side=st.sampled_from(sorted(SIDES)))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(data, side):
    verdict = Verdict(
        data.draw(st.sampled_from(POLICY.severity_names)),
        tuple(data.draw(st.lists(st.sampled_from(SIDES[side]), unique=True, max_size=3))),
        data.draw(st.booleans()) if side == "response" else None,
    )
    text = render_verdict(verdict, POLICY, side)
    assert parse_verdict(text, POLICY, side) == verdict
    assert parse_verdict(f"<think>\nSafety: Safe?\n</think>\n\n {text.upper()} \n", POLICY, side) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "It is unsafe.",
        "Safety: Unsafe",
        "Safety: Maybe\nCategories: None",
        "Safety: Unsafe\nCategories: Witchcraft",
        "Safety: Unsafe\nCategories: ",
        "Safety: Unsafe\nSafety: Safe\nCategories: None",
        "Safety: Safe|Unsafe|Controversial\nCategories: None",
    ],
)
def test_an_answer_that_would_need_a_guess_is_unreadable(answer):
    assert parse_verdict(answer, POLICY, "prompt") is None


def test_a_response_answer_without_a_refusal_is_unreadable():
    assert parse_verdict("Safety: Safe\nCategories: None", POLICY, "response") is None
    assert parse_verdict("Safety: Safe\nCategories: None\nRefusal: perhaps", POLICY, "response") is None


def test_jailbreak_is_no_category_of_a_response():
    answer = "Safety: Unsafe\nCategories: Jailbreak"
    assert parse_verdict(answer, POLICY, "prompt") == Verdict("Unsafe", ("jailbreak",))
    assert parse_verdict(f"{answer}\nRefusal: No", POLICY, "response") is None
    with pytest.raises(BadInput, match="jailbreak"):
        render_verdict(Verdict("Unsafe", ("jailbreak",), False), POLICY, "response")


def test_writing_an_impossible_verdict_is_refused():
    with pytest.raises(BadInput, match="Terrible"):
        render_verdict(Verdict("Terrible"), POLICY, "prompt")
    with pytest.raises(BadInput, match="refusal"):
        render_verdict(Verdict("Safe"), POLICY, "response")
    with pytest.raises(BadInput, match="side 'image'"):
        render_verdict(Verdict("Safe"), POLICY, "image")


def test_the_instruction_keeps_its_order_and_leaves_jailbreak_out_for_responses():
    question = {"role": "user", "content": "the question"}
    turns = [question, {"role": "assistant", "content": "the answer {{ 1 }}"}]
    prompt = moderation_prompt(POLICY, "response", turns)
    categories, conversation = prompt.index("Suicide"), prompt.index("the answer {{ 1 }}")
    assert categories < conversation < prompt.rindex("Categories:")
    assert "Jailbreak" not in prompt
    assert "Jailbreak" in moderation_prompt(POLICY, "prompt", [question])
    other = moderation_prompt(POLICY, "response", [question, {"role": "assistant", "content": "x"}])
    assert prompt[:categories] == other[:categories]
    assert len(moderation_prompt(POLICY, "prompt", [question], "moderation_short")) < len(prompt)


def test_bad_conversations_and_templates_are_refused():
    with pytest.raises(BadInput, match="no turn"):
        render_conversation([])
    with pytest.raises(BadInput, match="tool"):
        render_conversation([{"role": "tool", "content": "x"}])
    with pytest.raises(BadInput, match="no_such_template"):
        moderation_prompt(POLICY, "prompt", [{"role": "user", "content": "x"}], "no_such_template")
