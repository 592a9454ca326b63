"""controversial: labels that depend on the reading, found by a loose and a strict model per half (METHOD §3).

The trainer is a linear classifier on the `teacher` role's vectors; its ratios are searched on gold rows. Every row
keeps its fold and both probabilities, so that it can be proven that no model labelled a group it had seen. Labels that
people gave stand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from label.controversial import CONTROVERSIAL, SAFE, Annotation, Ratios, choose_ratios, cross_annotate, sweep
from ray_jobs import human_labels
from ray_jobs.relabel import as_samples, linear_probabilities, set_label, vectors
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.votes import SAMPLE, SAMPLE_FIELDS
from synth.ids import row_id
from synth.policy import Policy

TABLE = table_schema(
    [
        *SAMPLE_FIELDS,
        pa.field("fold", pa.int64()),
        pa.field("loose", pa.float64()),
        pa.field("strict", pa.float64()),
        pa.field("voted", pa.string()),
    ]
)
RATIOS = table_schema([pa.field("side", pa.string()), pa.field("ratios", pa.string())])


@dataclass(frozen=True)
class ControversialConfig:
    """`keep`: how much of the best F1 a ratio must keep to be useful. `enabled` False passes the votes on."""

    enabled: bool = True
    keep: float = 0.9


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return policy.slice_labels()


def step(config: ControversialConfig) -> Step:
    tables = {"controversial": TABLE, "controversial_ratios": RATIOS}
    sides = ("votes", "translations", "gold", human_labels.TABLE)
    return Step("controversial", run, config, tables, sides=sides, roles=("teacher",), reads=reads)


def run(work: Work) -> Output:
    """Cross-annotate each side's rows; rows without a certain vote are passed on as they are."""
    columns = [field.name for field in SAMPLE if field.name != "digest"]
    rows = [*work.read("votes").to_pylist(), *work.read("translations").to_pylist()]
    people = work.read(human_labels.TABLE).to_pylist()
    human_labels.apply(
        work.policy, rows, human_labels.consensus(people)
    )  # translations are read by people too
    rows = [row | {"fold": -1, "loose": None, "strict": None, "voted": row["severity"]} for row in rows]
    gold = [row for row in work.read("gold").to_pylist() if row["split"] == "fit"]
    searched = []
    for side in work.policy.sides if work.config.enabled else ():
        here = [row for row in rows if row["side"] == side and not row["abstain"]]
        validation = [row for row in gold if row["side"] == side]
        ratios = annotate(work, here, validation)
        if ratios is not None:
            common = {"id": row_id(work.identity, "ratios", side), "parent_id": "", "group_id": work.identity}
            searched.append(common | {"side": side, "ratios": json.dumps(ratios.to_dict())})
    named = [*columns, "fold", "loose", "strict", "voted"]
    return Output({"controversial": as_samples(rows, named), "controversial_ratios": searched})


def annotate(work: Work, rows: list[dict[str, Any]], gold: list[dict[str, Any]]) -> Ratios | None:
    """Search the ratios on gold, cross-annotate, and set the labels of rows that votes gave. None where the policy
    has no severity between, or either set has too few rows of a class."""
    policy = work.policy
    between = [s.name for s in policy.severities if s.violating == "strict"]
    if not between or not both_classes(policy, rows) or not both_classes(policy, gold):
        return None
    pool = [*rows, *gold]
    flags = [policy.violates(row["severity"], "strict") for row in pool]
    fit_predict = binary(linear_probabilities(vectors(work, "teacher", pool), 2))
    ids, groups = [row["id"] for row in pool], [row["group_id"] for row in pool]
    held = range(len(rows), len(pool))
    ratios = choose_ratios(sweep(ids, groups, flags, held, fit_predict, seed=work.seed), work.config.keep)
    last = len(rows)
    annotation = cross_annotate(ids[:last], groups[:last], flags[:last], ratios, fit_predict, work.seed)
    apply(work, rows, annotation, between[-1])
    return ratios


def both_classes(policy: Policy, rows: list[dict[str, Any]], least: int = 8) -> bool:
    """Whether there are enough rows of either class to train halves on."""
    violating = sum(policy.violates(row["severity"], "strict") for row in rows)
    return min(violating, len(rows) - violating) >= least


def binary(fit_predict: Any) -> Any:
    """A two-class trainer as label.controversial wants it: the probability of violating."""

    def probability(train: np.ndarray, violating: np.ndarray, predict: np.ndarray) -> np.ndarray:
        return fit_predict(train, violating, predict)[:, 1]

    return probability


def apply(work: Work, rows: list[dict[str, Any]], annotation: Annotation, between: str) -> None:
    """The three-way vote as labels: people's stand, a violating vote keeps its own severity if it was one."""
    policy = work.policy
    for i, row in enumerate(rows):
        row["fold"] = int(annotation.fold[i])
        row["loose"], row["strict"] = float(annotation.loose[i]), float(annotation.strict[i])
        if row["origin"] == "human":
            continue
        vote = annotation.vote[i]
        severity = between if vote == CONTROVERSIAL else policy.mildest if vote == SAFE else policy.worst
        if severity != row["severity"]:
            set_label(work, row, severity, "controversial")


if __name__ == "__main__":
    from ray_jobs.job import main

    main("controversial")
