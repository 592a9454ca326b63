"""Thinking text apart from the answer, refusals by how an answer opens, cut answers ended at a sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.responses import Answer, is_refusal, split_thinking, tidy

TEXT = st.text(alphabet="ab \n.", max_size=12)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("plain answer ", Answer("", "plain answer", False)),
        ("<think>why</think>\n\nbecause", Answer("why", "because", False)),
        ("why\n</think>because", Answer("why", "because", False)),  # the template opened the block
        ("<think>never done", Answer("never done", "", True)),
        ("", Answer("", "", False)),
        ("<think></think>done", Answer("", "done", False)),
    ],
)
def test_thinking_stands_apart_from_the_answer(raw: str, answer: Answer):
    assert split_thinking(raw) == answer


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT)
def test_both_parts_come_back_whole(thinking: str, text: str):
    told = split_thinking(f"<think>{thinking}</think>{text}")
    assert (told.thinking, told.text, told.cut) == (thinking.strip(), text.strip(), False)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide this.",
        "I can’t do that for you.",
        "As an AI, there are limits.",
        "抱歉，我不能提供这些内容。",
        "Lo siento, no puedo ayudar con eso.",
        "Es tut mir leid, dabei helfe ich nicht.",
        "К сожалению, я не могу помочь.",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_a_refusal_is_known_by_its_opening(text: str):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, first you get the flour.",
        "",
        "The museum opens at nine. " * 10 + "I'm sorry, I cannot say more.",
    ],
)
def test_an_answer_is_no_refusal_even_if_it_regrets_later(text: str):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("One. Two and", "One."),
        ('He said "Stop!" and went', 'He said "Stop!"'),
        ("第一句。第二", "第一句。"),
        ("Version 1.5 is", "Version 1.5 is"),  # a point inside a number ends nothing
        ("no end at all", "no end at all"),
    ],
)
def test_a_cut_answer_ends_at_its_last_whole_sentence(text: str, ended: str):
    assert tidy(text, "length") == ended
    assert tidy(text, "stop") == text
