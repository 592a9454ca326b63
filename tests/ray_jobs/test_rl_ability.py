"""General ability by lm-eval: its questions, its figures as rows, and a real run on a tiny model without a network."""

import math
import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", exc_type=ImportError)

from ray_jobs import rl_ability
from ray_jobs.ability import questions
from ray_jobs.commands_rl import lines
from ray_jobs.rl_ability import RLAbilityConfig, figures, measured
from synth.errors import BadInput


def test_a_question_has_four_answers_and_gives_none_of_them_away():
    for made in (questions.facts(), questions.sums()):
        rows = made["test"].to_list()
        assert len({row["question"] for row in rows}) == len(rows) >= 60
        for row in rows:
            assert len(set(row["choices"])) == 4
        assert {row["right"] for row in rows} == {0, 1, 2, 3}
    for row in questions.facts()["test"]:
        assert questions.mark(row, [row["question"]]) == {"acc": 0.0}, row


def test_sums_are_right_and_the_others_wrong():
    for row in questions.sums()["test"]:
        a, sign, b, _ = row["question"].split()
        result = int(a) + int(b) * (1 if sign == "+" else -1)
        assert [int(choice) == result for choice in row["choices"]].index(True) == row["right"]


def test_questions_are_the_same_every_time_and_pairs_differ():
    for make in (questions.facts, questions.sums, questions.grammar):
        assert make()["test"].to_list() == make()["test"].to_list()
    pairs = questions.grammar()["test"].to_list()
    assert len({row["good"] for row in pairs}) == len(pairs) == 144
    good = {row["good"] for row in pairs}
    assert not any(row["bad"] in good for row in pairs)


def test_an_open_answer_counts_when_it_holds_the_right_word():
    row = {"choices": ["oxygen", "neon"], "right": 0}
    told = {"People need Oxygen.": 1, "I'm sorry, I can't help with that.": 0, "neon": 0, "deoxygenated": 0}
    assert {text: questions.mark(row, [text])["acc"] for text in told} == told


def test_results_become_rows_with_their_errors():
    told = {
        "results": {"b": {"alias": "b", "exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"},
                    "a": {"acc,none": 1, "acc_stderr,none": 0.25}},
        "n-samples": {"a": {"original": 9, "effective": 4}},
    }  # fmt: skip
    first, second = figures(told)
    assert first == {"task": "a", "measure": "acc", "samples": 4, "value": 1.0, "stderr": 0.25}
    assert (second["task"], second["measure"], second["value"]) == ("b", "exact_match,strict", 0.5)
    assert math.isnan(second["stderr"])
    printed = list(lines({"prompts": {"share": 1.0, "sampled": 1, "kept": {}, "dropped": {}},
                          "ability": [{"system": "after", **first}, {"system": "before", **first}]}))  # fmt: skip
    assert [line.split()[:3] for line in printed[1:]] == [["a", "acc", "before"], ["a", "acc", "after"]]


def test_no_task_and_no_harness_are_told_before_anything_starts(monkeypatch):
    with pytest.raises(BadInput, match="none is named"):
        RLAbilityConfig(tasks=(), chat=())
    monkeypatch.setattr(rl_ability.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'guardmill\[ability\]'"):
        rl_ability.run(SimpleNamespace())


@pytest.mark.slow
def test_a_tiny_model_is_measured_without_a_network_and_what_is_missing_is_named(tiny_models, monkeypatch):
    def no_network(*_):
        raise OSError("no network in this test")

    policy = str(tiny_models["policy"])
    monkeypatch.setattr(socket.socket, "connect", no_network)
    rows, problem = measured(policy, RLAbilityConfig(limit=8, cpus=1))
    assert problem == ""
    assert {row["task"]: row["samples"] for row in rows} == {
        f"guardmill_{name}": 8 for name in ("facts", "facts_open", "grammar", "sums")
    }
    by_task = {row["task"]: row for row in rows}
    assert all(0 <= row["value"] <= 1 for row in rows)
    assert by_task["guardmill_facts_open"]["value"] == 0  # noise holds no right word
    assert measured(policy, RLAbilityConfig(limit=8, cpus=1)) == (rows, "")
    assert measured(policy, RLAbilityConfig(tasks=("guardmill_x",))) == (
        [],
        "lm-eval has no task 'guardmill_x'",
    )
