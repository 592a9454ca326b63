"""votes: every prompt and response gets ballots from all voters and one combined, calibrated label.

Labels that people gave stand, a reviewer's (human_labels) before an import's; the votes on those rows are evidence.
Rows under the abstain band keep their label and are marked, for people to look at; they are no training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from label.vote import Combiner, combine, combine_categories, combine_refusal
from ray_jobs import human_labels
from ray_jobs.ballots import ask_voters, stack_ballots
from ray_jobs.combiner import read_combiners
from ray_jobs.seeds import MESSAGES
from ray_jobs.step import Cut, Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.voters import BALLOT, side_categories
from synth.ids import row_id
from synth.policy import Policy

# A labelled sample: the row that every later step reads. `severity`, `categories` and `refusal` are the label,
# `origin` says who gave it (human, votes, uncalibrated votes where there was no gold set, and later steps' names),
# `confidence` is calibrated (1 for people; a share of votes where there was no gold set).
SAMPLE_FIELDS = [
    pa.field("side", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("history", MESSAGES),
    pa.field("response", pa.string()),
    pa.field("thinking", pa.string()),
    pa.field("language", pa.string()),
    pa.field("leaf", pa.string()),
    pa.field("source", pa.string()),
    pa.field("pair_id", pa.string()),
    pa.field("intended", pa.string()),
    pa.field("severity", pa.string()),
    pa.field("categories", pa.list_(pa.string())),
    pa.field("refusal", pa.bool_()),
    pa.field("confidence", pa.float64()),
    pa.field("abstain", pa.bool_()),
    pa.field("origin", pa.string()),
]
SAMPLE = table_schema(SAMPLE_FIELDS)


@dataclass(frozen=True)
class VotesConfig:
    """`category_threshold`: the probability at which a voter names a category. `people`: ask the voters about rows
    that people labelled too, as evidence; their label stands in any case."""

    category_threshold: float = 0.5
    people: bool = True


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return [policy.slice_labels(), policy.slice_templates("voter", "moderation_short", "moderation_full")]


def step(config: VotesConfig, sides: tuple[str, ...]) -> Step:
    inputs = ("deduped", *(["responses"] if "response" in sides else []), human_labels.TABLE)
    tables = {"votes": SAMPLE, "ballots": BALLOT}
    return Step(
        "votes",
        run,
        config,
        tables,
        inputs=inputs,
        sides=("combiner",),
        roles=("voter",),
        reads=reads,
        cut=Cut(),
        revision=2,  # fenced texts
    )


def run(work: Work) -> Output:
    """Ballots, then labels, for one unit's prompts and responses."""
    rows = [sample_row(row, "prompt") for row in unit_rows(work, "deduped")]
    rows += [sample_row(row, "response") for row in unit_rows(work, "responses")]
    combiners = read_combiners(work)
    voters = list(combiners[work.policy.sides[0]].voters)  # both sides ask the same
    failed: list[Failed] = []
    asked = [row for row in rows if work.config.people or not row["human"]]
    ballots = ask_voters(work, asked, voters, failed)
    for side in work.policy.sides:
        here = [row for row in rows if row["side"] == side]
        if here:
            label(work, side, here, ballots, voters, combiners[side])
    human_labels.apply(work.policy, rows, human_labels.consensus(unit_rows(work, human_labels.TABLE)))
    columns = [field.name for field in SAMPLE if field.name != "digest"]
    return Output(
        {"votes": [{name: row[name] for name in columns} for row in rows], "ballots": ballots}, failed
    )


def unit_rows(work: Work, name: str) -> list[dict[str, Any]]:
    return work.rows[name].to_pylist() if name in work.rows else []


def sample_row(row: dict[str, Any], side: str) -> dict[str, Any]:
    """A prompt or response as an unlabelled sample. People's labels come along as `human`."""
    answer = side == "response"
    return {
        "id": row_id(row["id"], "sample", side),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        "side": side,
        "prompt": row["prompt"] if answer else row["text"],
        "history": row["history"],
        "response": row["text"] if answer else "",
        "thinking": row["thinking"] if answer else "",
        "human": row["human"],
        "category": row["category"],
        "refusal": row["refusal"] if answer else None,
        **{name: row[name] for name in ("language", "leaf", "source", "pair_id", "intended")},
    }


def label(
    work: Work,
    side: str,
    rows: list[dict[str, Any]],
    ballots: list[dict[str, Any]],
    voters: list[str],
    combiner: Combiner,
) -> None:
    """Fill the rows' label columns from their ballots; a person's label wins."""
    policy = work.policy
    stacked = stack_ballots(policy, side, voters, [row["id"] for row in rows], ballots)
    severity, confidence, abstain = combine(combiner, stacked)
    categories = combine_categories(combiner, stacked, severity, work.config.category_threshold)
    refusal = combine_refusal(combiner, stacked) if stacked.refusal is not None else np.full(len(rows), -1)
    names = np.array(side_categories(policy, side), dtype=object)
    voters_word = "votes" if combiner.calibrated else "uncalibrated votes"
    for i, row in enumerate(rows):
        voted = policy.severity_names[severity[i]]
        human = row["human"]
        row["severity"] = human or voted
        row["origin"] = "human" if human else voters_word
        row["confidence"] = 1.0 if human else float(confidence[i])
        row["abstain"] = False if human else bool(abstain[i])
        voted_categories = names[categories[i]].tolist()
        if row["severity"] == policy.mildest:
            row["categories"] = []
        elif human and row["category"] in names:
            row["categories"] = [row["category"]]
        else:
            row["categories"] = voted_categories or ([row["category"]] if row["category"] in names else [])
        if side != "response" or not policy.refusal:
            row["refusal"] = None
        elif not (human and row["refusal"] is not None):
            row["refusal"] = bool(refusal[i]) if refusal[i] >= 0 else row["refusal"]


if __name__ == "__main__":
    from ray_jobs.job import main

    main("votes")
