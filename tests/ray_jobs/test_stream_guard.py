"""What the streaming guard learns from a labelled row."""

import pytest

from ray_jobs.gen_guard import GuardConfig, balanced
from ray_jobs.stream_guard import stream_examples
from synth.errors import BadInput


def row(**fields):
    plain = {"id": "r", "group_id": "g", "side": "response", "prompt": "q", "history": [], "response": "an answer",
             "thinking": "", "severity": "Unsafe", "categories": ["violent"], "language": "en", "leaf": "x",
             "source": "generated"}  # fmt: skip
    return plain | fields


def test_thinking_text_and_answer_are_examples_of_their_own(safety):
    onsets = {("r", "answer"): 3, ("r", "thinking"): 0}
    made = list(stream_examples(safety, row(thinking="a thought"), onsets))
    assert [(one["response"], one["onset"]) for one in made] == [("a thought", 0), ("an answer", 3)]
    one_text = row(response="<think>\na thought\n</think>\n\nan answer")
    assert [one["response"].strip() for one in stream_examples(safety, one_text, onsets)] == [
        "a thought",
        "an answer",
    ]


def test_a_flagged_text_without_an_onset_trains_nothing_and_a_safe_one_all_of_it(safety):
    assert [one["response"] for one in stream_examples(safety, row(thinking="t"), {("r", "answer"): 3})] == [
        "an answer"
    ]
    safe = list(stream_examples(safety, row(severity="Safe", categories=[], thinking="t"), {}))
    assert [(one["response"], one["onset"]) for one in safe] == [("t", None), ("an answer", None)]
    (asked,) = stream_examples(safety, row(side="prompt", response=""), {})
    assert asked["query_risk"] == "Unsafe" and "response_risk" not in asked


def test_classes_for_balancing_are_the_fields_that_the_recipe_names():
    assert balanced(row(), GuardConfig()) == {"label": "response:Unsafe"}
    assert balanced(row(), GuardConfig(balance_by=("language", "category"))) == {"label": "en:violent"}
    assert balanced(row(categories=[]), GuardConfig(balance_by=("category",))) == {"label": ""}
    with pytest.raises(BadInput, match="balance_by names 'mood'"):
        balanced(row(), GuardConfig(balance_by=("mood",)))
