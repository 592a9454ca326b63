"""`preview`: a few rows through one step, and nothing committed; `check-models`: what every bound model answers."""

from dataclasses import replace

import pytest

from ray_jobs import check_models, cli
from ray_jobs.engine import Model
from ray_jobs.pipeline import steps
from ray_jobs.preview import preview
from ray_jobs.recipes import named
from ray_jobs.seeds import PROMPT
from synth.errors import BadInput

ROLES = {"writer": Model("local", "writer", "base"), "responder": Model("local", "responder", "instruct")}


@pytest.fixture
def flow(safety):
    return steps(named("tiny"), safety)


def test_prompts_are_previewed_on_a_fresh_root_and_nothing_is_committed(
    flow, safety, store, quiet_run, inline
):
    shown = preview(flow, "prompts", quiet_run(store, safety, ROLES, request_cache_gb=0), 5)
    made = shown["tables"]["prompts"]
    assert 0 < len(made) <= 5 and made[0]["source"] not in ("seed", "pair")
    assert len({row["leaf"] for row in made}) == 1 and shown["counts"]["prompts"] > len(made)
    assert shown["usage"]["writer"]["calls"] > 0
    assert store.tables() == [] and store.files.listing("") == []


def test_rows_come_from_the_root_with_their_groups_whole(flow, safety, store, put, quiet_run, inline):
    row = {"parent_id": "", "history": [], "language": "en", "leaf": "illegal.theft", "category": "illegal",
           "intended": "Unsafe", "human": "", "source": "seed", "keyword": "", "pair_id": ""}  # fmt: skip
    rows = [
        row | {"id": f"p{i}", "group_id": f"g{i // 2}", "text": f"How are {i} things done?"}
        for i in range(12)
    ]
    put(store, "deduped", PROMPT, rows)
    recipe = replace(named("tiny").responses, share=1.0)
    here = [replace(step, config=recipe) if step.name == "responses" else step for step in flow]
    shown = preview(here, "responses", quiet_run(store, safety, ROLES), 3)
    asked = {row["parent_id"] for row in shown["tables"]["responses"]}
    assert shown["rows"] == 4 and asked <= {"p0", "p1", "p2", "p3"}
    assert [version.ref for version in store.versions("deduped")] == ["deduped@v1"]
    assert store.tables() == ["deduped"]


@pytest.mark.parametrize(("name", "words"), [
    ("nothing", r"no such step\); these can: prompts, responses"),
    ("gen_guard", "works on all rows at once"),
    ("responses", r"has no table 'deduped' yet: run the recipe first, --until dedup"),
])  # fmt: skip
def test_what_cannot_be_previewed_is_one_sentence(name, words, flow, safety, store, quiet_run, inline):
    with pytest.raises(BadInput, match=words):
        preview(flow, name, quiet_run(store, safety, ROLES), 5)
    assert store.tables() == []


def test_every_model_is_asked_once_and_what_is_missing_is_told(
    flow, safety, store, quiet_run, inline, tmp_path
):
    roles = {
        **ROLES,
        "base_writer": ROLES["writer"],
        "voter-1": Model("local", str(tmp_path / "nowhere"), "head"),
        "guard": Model("local", "@gen_guard/guard", "gen_guard"),
        "embedder": Model("local", "embedder", "embedder"),
    }
    opened = len(inline.engines)
    answers = check_models.check(flow, quiet_run(store, safety, roles))
    assert len(inline.engines) - opened == 4  # two roles of one model, and one that is yet to be made
    told = {answer.roles: answer for answer in answers}
    assert told["writer", "base_writer"].state == "ok" and "tokens/s" in told["writer", "base_writer"].line()
    assert told["embedder",].told == "a vector of 64 numbers"
    assert told["guard",].state == "waiting" and "gen_guard" in told["guard",].told
    assert told["voter-1",].state == "failed" and "nowhere" in told["voter-1",].told
    assert (
        told["teacher",].state == "failed"
        and "needs a model for the role 'teacher'" in told["teacher",].line()
    )
    assert store.tables() == []


def test_weights_are_let_go_by_the_last_that_uses_them_and_a_dead_endpoint_is_not_waited_for(
    flow, safety, store, quiet_run, inline
):
    chat = Model("vllm", "shared", "instruct")
    far = Model("openai", "far", "base", options=(("url", "http://127.0.0.1:9/v1"),))
    roles = {"writer": replace(chat, kind="base"), "base_writer": far, "responder": chat}
    opened = len(inline.engines)
    check_models.check(flow, quiet_run(store, safety, roles))
    asked = [(*engines.roles.values(), engines.kept) for engines in inline.engines[opened:]]
    patient = replace(far, options=(*far.options, ("patience_s", check_models.PATIENCE)))
    assert asked == [(roles["writer"], ["shared"]), (chat, []), (patient, [])]


def test_a_model_that_does_not_answer_is_exit_code_one(monkeypatch, tmp_path, capsys, inline):
    dead = Model(
        "openai", "some-model", "instruct", options=(("url", "http://127.0.0.1:9"), ("patience_s", 0.1))
    )
    monkeypatch.setattr(
        "ray_jobs.check_models.check",
        lambda flow, run: [
            check_models.Answer(("writer",), "openai", dead.name, "instruct", "failed", "no connection")
        ],
    )
    assert cli.main(["check-models", "tiny", "--root", str(tmp_path / "root")]) == 1
    said = capsys.readouterr()
    assert "failed" in said.out and said.err == "guardmill: no answer from the model of writer\n"
    assert cli.main(["check-models", "tinny"]) == 2
