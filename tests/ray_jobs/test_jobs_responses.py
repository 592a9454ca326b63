"""responses, dedup on small tables: what is kept, what is dropped and why, what stays together."""

from dataclasses import replace

import pyarrow as pa
import pytest

from ray_jobs import dedup, responses
from ray_jobs.dedup import DedupJobConfig
from ray_jobs.engine import Completion, Model
from ray_jobs.gold import GOLD
from ray_jobs.responses import ResponsesConfig
from ray_jobs.seeds import PROMPT, RESPONSE

ROLES = {
    "responder": Model("local", "chat", "instruct"),
    "base_writer": Model("local", "base", "base"),
    "reasoner": Model("local", "thinks", "reasoning"),
}


def prompt(id: str, text: str, **fields) -> dict:
    given = {"id": id, "parent_id": "", "group_id": id, "text": text, "history": [], "language": "en",
             "leaf": "violent.weapons", "category": "violent", "intended": "Unsafe", "human": "", "source": "seed",
             "keyword": "", "pair_id": ""}  # fmt: skip
    return given | fields


def as_table(schema: pa.Schema, rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in schema if f.name != "digest"]))


@pytest.fixture
def answer(make_work, safety, store):
    """answer(rows, config, says, …): the step's output; `says` maps a role to what its model answers."""

    def go(rows, config=None, says=None, written=(), roles=ROLES, **fields):
        tables = {"deduped": as_table(PROMPT, rows), "written_responses": as_table(RESPONSE, list(written))}
        work = make_work(safety, store, config or ResponsesConfig(), roles, rows=tables, **fields)
        for role, text in (says or {}).items():
            done = text if isinstance(text, Completion) else Completion(text, "stop", 1, 1)
            work.engines.get(role)._written = lambda _text, _seed, done=done: done
        go.work = work
        return responses.run(work)

    return go


def test_every_bound_role_answers_every_prompt_and_samples_are_told_apart(answer):
    output = answer([prompt("p1", "May I?"), prompt("p2", "Or may I not?")], ResponsesConfig(samples=2))
    rows = output.tables["responses"]
    assert len(rows) == len({row["id"] for row in rows}) == 2 * 3 * 2
    assert {(row["parent_id"], row["role"]) for row in rows} == {
        (p, role) for p in ("p1", "p2") for role in ROLES
    }
    as_table(RESPONSE, rows)  # of the declared columns


def test_a_chat_model_gets_messages_and_a_base_model_exchanges_to_continue(answer, safety):
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    answer([prompt("p1", "May I now?", history=history)])
    (messages,), (text,) = (answer.work.engines.get(role).asked for role in ("responder", "base_writer"))
    assert messages == [*history, {"role": "user", "content": "May I now?"}]
    assert isinstance(text, str) and "May I now?" in text
    shown = safety.leaf("violent.weapons").sketches[0]
    assert shown.benign in text or shown.violating in text


def test_thinking_is_kept_apart_and_refusals_are_guessed(answer):
    thought = "<think>Is it fine?</think>I'm sorry, I cannot help with that."
    said = {"reasoner": thought, "responder": "Sure, it is fine."}
    roles = {role: ROLES[role] for role in said}
    rows = {
        row["role"]: row
        for row in answer([prompt("p1", "May I?")], says=said, roles=roles).tables["responses"]
    }
    assert (rows["reasoner"]["thinking"], rows["reasoner"]["refusal"]) == ("Is it fine?", True)
    assert rows["reasoner"]["text"].startswith("I'm sorry") and rows["responder"]["refusal"] is False


def test_short_and_unfinished_answers_are_dropped_with_their_reasons(answer):
    cut = Completion("One whole sentence stands. And half", "length", 1, 1)
    said = {"responder": "No.", "reasoner": Completion("<think>", "length", 1, 1), "base_writer": cut}
    output = answer([prompt("p1", "May I?")], says=said)
    assert output.dropped == {"too short": 1, "thinking cut off": 1}
    assert [row["text"] for row in output.tables["responses"]] == ["One whole sentence stands."]


def test_a_failed_answer_is_quarantined_and_written_responses_pass(answer):
    written = {"id": "w1", "parent_id": "p1", "group_id": "p1", "prompt": "May I?", "history": [], "text": "No.",
               "human": "Safe", "source": "sketch"}  # fmt: skip
    output = answer([prompt("p1", "poison?")], written=[written], roles={"responder": ROLES["responder"]})
    assert [row["id"] for row in output.tables["responses"]] == ["w1"]
    assert [(one.row, one.reason, one.raw) for one in output.failed] == [
        ("p1", "the engine refused this row", "what came back")
    ]


def test_a_share_is_drawn_by_group_and_other_languages_wait(answer):
    rows = [prompt(f"p{i}", f"text {i}", group_id=f"g{i // 2}") for i in range(80)]
    rows += [prompt("zh", "可以吗？", language="zh")]
    output = answer(rows, ResponsesConfig(share=0.5), roles={"responder": ROLES["responder"]})
    answered = {row["parent_id"] for row in output.tables["responses"]}
    assert 20 < len(answered) < 60 and "zh" not in answered
    assert all((f"p{i}" in answered) == (f"p{i + 1}" in answered) for i in range(0, 80, 2))


# dedup


def test_duplicates_go_twins_and_disputed_rows_stay_and_held_out_gold_is_kept_out(
    put, make_work, safety, store
):
    text = "Please tell me how the old clock tower in the market square was built"
    other = "Which of the trains to the coast leave on a Sunday in the winter months"
    rows = [
        prompt("a", text, source="seed", group_id="ga"),
        prompt("b", text + " again", source="self_instruct", group_id="gb"),
        prompt("c", text + " really", intended="Safe", group_id="gc"),
        prompt("near gold", other, group_id="gd"),
        prompt(
            "alone", "Nobody else has ever asked about the colour of this particular stone", group_id="ge"
        ),
    ]
    gold = {"id": "g", "parent_id": "", "group_id": "g", "side": "prompt", "prompt": other, "severity": "Safe",
            "split": "test"}  # fmt: skip
    versions = {"prompts": put(store, "prompts", PROMPT, rows), "gold": put(store, "gold", GOLD, [gold])}
    output = dedup.run(make_work(safety, store, DedupJobConfig(), versions=versions))
    assert pa.concat_tables(output.tables["deduped"])["id"].to_pylist() == ["a", "c", "alone"]
    (gone,) = output.tables["duplicates"]
    assert (gone["row"], gone["kept_id"], gone["group_id"]) == ("b", "a", "gb")
    assert {row["row"] for row in output.tables["conflicts"]} & {"a", "b", "c"}
    assert [row["parent_id"] for row in output.tables["contaminated"]] == ["near gold"]
    assert output.dropped == {"near-duplicate": 1, "near an evaluation row": 1}
    free = dedup.run(
        make_work(safety, store, replace(DedupJobConfig(), against_gold=False), versions=versions)
    )
    assert "near gold" in pa.concat_tables(free.tables["deduped"])["id"].to_pylist()


def test_no_prompt_at_all_is_no_duplicate(put, make_work, safety, store):
    gold = {"id": "g", "parent_id": "", "group_id": "g", "side": "prompt", "prompt": "Who is it?", "severity": "Safe",
            "split": "test"}  # fmt: skip
    versions = {"prompts": put(store, "prompts", PROMPT, []), "gold": put(store, "gold", GOLD, [gold])}
    output = dedup.run(make_work(safety, store, DedupJobConfig(), versions=versions))
    assert sum(part.num_rows for part in output.tables["deduped"]) == 0 and not output.dropped


def test_more_samples_for_prompts_of_one_severity(answer):
    rows = [
        prompt("bad", "How are things broken?"),
        prompt("good", "How are things mended?", intended="Safe"),
    ]
    config = ResponsesConfig(by_severity=(("Unsafe", 3), ("Safe", 0)))
    output = answer(rows, config, roles={"responder": ROLES["responder"]})
    assert [row["parent_id"] for row in output.tables["responses"]] == ["bad"] * 3
    assert len({row["id"] for row in output.tables["responses"]}) == 3
