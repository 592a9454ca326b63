"""evaluation on hand-made gold rows: honest figures for every system, strict and loose, on held-out rows alone."""

import pytest

from ray_jobs import evaluation
from ray_jobs.engine import Model, Scores
from ray_jobs.evaluation import EVALUATION, PREDICTIONS, EvaluationConfig
from ray_jobs.gold import GOLD
from ray_jobs.step.units import to_table
from ray_jobs.votes import SAMPLE

ROLES = {
    "gen_guard": Model("local", "gen", "gen_guard"),
    "gen_guard_control": Model("local", "control", "gen_guard"),
    "stream_guard": Model("local", "stream", "stream_guard"),
}


def gold_row(id: str, severity: str, side: str, text: str, split: str = "test") -> dict:
    prompt, response = (text, "") if side == "prompt" else ("Tell me.", text)
    return {"id": id, "parent_id": "", "group_id": id, "side": side, "prompt": prompt, "history": [],
            "response": response, "thinking": "", "severity": severity, "categories": [], "language": "en",
            "split": split}  # fmt: skip


GOLD_ROWS = [
    gold_row("p1", "Unsafe", "prompt", "a bad thing"),
    gold_row("p2", "Safe", "prompt", "a nice thing"),
    gold_row("p3", "Controversial", "prompt", "a so-so thing"),
    gold_row("r1", "Unsafe", "response", "first bad bad then"),
    gold_row("r2", "Safe", "response", "only one bad word"),
    gold_row("seen", "Unsafe", "prompt", "a bad thing that was fitted on", "fit"),
]
TRAINING = [("bad things", "Unsafe"), ("bad and worse", "Unsafe"), ("nice things", "Safe"), ("nicer still", "Safe"),
            ("nice again", "Safe")]  # fmt: skip


@pytest.fixture
def evaluate(put, make_work, safety, store):
    def go(gold=GOLD_ROWS, roles=ROLES, oracle=True):
        training = [
            dict.fromkeys(SAMPLE.names) | {"id": f"{side}{i}", "parent_id": "", "group_id": f"t{i}", "side": side,
            "prompt": text, "history": [], "response": text, "severity": severity}
            for side in ("prompt", "response") for i, (text, severity) in enumerate(TRAINING)
        ]  # fmt: skip
        for row in training:
            del row["digest"]
        versions = {
            "gold": put(store, "gold", GOLD, gold),
            "distilled": put(store, "distilled", SAMPLE, training),
        }
        work = make_work(safety, store, EvaluationConfig(), roles, versions=versions)
        if oracle and "gen_guard" in roles:
            work.engines.get("gen_guard").score = lambda prompts, labels: [
                knows(gold, prompt[0]["content"], names)
                for prompt, names in zip(prompts, labels, strict=True)
            ]
        return evaluation.run(work)

    return go


def knows(gold: list[dict], text: str, labels: tuple[str, ...]) -> Scores:
    """A guard that knows the gold labels."""
    (row,) = [row for row in gold if (row["response"] or row["prompt"]) in text and row["split"] == "test"]
    return Scores(tuple(float(label == f"Safety: {row['severity']}") for label in labels), False, 1)


def figures(output) -> dict[tuple[str, str, str], dict]:
    to_table(output.tables["evaluation"], EVALUATION)
    return {(row["system"], row["side"], row["reading"]): row for row in output.tables["evaluation"]}


def test_every_system_is_scored_per_side_and_reading_on_held_out_rows_alone(evaluate):
    output = evaluate()
    told = figures(output)
    systems = {"gen_guard", "gen_guard_control", "stream_guard", "tfidf", "majority"}
    assert set(told) == {
        (s, side, r) for s in systems for side in ("prompt", "response") for r in ("strict", "loose")
    }
    assert {row["rows"] for key, row in told.items() if key[1] == "prompt"} == {3}
    predicted = to_table(output.tables["predictions"], PREDICTIONS).to_pylist()
    assert "seen" not in {row["parent_id"] for row in predicted} and len(predicted) == 5 * 5


def test_a_perfect_guard_scores_one_and_controversial_counts_in_the_strict_reading_alone(evaluate):
    told = figures(evaluate())
    strict, loose = told["gen_guard", "prompt", "strict"], told["gen_guard", "prompt", "loose"]
    assert (strict["f1"], loose["f1"]) == (1.0, 1.0)
    assert (strict["violating"], loose["violating"]) == (2, 1)
    majority = told["majority", "prompt", "strict"]
    assert (majority["f1"], majority["recall"], majority["high"]) == (0.0, 0.0, 0.0)


def test_a_streamed_response_is_flagged_by_two_tokens_running(evaluate):
    told = figures(evaluate())["stream_guard", "response", "strict"]
    assert (told["precision"], told["recall"]) == (1.0, 1.0)  # "only one bad word" is not flagged
    prompts = figures(evaluate())["stream_guard", "prompt", "loose"]
    assert prompts["f1"] == 1.0


def test_the_baseline_learns_from_the_training_rows(evaluate):
    told = figures(evaluate())
    assert told["tfidf", "prompt", "loose"]["f1"] == 1.0


def test_systems_that_are_not_bound_are_left_out(evaluate):
    assert {system for system, _, _ in figures(evaluate(roles={}))} == {"tfidf", "majority"}


def test_a_row_that_a_guard_cannot_answer_is_quarantined_and_not_counted_as_safe(evaluate):
    broken = [*GOLD_ROWS, gold_row("p4", "Unsafe", "prompt", "poison here")]
    output = evaluate(broken, {"gen_guard_control": ROLES["gen_guard_control"]})
    (lost,) = output.failed
    assert (lost.row, lost.reason) == ("p4", "gen_guard_control: the engine refused this row")
    told = figures(output)
    assert told["gen_guard_control", "prompt", "strict"]["rows"] == 3
    assert told["majority", "prompt", "strict"]["rows"] == 4


def test_calls_of_a_guard_that_made_room_for_the_next_are_counted(monkeypatch):
    from ray_jobs.engine import Client, Engines

    monkeypatch.setattr("ray_jobs.engine.actor_name", lambda model: model.name)
    engines = Engines({})
    for name in ("gone", "kept"):
        engines.clients[name] = Client(None, Model("local", name, "base"))
        engines.clients[name].usage = {"calls": 3, "prompt_tokens": 5, "completion_tokens": 0}
    engines.shutdown(["kept"])
    assert list(engines.clients) == ["kept"]
    spent = {"calls": 3, "prompt_tokens": 5, "completion_tokens": 0}
    assert engines.take_usage() == {"gone": spent, "kept": spent}
    assert engines.take_usage() == {}
