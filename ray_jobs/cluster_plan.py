"""`guardmill plan RECIPE --cluster`: node-hours and money by step, computed from a recipe, row counts and a cost file.

Rows follow from the recipe's quotas and shares, or are given. Each step asks its roles so many calls of so many tokens;
tokens over a replica's rate are replica-hours; a replica takes the share of the smallest node that holds its GPUs; its
nodes are rented for replica-hours over the replicas that the recipe allows at once. What the project's own code
computes is CPU seconds per prompt, as measured. A step lasts as long as its slowest role, and the head as long as all.

Nothing is launched and nothing is read but these files. What the cost file leaves open stays open: None, shown as "?".
Not counted: loading models, idle nodes before they end, storage, traffic, and retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from synth.errors import BadInput

if TYPE_CHECKING:
    from ray_jobs.engine import Model
    from ray_jobs.recipes import Recipe
    from synth.policy import Policy

OPEN = "FILL-IN"
ROWS = ("prompts", "deduped", "responses", "translations", "token_labels")


@dataclass(frozen=True)
class Demand:
    """What a step asks of one role: calls, and tokens that they read and write."""

    step: str
    role: str
    calls: float
    read: float
    write: float


@dataclass(frozen=True)
class Line:
    """One role of a step on its node type ("" for our own code). `hours` is how long it lasts there, `node_hours` what
    is paid for."""

    step: str
    role: str
    node: str
    calls: float
    tokens: float
    hours: float
    node_hours: float
    money: float | None


def load_costs(path: Path) -> dict[str, Any]:
    """The cost file. BadInput for one that is not there, or that lacks a figure."""
    costs = _yaml(path)
    for name in ("prompt_tokens", "response_tokens", "thinking_tokens", "instruction_tokens", "flagged_share",
                 "prefixes_searched", "draws_per_prefix"):  # fmt: skip
        if not isinstance(costs.get(name), int | float):
            raise BadInput(f"{path}: {name} must be a number")
    rates = costs.get("tokens_per_second")
    if not isinstance(rates, dict) or not {"default", "trained"} <= rates.keys():
        raise BadInput(
            f"{path}: tokens_per_second needs at least `default` and `trained`, each {{read, write}}"
        )
    for name, rate in rates.items():
        if not isinstance(rate, dict) or any(
            not isinstance(rate.get(k), int | float) for k in ("read", "write")
        ):
            raise BadInput(f"{path}: tokens_per_second of {name} must be {{read: NUMBER, write: NUMBER}}")
    for name, price in (costs.get("node_hour") or {}).items():
        if price != OPEN and not isinstance(price, int | float):
            raise BadInput(f"{path}: node_hour of {name} must be a number, or {OPEN}")
    return costs


def load_nodes(path: Path) -> dict[str, dict[str, Any]]:
    """Node types of a cluster file: name to resources; the head's name is "head"."""
    cluster = _yaml(path)
    types = cluster.get("available_node_types")
    if not isinstance(types, dict):
        raise BadInput(f"{path}: no available_node_types there")
    head = cluster.get("head_node_type")
    return {"head" if name == head else name: kind.get("resources") or {} for name, kind in types.items()}


def expected_rows(
    recipe: Recipe, policy: Policy, costs: Mapping[str, Any], given: Mapping[str, int]
) -> dict[str, float]:
    """Rows by table: what is given, else what the recipe's quotas and shares come to at most."""
    config = recipe.prompts
    kinds = [
        (leaf.id, language, {s.severity for s in leaf.seeds if s.language == language})
        for leaf in policy.leaves
        if not recipe.seeds.leaves or leaf.id in recipe.seeds.leaves
        for language in config.languages
    ]
    quotas = sum(config.self_instruct * len(s) + config.keyword + config.contrastive for *_, s in kinds if s)
    seeds = sum(len(leaf.seeds) + 2 * len(leaf.pairs) for leaf in policy.leaves)
    roles = sum(role in recipe.roles for role in ("responder", "base_writer", "reasoner"))
    rows: dict[str, float] = {"prompts": given.get("prompts", quotas + seeds)}
    rows["deduped"] = given.get("deduped", rows["prompts"])
    answered = rows["deduped"] * recipe.responses.share * recipe.responses.samples * roles
    rows["responses"] = given.get("responses", answered if "response" in policy.sides else 0)
    samples = rows["deduped"] + rows["responses"]
    sources = len(set(config.languages))
    share = sum(share for _, _, share in recipe.translations.pairs)
    rows["translations"] = given.get("translations", samples / sources * share)
    limit = recipe.token_labels.responses or float("inf")
    rows["token_labels"] = given.get("token_labels", min(limit, rows["responses"] * costs["flagged_share"]))
    rows["samples"], rows["labelled"] = samples, samples + rows["translations"]
    return rows


def demands(
    recipe: Recipe, policy: Policy, costs: Mapping[str, Any], rows: Mapping[str, float]
) -> list[Demand]:
    """What each step asks of each role that is bound to a model."""
    prompt, response, think = costs["prompt_tokens"], costs["response_tokens"], costs["thinking_tokens"]
    told, found = costs["instruction_tokens"], []
    mixed = (rows["deduped"] * prompt + rows["responses"] * (prompt + response)) / max(1, rows["samples"])

    def ask(step: str, role: str, calls: float, read: float, write: float = 0.0) -> None:
        if role in recipe.roles and calls:
            found.append(Demand(step, role, calls, calls * read, calls * write))

    ask("prompts", "writer", rows["prompts"] * recipe.prompts.oversample, 5 * prompt + 200, prompt)
    ask("prompts", "embedder", rows["prompts"] * recipe.prompts.oversample, prompt)
    writers = [role for role in ("responder", "base_writer", "reasoner") if role in recipe.roles]
    for role in writers:
        more = think if recipe.roles[role].kind == "reasoning" else 0
        ask("responses", role, rows["responses"] / len(writers), prompt, response + more)
    for role, model in recipe.roles.items():
        if role.startswith("voter-") and model.kind != "head":
            asked = 2 * rows["deduped"] + (2 + policy.refusal) * rows["responses"]
            ask("votes", role, asked, told + mixed)
    ask("translations", "translator", rows["translations"] * 1.5, mixed + 100, 1.3 * mixed / 1.5)
    ask("translations", "translation_judge", rows["translations"] * 1.5, 2 * mixed + 200)
    for step in ("controversial", "distilled"):
        ask(step, "teacher", rows["labelled"], mixed)
    ask("gen_guard", "backbone", rows["labelled"] * recipe.gen_guard.epochs, told + mixed)
    rollouts = [role for role in recipe.roles if role == "rollout" or role.startswith("rollout-")]
    searched = rows["token_labels"] * costs["prefixes_searched"]
    draws = searched * min(costs["draws_per_prefix"], recipe.token_labels.plan.k)
    length = recipe.token_labels.sampling.max_tokens
    for role in rollouts:
        ask("token_labels", role, draws / len(rollouts), prompt + response / 2, length)
    ask("token_labels", "guard", draws, told + prompt + response / 2 + length)
    if recipe.roles.get("judge") and recipe.roles["judge"].kind != "head":
        ask("token_labels", "judge", searched, told + prompt + response / 2)
    ask("stream_guard", "backbone", rows["responses"] * recipe.stream_guard.epochs, prompt + response)
    return found


def cluster_plan(
    recipe: Recipe,
    policy: Policy,
    nodes: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Any],
    rows: Mapping[str, float],
) -> list[Line]:
    """Every step's hours and node-hours by node type, in the order of the flow; the head last."""
    prices = costs.get("node_hour") or {}
    lines: list[Line] = []

    def line(step: str, role: str, node: str, calls: float, tokens: float, hours: float, paid: float) -> None:
        price = prices.get(node, OPEN)
        lines.append(
            Line(step, role, node, calls, tokens, hours, paid, None if price == OPEN else paid * price)
        )

    for one in demands(recipe, policy, costs, rows):
        model = recipe.roles[one.role]
        training = one.role == "backbone"
        name = "trained" if training else _weights(recipe, model)
        rate = costs["tokens_per_second"].get(name, costs["tokens_per_second"]["default"])
        busy = (one.read / rate["read"] + (one.write / rate["write"] if one.write else 0)) / 3600
        config = recipe.gen_guard if one.step == "gen_guard" else recipe.stream_guard
        at_once = config.workers if training else int(model.option("max_replicas", 1))
        gpus = float(config.use_gpu) if training else float(model.option("gpus", 0))
        node, share = _node(nodes, gpus)
        line(one.step, one.role, node, one.calls, one.read + one.write, busy / at_once, busy * share)
    own = costs.get("cpu_seconds_per_1000_prompts") or {}
    node, share = _node(nodes, 0)
    for step, seconds in own.items():
        busy = seconds * rows["prompts"] / 1000 / 3600
        line(step, "", node, 0, 0, busy * share, busy * share)
    last = {one.step: max(other.hours for other in lines if other.step == one.step) for one in lines}
    line("all steps", "", "head", 0, 0, sum(last.values()), sum(last.values()))
    return lines


def _weights(recipe: Recipe, model: Model) -> str:
    """Whose rate a model has: a guard of this run is as fast as what it was trained from."""
    return recipe.roles["backbone"].name if model.name.startswith("@") else model.name


def _node(nodes: Mapping[str, Mapping[str, Any]], gpus: float) -> tuple[str, float]:
    """The smallest node type that holds so many GPUs, and the share of it that they are (without: of one core)."""
    if not gpus:
        cores = {name: kind["CPU"] for name, kind in nodes.items() if kind.get("CPU") and not kind.get("GPU")}
        name = min(cores, key=lambda name: cores[name], default="")
        if not name:
            raise BadInput("the cluster has no node type with CPUs and without GPUs")
        return name, 1 / cores[name]
    fits = {name: kind["GPU"] for name, kind in nodes.items() if kind.get("GPU", 0) >= gpus}
    if not fits:
        raise BadInput(f"the cluster has no node type with {gpus:g} GPUs")
    name = min(fits, key=lambda name: fits[name])
    return name, gpus / fits[name]


def _yaml(path: Path) -> dict[str, Any]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(told, dict):
        raise BadInput(f"{path} is no mapping")
    return told
