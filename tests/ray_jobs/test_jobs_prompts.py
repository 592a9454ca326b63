"""prompts: styles over other leaves, several turns, what became of quotas, the template by the kind of the writer."""

from dataclasses import replace

import pytest

from ray_jobs import cli, prompts, seeds
from ray_jobs.engine import Model
from ray_jobs.prompts import PromptsConfig
from ray_jobs.step import run_steps
from synth.errors import BadInput

WRITER = Model("local", "writer", "base")


@pytest.fixture
def synthesize(safety, store, make_work):
    """synthesize(config, leaf, …) runs the unit of one leaf in English on its own seeds."""

    def run(config, leaf="illegal.theft", policy=safety, roles=None, language="en"):
        work = make_work(policy, store, seeds.SeedsConfig(leaves=(leaf,)))
        rows = [row for row in seeds.run(work).tables["seeds"] if row["language"] == language]
        import pyarrow as pa

        table = pa.Table.from_pylist(rows, schema=pa.schema([f for f in seeds.PROMPT if f.name != "digest"]))
        work = make_work(policy, store, config, roles or {"writer": WRITER}, rows={"seeds": table})
        return prompts.run(work), work, {row["id"]: row for row in rows}

    return run


ONLY = PromptsConfig(self_instruct=0, keyword=0, contrastive=0, rounds=4)


def made(output, rows):
    return [row for row in output.tables["prompts"] if row["id"] not in rows]


def test_a_quick_recipe_takes_one_leaf_of_each_of_its_first_categories_whatever_the_policy(
    safety, data_quality
):
    def taken(policy):
        return [leaf.id for leaf in seeds.chosen(policy, seeds.SeedsConfig(categories=2))]

    assert taken(safety) == ["violent.weapons", "illegal.theft"]
    assert taken(data_quality) == ["boilerplate.navigation", "spam.seo"]
    with pytest.raises(BadInput, match=r"the policy data_quality has no leaf 'violent\.weapons'"):
        seeds.chosen(data_quality, seeds.SeedsConfig(leaves=("violent.weapons",)))


def test_a_style_wraps_a_violating_prompt_of_another_leaf_and_joins_its_group(synthesize, safety):
    config = replace(ONLY, style=3, filters=replace(ONLY.filters, kept_words=0.0))
    output, work, rows = synthesize(config)
    found = made(output, rows)
    assert found
    for row in found:
        assert safety.leaf(row["leaf"]).style and row["category"] == "jailbreak" and row["source"] == "style"
        parent = rows[row["parent_id"]]
        assert (parent["intended"], parent["leaf"]) == ("Unsafe", "illegal.theft")
        assert row["group_id"] == parent["group_id"]
    shown = work.engines.get("writer").asked[0]
    assert "the same put differently" in shown and shown.endswith("->")


def test_a_style_is_not_put_into_another_style(synthesize):
    output, work, rows = synthesize(replace(ONLY, style=3), leaf="jailbreak.role_play")
    assert made(output, rows) == [] and output.tables["prompt_yields"] == []
    assert "writer" not in work.engines.clients


def test_several_turns_end_in_a_new_violating_one(synthesize, safety):
    output, _, rows = synthesize(replace(ONLY, multi_turn=2))
    found = made(output, rows)
    assert 0 < len(found) <= 2
    milder = {row["text"] for row in rows.values() if row["intended"] != safety.worst}
    for row in found:
        assert [turn["role"] for turn in row["history"]] == ["user", "assistant"]
        assert row["history"][0]["content"] in milder and row["intended"] == safety.worst
        assert row["text"] not in {one["text"] for one in rows.values()}


@pytest.mark.parametrize(("kind", "chats"), [("base", False), ("instruct", True), ("reasoning", True)])
def test_the_template_follows_the_kind_of_the_writer_not_its_name(synthesize, kind, chats):
    config = replace(ONLY, self_instruct=1, multi_turn=1, style=1, rounds=1)
    _, work, _ = synthesize(config, roles={"writer": replace(WRITER, kind=kind)})
    asked = work.engines.get("writer").asked
    assert all(isinstance(prompt, list) == chats for prompt in asked)
    if chats:
        texts = [prompt[0]["content"] for prompt in asked]
        assert any("Label wanted: Controversial." in text for text in texts)  # severity is asked for by name
        assert any("Conversation so far:\nUser: " in text for text in texts)
        assert any("in this style: " in text for text in texts)


def test_a_quota_that_cannot_be_met_is_counted_with_its_reason(synthesize, safety):
    leaf = safety.leaf("illegal.theft")
    bare = replace(
        leaf, keywords=(), pairs=(), seeds=tuple(s for s in leaf.seeds if s.severity != "Controversial")
    )
    policy = replace(safety, leaves=tuple(bare if one.id == leaf.id else one for one in safety.leaves))
    short = replace(ONLY.filters, min_words=30)  # what the stand-in writes is shorter
    config = PromptsConfig(self_instruct=3, keyword=1, contrastive=1, rounds=2, filters=short)
    output, *_ = synthesize(config, policy=policy)
    told = {(row["source"], row["intended"]): row for row in output.tables["prompt_yields"]}
    assert told["keyword", "Unsafe"]["why"] == "the leaf has no keywords in this language"
    assert told["contrastive", "Safe"]["why"] == "the leaf has no pairs to show in this language"
    assert told["self_instruct", "Controversial"]["why"] == "no seed of this severity"
    lacking = told["self_instruct", "Unsafe"]
    assert lacking["why"] == "budget ended; most often too short"
    assert (lacking["wanted"], lacking["asked"], lacking["accepted"]) == (3, 12, 0)


def test_the_command_prints_kept_and_rejected_prompts_of_every_strategy(
    safety, store, quiet_run, inline, capsys
):
    config = PromptsConfig(self_instruct=2, keyword=2, contrastive=1, multi_turn=1, rounds=2)
    flow = [seeds.step(seeds.SeedsConfig(leaves=("illegal.theft",))), prompts.step(config)]
    run_steps(flow, quiet_run(store, safety, {"writer": WRITER}))
    assert cli.main(["strategies", "-n", "20", "--root", store.root]) == 0
    said = capsys.readouterr().out
    rejected = store.read("prompts_rejected").to_pylist()
    for name in ("self_instruct", "keyword", "contrastive", "multi_turn"):
        assert f"\n{name}: " in f"\n{said}"
        lost = [row["reason"] for row in rejected if row["source"] == name]
        block = (
            f"\n{said}".partition(f"\n{name}: ")[2].split("generations accepted")[1].partition("wanted,")[2]
        )
        assert all(reason in block for reason in lost)
    assert said.count("turned down: [") >= min(20, len(rejected)) and "kept: illegal.theft en" in said
