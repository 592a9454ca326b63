"""The strategies side by side: what a budget brought, how varied it is, whether twins are twins."""

import pytest

from ray_jobs import prompts, seeds
from ray_jobs.engine import Model
from ray_jobs.prompts import PromptsConfig
from ray_jobs.report import build_report
from ray_jobs.report.diversity import diversity, pairs
from ray_jobs.report.flow import steps
from ray_jobs.report.source import Source
from ray_jobs.step import run_steps
from ray_jobs.votes import SAMPLE

ROLES = {"writer": Model("local", "writer", "base"), "embedder": Model("local", "embedder", "embedder")}


@pytest.fixture
def source(safety, store, quiet_run, inline):
    """A flow up to its prompts, on two leaves."""
    config = PromptsConfig(
        self_instruct=3, keyword=2, contrastive=2, multi_turn=1, leaf_floor=-1, other_leaf=2
    )
    flow = [seeds.step(seeds.SeedsConfig(leaves=("violent.weapons", "illegal.theft"))), prompts.step(config)]
    versions = run_steps(flow, quiet_run(store, safety, ROLES))
    names = ("prompt_yields", "prompts_rejected")
    return Source(store, versions | {name: store.resolve(name) for name in names}, safety)


def test_every_strategy_has_a_line_that_adds_up_with_the_tables(source):
    made = diversity(source)
    kept = source.rows("prompts", ["source", "parent_id"])
    assert [line.strategy for line in made["lines"]] == [
        "self_instruct",
        "keyword",
        "contrastive",
        "multi_turn",
    ]
    for line in made["lines"]:
        assert line.accepted == sum(row["source"] == line.strategy for row in kept) <= line.wanted
        assert line.asked == line.accepted + sum(count for _, count in line.reasons)
        assert line.texts == made["texts"] and all(0 < value <= 1 for value in line.distinct)
        assert line.tokens_each > 0
    assert made["lines"][0].spread is not None and 0 <= made["lines"][0].spread <= 2
    assert {line.leaf for line in made["leaves"]} == {"violent.weapons", "illegal.theft"}
    page = build_report(source.store, source.versions, source.policy)
    assert "Strategies of prompt synthesis" in page and "multi_turn" in page
    calls = {role: used["calls"] for role, used in steps(source)["roles"]}
    assert calls["writer"] == sum(line.asked for line in made["lines"]) and calls["embedder"] > 0
    assert "answered by the request cache" in page and "<td>writer</td>" in page


def test_twins_are_checked_by_the_labels_of_both_halves(source, put, safety):
    halves = [
        row for row in source.rows("prompts", ["id", "pair_id", "intended", "source"]) if row["pair_id"]
    ]
    made = [row for row in halves if row["source"] == "contrastive"]
    assert len(made) >= 2
    wrong = made[0]["pair_id"]  # both halves of this one are voted harmless
    wanted = {row["pair_id"] for row in made}
    labels = [
        {"id": f"s{at}", "parent_id": row["id"], "group_id": "g", "side": "prompt", "categories": [],
         "severity": safety.mildest if row["pair_id"] == wrong else row["intended"]}
        for at, row in enumerate(halves)
    ]  # fmt: skip
    version = put(source.store, "votes", SAMPLE, labels)
    told = pairs(Source(source.store, dict(source.versions) | {"votes": version}, safety))
    assert told == {"made": len(wanted), "labelled": len(wanted), "as_meant": len(wanted) - 1}
    assert pairs(source) is None
