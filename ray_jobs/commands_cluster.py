"""`guardmill plan RECIPE --cluster`: what a recipe would cost on a cluster, without a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.cli import print_json
from ray_jobs.cluster_plan import OPEN, ROWS, Line, cluster_plan, expected_rows, load_costs, load_nodes
from synth.errors import BadInput

if TYPE_CHECKING:
    from ray_jobs.recipes import Recipe
    from synth.policy import Policy


def add_cluster(plan: argparse.ArgumentParser) -> None:
    """What `plan` takes besides."""
    about = "node-hours and money by step on the node types of this file (default: cluster.yaml)"
    plan.add_argument("--cluster", nargs="?", const="cluster.yaml", metavar="FILE", help=about)
    about = "prices, rates and lengths that --cluster computes with: yours to edit"
    plan.add_argument("--costs", default="cluster_costs.yaml", metavar="FILE", help=about)
    about = f"rows of a table ({', '.join(ROWS)}) instead of the recipe's; repeatable"
    plan.add_argument("--rows", action="append", default=[], metavar="TABLE=N", help=about)


def plan_cluster(options: argparse.Namespace, recipe: Recipe, policy: Policy) -> None:
    """Compute and print the plan."""
    costs = load_costs(Path(options.costs))
    rows = expected_rows(recipe, policy, costs, given_rows(options.rows))
    lines = cluster_plan(recipe, policy, load_nodes(Path(options.cluster)), costs, rows)
    if options.json:
        print_json({"rows": rows, "steps": [asdict(line) for line in lines], "costs": costs})
        return
    for text in told(lines, rows, costs, options.costs):
        print(text)


def given_rows(texts: Sequence[str]) -> dict[str, int]:
    """TABLE=N, as numbers."""
    given = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in ROWS or not number.isdigit():
            raise BadInput(f"--rows {text}: TABLE=N, with one of {', '.join(ROWS)}")
        given[name] = int(number)
    return given


def told(lines: Sequence[Line], rows: Mapping[str, float], costs: Mapping[str, Any], path: str) -> list[str]:
    """The plan for people."""
    currency = costs.get("currency", "")
    text = ["rows: " + ", ".join(f"{count:,.0f} {name}" for name, count in rows.items())]
    head = (
        f"{'step':<14} {'role':<17} {'node':<6} {'calls':>13} {'Mtokens':>9} {'hours':>8} {'node-hours':>10}"
    )
    text.append(f"{head} {currency:>10}")
    for line in lines:
        money = "?" if line.money is None else f"{line.money:,.0f}"
        text.append(
            f"{line.step:<14} {line.role or 'own code':<17} {line.node:<6} {line.calls:>13,.0f} "
            f"{line.tokens / 1e6:>9,.0f} {line.hours:>8,.1f} {line.node_hours:>10,.1f} {money:>10}"
        )
    for node in dict.fromkeys(line.node for line in lines):
        paid = sum(line.node_hours for line in lines if line.node == node)
        text.append(f"{node}: {paid:,.1f} node-hours")
    known = [line.money for line in lines if line.money is not None]
    missing = sorted({line.node for line in lines if line.money is None})
    if known:
        text.append(
            f"{currency} {sum(known):,.0f}{' and what is unknown' if missing else ''}, by {costs.get('source')}"
        )
    if missing:
        text.append(f"no price of {', '.join(missing)}: fill in node_hour in {path} (now {OPEN})")
    text.append(f"Rates and lengths are those of {path}, assumed unless it says measured.")
    text.append("Not counted: loading models, idle nodes before they end, storage, traffic, retries.")
    return text
