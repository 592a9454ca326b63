"""combiner: how votes become one label, fitted on the gold set by cross-validation (label.vote).

Head voters bring their out-of-fold ballots; every other voter (an instruct model, a guard) is asked about the gold rows
here. One combiner per side, stored as a JSON row, with the audit that says what it is worth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from label.audit import audit
from label.vote import Combiner, check_gold, fit_combiner
from ray_jobs.ballots import ask_voters, calls_per_row, stack_ballots, voter_names
from ray_jobs.step import Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.voters import BALLOT
from synth.ids import row_id
from synth.policy import Policy

COMBINER = table_schema(
    [pa.field("side", pa.string()), pa.field("combiner", pa.string()), pa.field("audit", pa.string())]
)


@dataclass(frozen=True)
class CombinerConfig:
    """`target_precision` sets the abstain band; the run warns when F1 on gold is under `target_f1`; `repeats` is how
    often the combiners are compared by cross-validation. `templates`: what language models are asked through, each a
    voter of its own (ray_jobs.ballots)."""

    target_precision: float = 0.9
    target_f1: float = 0.9
    repeats: int = 2
    templates: tuple[str, ...] = ("voter",)


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return [policy.slice_labels(), policy.slice_templates("voter", "moderation_short", "moderation_full")]


def step(config: CombinerConfig) -> Step:
    tables = {"combiner": COMBINER, "gold_ballots": BALLOT}
    return Step(
        "combiner",
        run,
        config,
        tables,
        sides=("gold", "voters", "head_ballots"),
        roles=("voter",),
        reads=reads,
        revision=5,  # whether a row violates is decided before how badly
    )


def run(work: Work) -> Output:
    """Ballots of every voter on the gold rows, then one fitted combiner per side."""
    rows = [row for row in work.read("gold").to_pylist() if row["split"] == "fit"]
    voters = voter_names(work, work.config.templates)
    failed: list[Failed] = []
    heads = {role: head_features(work, role) for role in voters if is_head(work, role)}
    gold = {row["id"] for row in rows}
    ballots = [
        row | {"voter": role, "id": row_id(row["parent_id"], "ballot", role)}
        for role, features in heads.items()
        for row in work.read("head_ballots").to_pylist()
        if row["voter"] == features and row["parent_id"] in gold
    ]
    ballots += ask_voters(work, rows, [role for role in voters if role not in heads], failed)
    fitted = [fit_side(work, side, voters, rows, ballots) for side in work.policy.sides]
    return Output({"combiner": fitted, "gold_ballots": [drop_digest(row) for row in ballots]}, failed)


def is_head(work: Work, role: str) -> bool:
    return ":" not in role and work.engines.get(role).model.kind == "head"


def head_features(work: Work, role: str) -> str:
    from ray_jobs.engine import head

    return head.load(work.engines.get(role).model.name).features


def drop_digest(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "digest"}


def fit_side(
    work: Work, side: str, voters: list[str], rows: list[dict[str, Any]], ballots: list[dict[str, Any]]
) -> dict[str, Any]:
    """The combiner of one side; without gold rows the uncalibrated majority."""
    policy, here = work.policy, [row for row in rows if row["side"] == side]
    ids = [row["id"] for row in here]
    stacked = stack_ballots(policy, side, voters, ids, ballots)
    violating = [policy.violates(name, "strict") for name in policy.severity_names]
    gold = None
    if here:
        groups, labels = [row["group_id"] for row in here], [row["severity"] for row in here]
        gold = check_gold(ids, groups, labels, policy.severity_names, violating, source=policy.gold)
    combiner = fit_combiner(
        stacked, gold, violating, work.config.target_precision, work.config.repeats, work.seed
    )
    checked = (
        audit(
            stacked,
            gold,
            violating,
            slices={
                "language": [row["language"] for row in here],
                "category": [next(iter(row["categories"]), "none") for row in here],
            },
            costs={voter: calls_per_row(work, voter, side) for voter in voters},
            target_f1=work.config.target_f1,
            target_precision=work.config.target_precision,
            repeats=work.config.repeats,
            seed=work.seed,
        )
        if gold
        else {}
    )
    return {
        "id": row_id(work.identity, "combiner", side),
        "parent_id": "",
        "group_id": work.identity,
        "side": side,
        "combiner": json.dumps(combiner.to_dict()),
        "audit": json.dumps(checked),
    }


def read_combiners(work: Work) -> dict[str, Combiner]:
    """The fitted combiner of every side."""
    rows = work.read("combiner").to_pylist()
    return {row["side"]: Combiner.from_dict(json.loads(row["combiner"])) for row in rows}


if __name__ == "__main__":
    from ray_jobs.job import main

    main("combiner")
