"""The dry calculation of node-hours and money: sums that can be done by hand, and open figures that stay open."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ray_jobs.cli import main
from ray_jobs.cluster_plan import (
    ROWS,
    cluster_plan,
    demands,
    expected_rows,
    load_costs,
    load_nodes,
)
from ray_jobs.engine import Model
from ray_jobs.recipes import named

ROOT = Path(__file__).parents[2]
NODES = {"head": {"CPU": 0}, "cpu": {"CPU": 4}, "one": {"CPU": 8, "GPU": 1}, "eight": {"CPU": 96, "GPU": 8}}


@pytest.fixture
def costs() -> dict:
    return load_costs(ROOT / "cluster_costs.yaml")


def big(name: str, gpus: float, replicas: int) -> Model:
    return Model("vllm", name, "instruct", options=(("gpus", gpus), ("max_replicas", replicas)))


def test_the_shipped_files_carry_no_price_and_every_model_of_the_recipes_has_a_rate(costs):
    assert set(costs["node_hour"]) == set(load_nodes(ROOT / "cluster.yaml"))
    assert set(costs["node_hour"].values()) == {"FILL-IN"} and costs["source"] == "FILL-IN"
    text = (ROOT / "cluster_costs.yaml").read_text()
    assert "ASSUMED" in text.split("tokens_per_second:")[0].split("node_hour:")[1]


def test_node_hours_and_money_are_what_calls_tokens_rates_and_prices_come_to(safety, costs):
    recipe = replace(named("tiny"), roles={"voter-1": big("v", 4, 2)})
    rates = {"default": {"read": 100, "write": 10}, "trained": {"read": 1, "write": 1}}
    costs |= {"tokens_per_second": rates, "prompt_tokens": 50, "instruction_tokens": 150}
    costs |= {"node_hour": {"eight": 3.0, "head": 0.5}, "cpu_seconds_per_1000_prompts": {"dedup": 36}}
    rows = expected_rows(recipe, safety, costs, {"prompts": 18_000, "responses": 0, "translations": 0})
    votes, dedup, head = cluster_plan(recipe, safety, NODES, costs, rows)
    # 2 calls a prompt of 200 tokens at 100 a second: 72,000 s = 20 h of a replica, on half a node, two at once
    assert (votes.step, votes.role, votes.node, votes.calls, votes.tokens) == (
        "votes", "voter-1", "eight", 36_000, 7_200_000,
    )  # fmt: skip
    assert (votes.hours, votes.node_hours, votes.money) == (10.0, 10.0, 30.0)
    assert (dedup.node, dedup.money) == ("cpu", None)
    assert dedup.node_hours == pytest.approx(18 * 36 / 3600 / 4)
    assert head.hours == pytest.approx(10 + dedup.hours) and head.money == pytest.approx(head.hours * 0.5)


def test_given_rows_stand_and_the_others_follow(safety, costs):
    recipe = named("qwen3guard")
    free = expected_rows(recipe, safety, costs, {})
    given = expected_rows(recipe, safety, costs, {"prompts": 1000, "token_labels": 7})
    assert given["deduped"] == 1000 and given["token_labels"] == 7 and free["prompts"] > 100_000
    assert given["responses"] == 1000 * recipe.responses.samples * 3
    assert given["labelled"] == given["samples"] + given["translations"]
    assert set(ROWS) < set(given)


def test_work_grows_in_proportion_to_rows(safety, costs):
    recipe = named("qwen3guard")
    sums = []
    for n in (1000, 3000):
        rows = expected_rows(recipe, safety, costs, {"prompts": n})
        sums.append(sum(one.read + one.write for one in demands(recipe, safety, costs, rows)))
    assert sums[1] == pytest.approx(3 * sums[0])


def test_a_policy_without_responses_asks_no_responder_and_no_rollout(data_quality, costs):
    rows = expected_rows(named("qwen3guard"), data_quality, costs, {})
    steps = {one.step for one in demands(named("qwen3guard"), data_quality, costs, rows)}
    assert "prompts" in steps and not steps & {"responses", "token_labels"}


def test_the_command_prints_hours_and_names_what_is_to_fill_in(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = ["plan", "qwen3guard", "--cluster", "--rows", "token_labels=300000"]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert "300,000 token_labels" in text and "no price of" in text and "FILL-IN" in text
    costs = yaml.safe_load((ROOT / "cluster_costs.yaml").read_text())
    costs["node_hour"] = dict.fromkeys(costs["node_hour"], 2.0)
    costs["source"] = "a test"
    (tmp_path / "costs.yaml").write_text(yaml.safe_dump(costs))
    assert main([*asked, "--costs", str(tmp_path / "costs.yaml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert all(line["money"] == pytest.approx(2 * line["node_hours"]) for line in told["steps"])
    assert told["steps"][-1]["node"] == "head"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--cluster", "--costs", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--cluster", "--costs", "cluster.yaml"], "cluster.yaml: prompt_tokens must be a number"),
        (["--cluster", "cluster_costs.yaml"], "cluster_costs.yaml: no available_node_types there"),
        (["--cluster", "--rows", "prompts"], "--rows prompts: TABLE=N, with one of prompts"),
        (["--cluster", "--rows", "bread=3"], "--rows bread=3: TABLE=N"),
    ],
)
def test_wrong_files_and_rows_are_told(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "qwen3guard", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_no_node_holds_is_told(safety, costs):
    recipe = replace(named("tiny"), roles={"voter-1": big("v", 16, 1)})
    from synth.errors import BadInput

    rows = expected_rows(recipe, safety, costs, {"prompts": 10})
    with pytest.raises(BadInput, match="no node type with 16 GPUs"):
        cluster_plan(recipe, safety, NODES, costs, rows)
