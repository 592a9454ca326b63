"""dedup: near-duplicate prompts out, contrastive twins kept, nothing near the held-out gold rows let through.

Every removal can be audited: `duplicates` names the row that stayed, the similarity and the band that found the pair;
`conflicts` holds near-duplicates whose labels disagree (both stay); `contaminated` the rows too near an evaluation
set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.seeds import PROMPT
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from synth import dedup
from synth.decontaminate import contaminated
from synth.ids import row_id
from synth.survivors import CONFLICTS as PAIR_CONFLICTS
from synth.survivors import DUPLICATES as PAIR_DUPLICATES

DUPLICATES = table_schema([pa.field("row", pa.string()), *(f for f in PAIR_DUPLICATES if f.name != "id")])
CONFLICTS = table_schema([pa.field("row", pa.string()), *(f for f in PAIR_CONFLICTS if f.name != "id")])
CONTAMINATED = table_schema(
    [
        pa.field("text", pa.string()),
        pa.field("evaluation", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("overlap", pa.float64()),
    ]
)


@dataclass(frozen=True)
class DedupJobConfig:
    """`against_gold`: drop rows near the gold rows held out for evaluation."""

    dedup: dedup.DedupConfig = dedup.DedupConfig(prefer=("seed", "pair", "import"))
    against_gold: bool = True


def step(config: DedupJobConfig) -> Step:
    tables = {
        "deduped": PROMPT,
        "duplicates": DUPLICATES,
        "conflicts": CONFLICTS,
        "contaminated": CONTAMINATED,
    }
    sides = ("prompts", "gold") if config.against_gold else ("prompts",)
    return Step("dedup", run, config, tables, sides=sides, by_group=True)


def run(work: Work) -> Output:
    """Drop what is near a held-out gold row, then near-duplicates."""
    table = work.read("prompts").drop_columns(["digest"])
    near: list[dict[str, Any]] = []
    if work.config.against_gold:
        table, near = decontaminate(table, work.read("gold"))
    result = dedup.deduplicate(
        table, work.config.dedup, text="text", label="intended", pair="pair_id", priority="source"
    )
    kept = table.take(pa.array(result.rows))
    groups = dict(zip(table["id"].to_pylist(), table["group_id"].to_pylist(), strict=True))
    tables: dict[str, pa.Table | list[dict[str, Any]]] = {
        "deduped": kept,
        "duplicates": audited(result.duplicates, "duplicate", groups),
        "conflicts": audited(result.conflicts, "conflict", groups),
        "contaminated": near,
    }
    dropped = Counter({"near-duplicate": table.num_rows - kept.num_rows, "near an evaluation row": len(near)})
    return Output(tables, dropped=+dropped)


def audited(pairs: pa.Table, kind: str, groups: dict[str, str]) -> list[dict[str, Any]]:
    """Pairs as rows of a side table: `row` is the removed (or disputed) prompt."""
    rows = []
    for number, pair in enumerate(pairs.to_pylist()):
        row = pair.pop("id")
        common = {"id": row_id(row, kind, number), "parent_id": row, "group_id": groups[row], "row": row}
        rows.append(common | pair)
    return rows


def decontaminate(table: pa.Table, gold: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows far enough from every held-out gold prompt, and those that are not."""
    held = [row["prompt"] for row in gold.to_pylist() if row["split"] == "test"]
    found = {row["row"]: row for row in contaminated(table["text"], pa.array(held, pa.string())).to_pylist()}
    texts = table.select(["id", "group_id", "text"]).to_pylist()
    rows = [
        {
            "id": row_id(texts[at]["id"], "contaminated", ""),
            "parent_id": texts[at]["id"],
            "group_id": texts[at]["group_id"],
            "text": texts[at]["text"],
            "evaluation": held[pair["eval_row"]],
            "reason": pair["reason"],
            "overlap": pair["overlap"],
        }
        for at, pair in sorted(found.items())
    ]
    return table.filter(pa.array([at not in found for at in range(table.num_rows)])), rows


if __name__ == "__main__":
    from ray_jobs.job import main

    main("dedup")
