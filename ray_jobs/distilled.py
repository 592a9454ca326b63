"""distilled: labels after a cross-fitted teacher (METHOD §4). Relabelled, dropped and questioned rows are recorded.

`distilled` holds the rows that training reads: abstained and dropped ones are not among them. Rows that people
labelled are only ever questioned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from label.distill import DROP, RELABEL, Distilled, Rules, distill
from ray_jobs.relabel import PART, Seen, linear_probabilities, parts_of, seen_by_side, set_label
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
    found: dict[str, Distilled] = {}
    groups: dict[str, str] = {}
    for side, seen in seen_by_side(work, samples(work)).items() if work.config.enabled else ():
        if seen.both_classes(work):
            found[side] = teach(work, seen)
            changed = {change.id for change in found[side].changes}
            groups |= {row: g for row, g in zip(seen.ids, seen.groups, strict=True) if row in changed}
    output = Output({"label_changes": change_rows(work, found, groups)})
    output.tables["distilled"] = kept(work, found, output.dropped)
    return output


def samples(work: Work) -> Iterator[list[dict[str, Any]]]:
    return parts_of(work, "controversial", [name for name in SAMPLE.names if name != "digest"])


def teach(work: Work, seen: Seen) -> Distilled:
    fit_predict = linear_probabilities(seen.vectors, len(work.policy.severity_names), seen.ids)
    return distill(seen.ids, seen.groups, seen.label, seen.human, fit_predict, work.config.rules, work.seed)


def kept(work: Work, found: Mapping[str, Distilled], dropped: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows that stay, relabelled where the teacher says so, in the order in which it was taught."""
    at: Counter[str] = Counter()
    for rows in samples(work):
        stay = []
        for row in rows:
            side = row["side"]
            if row["abstain"]:
                dropped["abstained"] += 1
                continue
            if result := found.get(side):
                action, label = result.actions[at[side]], result.labels[at[side]]
                at[side] += 1
                if action == DROP:
                    dropped["doubted by the teacher"] += 1
                    continue
                if action == RELABEL:
                    set_label(work, row, work.policy.severity_names[label], "distilled")
            stay.append(row)
        yield stay


def change_rows(
    work: Work, found: Mapping[str, Distilled], groups: Mapping[str, str]
) -> Iterator[list[dict[str, Any]]]:
    changes = [change for result in found.values() for change in result.changes]
    names = work.policy.severity_names
    for first in range(0, len(changes), PART):
        yield [
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
            for change in changes[first : first + PART]
        ]


if __name__ == "__main__":
    from ray_jobs.job import main

    main("distilled")
