"""controversial: labels that depend on the reading, found by a loose and a strict model per half (METHOD §3).

The trainer is a linear classifier on the `teacher` role's vectors; its ratios are searched on gold rows. Every row
keeps its fold and both probabilities, so that it can be proven that no model labelled a group it had seen. Labels that
people gave stand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from label.controversial import CONTROVERSIAL, SAFE, Annotation, Ratios, choose_ratios, cross_annotate, sweep
from ray_jobs import human_labels
from ray_jobs.relabel import Seen, as_samples, linear_probabilities, parts_of, seen_by_side, set_label
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
    people = human_labels.consensus(work.read(human_labels.TABLE).to_pylist())
    found: dict[str, Annotation] = {}
    searched = []
    if work.config.enabled:
        gold = [row for row in work.read("gold").to_pylist() if row["split"] == "fit"]
        for side, seen in seen_by_side(work, samples(work, people)).items():
            told = annotate(work, seen, [row for row in gold if row["side"] == side])
            if told is None:
                continue
            ratios, found[side] = told
            common = {"id": row_id(work.identity, "ratios", side), "parent_id": "", "group_id": work.identity}
            searched.append(common | {"side": side, "ratios": json.dumps(ratios.to_dict())})
    return Output({"controversial": labelled(work, people, found), "controversial_ratios": searched})


def samples(work: Work, people: Mapping[str, human_labels.Consensus]) -> Iterator[list[dict[str, Any]]]:
    """Voted rows, then translations, a part at a time; people read translations too."""
    columns = [name for name in SAMPLE.names if name != "digest"]
    for name in ("votes", "translations"):
        for rows in parts_of(work, name, columns):
            human_labels.apply(work.policy, rows, people)
            yield rows


def annotate(work: Work, seen: Seen, gold: list[dict[str, Any]]) -> tuple[Ratios, Annotation] | None:
    """Search the ratios on gold and cross-annotate. None where the policy has no severity between, or either set has
    too few rows of a class."""
    flags = [work.policy.violates(row["severity"], "strict") for row in gold]
    if not between(work.policy) or not seen.both_classes(work) or min(sum(flags), len(gold) - sum(flags)) < 8:
        return None
    last = len(seen.ids)
    seen.add(work, gold)
    pool = seen.violating(work)
    fit_predict = binary(linear_probabilities(seen.vectors, 2, seen.ids))
    held = range(last, len(seen.ids))
    ratios = choose_ratios(
        sweep(seen.ids, seen.groups, pool, held, fit_predict, seed=work.seed), work.config.keep
    )
    return ratios, cross_annotate(
        seen.ids[:last], seen.groups[:last], pool[:last], ratios, fit_predict, work.seed
    )


def between(policy: Policy) -> list[str]:
    """The severities that only the strict reading calls violating."""
    return [severity.name for severity in policy.severities if severity.violating == "strict"]


def binary(fit_predict: Any) -> Any:
    """A two-class trainer as label.controversial wants it: the probability of violating."""

    def probability(train: np.ndarray, violating: np.ndarray, predict: np.ndarray) -> np.ndarray:
        return fit_predict(train, violating, predict)[:, 1]

    return probability


def labelled(
    work: Work, people: Mapping[str, human_labels.Consensus], found: Mapping[str, Annotation]
) -> Iterator[list[dict[str, Any]]]:
    """The rows with their labels, in the order in which they were annotated."""
    at: Counter[str] = Counter()
    named = [name for name in TABLE.names if name != "digest"]
    for rows in samples(work, people):
        for row in rows:
            row |= {"fold": -1, "loose": None, "strict": None, "voted": row["severity"]}
            if row["side"] in found and not row["abstain"]:
                apply(work, row, found[row["side"]], at[row["side"]])
                at[row["side"]] += 1
        yield as_samples(rows, named)


def apply(work: Work, row: dict[str, Any], annotation: Annotation, at: int) -> None:
    """The three-way vote as a label: a person's stands, a violating vote keeps its own severity if it was one."""
    policy = work.policy
    row["fold"] = int(annotation.fold[at])
    row["loose"], row["strict"] = float(annotation.loose[at]), float(annotation.strict[at])
    if row["origin"] == "human":
        return
    vote = annotation.vote[at]
    severity = (
        between(policy)[-1] if vote == CONTROVERSIAL else policy.mildest if vote == SAFE else policy.worst
    )
    if severity != row["severity"]:
        set_label(work, row, severity, "controversial")


if __name__ == "__main__":
    from ray_jobs.job import main

    main("controversial")
