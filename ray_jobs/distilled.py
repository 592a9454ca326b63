"""distilled: labels after a cross-fitted teacher (METHOD §4). Relabelled, dropped and questioned rows are recorded.

`distilled` holds the rows that training reads: abstained and dropped ones are not among them. Rows that people
labelled are only ever questioned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from label.distill import DROP, RELABEL, Distilled, Rules, distill
from ray_jobs.controversial import both_classes
from ray_jobs.relabel import as_samples, linear_probabilities, set_label, vectors
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.votes import SAMPLE
from synth.ids import row_id
from synth.policy import Policy

CHANGES = table_schema(
    [
        pa.field("row", pa.string()),
        pa.field("action", pa.string()),
        pa.field("old", pa.string()),
        pa.field("new", pa.string()),
        pa.field("fold", pa.int64()),
        pa.field("probability_old", pa.float64()),
        pa.field("probability_new", pa.float64()),
    ]
)


@dataclass(frozen=True)
class DistilledConfig:
    """`enabled` False passes the labels on."""

    enabled: bool = True
    rules: Rules = Rules()


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return policy.slice_labels()


def step(config: DistilledConfig) -> Step:
    tables = {"distilled": SAMPLE, "label_changes": CHANGES}
    return Step("distilled", run, config, tables, sides=("controversial",), roles=("teacher",), reads=reads)


def run(work: Work) -> Output:
    """Relabel each side by its teacher, drop what is doubted, leave out what abstained."""
    rows = work.read("controversial").to_pylist()
    kept, changes = [], []
    dropped = Counter(abstained=sum(row["abstain"] for row in rows))
    for side in work.policy.sides:
        here = [row for row in rows if row["side"] == side and not row["abstain"]]
        if not work.config.enabled or not both_classes(work.policy, here):
            kept += here
            continue
        result = teach(work, here)
        changes += change_rows(work, here, result)
        kept += apply(work, here, result)
        dropped["doubted by the teacher"] += result.counts.get(DROP, 0)
    columns = [field.name for field in SAMPLE if field.name != "digest"]
    return Output({"distilled": as_samples(kept, columns), "label_changes": changes}, dropped=+dropped)


def teach(work: Work, rows: list[dict[str, Any]]) -> Distilled:
    names = list(work.policy.severity_names)
    fit_predict = linear_probabilities(vectors(work, "teacher", rows), len(names))
    return distill(
        [row["id"] for row in rows],
        [row["group_id"] for row in rows],
        [names.index(row["severity"]) for row in rows],
        [row["origin"] == "human" for row in rows],
        fit_predict,
        work.config.rules,
        work.seed,
    )


def apply(work: Work, rows: list[dict[str, Any]], result: Distilled) -> list[dict[str, Any]]:
    """The rows that stay, relabelled where the teacher says so."""
    kept = []
    for row, action, label in zip(rows, result.actions, result.labels, strict=True):
        if action == RELABEL:
            set_label(work, row, work.policy.severity_names[label], "distilled")
        if action != DROP:
            kept.append(row)
    return kept


def change_rows(work: Work, rows: list[dict[str, Any]], result: Distilled) -> list[dict[str, Any]]:
    names, groups = work.policy.severity_names, {row["id"]: row["group_id"] for row in rows}
    return [
        {
            "id": row_id(change.id, "change", ""),
            "parent_id": change.id,
            "group_id": groups[change.id],
            "row": change.id,
            "action": change.action,
            "old": names[change.old],
            "new": names[change.new],
            "fold": change.fold,
            "probability_old": change.probability_old,
            "probability_new": change.probability_new,
        }
        for change in result.changes
    ]


if __name__ == "__main__":
    from ray_jobs.job import main

    main("distilled")
