"""dedup: near-duplicate prompts out, contrastive twins kept, nothing near an evaluation set let through.

Every removal can be audited: `duplicates` names the row that stayed, the similarity and the band that found the pair;
`conflicts` holds near-duplicates whose labels disagree (both stay); `contaminated` the rows too near an evaluation
set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.dedup_spread import DECIDING, spread
from ray_jobs.engine import Failure
from ray_jobs.files import Import, import_file, read_table, readable
from ray_jobs.seeds import PROMPT
from ray_jobs.step import Output, Rows, Step, Work
from ray_jobs.store import table_schema
from synth import dedup
from synth.decontaminate import nearest
from synth.errors import BadInput
from synth.ids import row_id
from synth.survivors import CONFLICTS as PAIR_CONFLICTS
from synth.survivors import DUPLICATES as PAIR_DUPLICATES

DUPLICATES = table_schema([pa.field("row", pa.string()), *(f for f in PAIR_DUPLICATES if f.name != "id")])
CONFLICTS = table_schema([pa.field("row", pa.string()), *(f for f in PAIR_CONFLICTS if f.name != "id")])
COLUMNS = [name for name in PROMPT.names if name != "digest"]
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
    """`against_gold`: drop rows near the gold rows held out for evaluation; `evaluations`: and those near these
    registered evaluation sets; `semantic`: a second pass over embeddings (role `embedder`), at dedup.semantic. Above
    `in_one` prompts the same work is spread over Ray (dedup_spread), but for the semantic pass, which one process does.
    """

    dedup: dedup.DedupConfig = dedup.DedupConfig(prefer=("seed", "pair", "import"))
    against_gold: bool = True
    evaluations: tuple[Import, ...] = ()
    semantic: bool = False
    in_one: int = field(default=1_000_000, metadata={"identity": False})


def step(config: DedupJobConfig) -> Step:
    tables = {
        "deduped": PROMPT,
        "duplicates": DUPLICATES,
        "conflicts": CONFLICTS,
        "contaminated": CONTAMINATED,
    }
    sides = ("prompts", "gold") if config.against_gold else ("prompts",)
    roles = ("embedder",) if config.semantic else ()
    return Step("dedup", run, config, tables, sides=sides, roles=roles, by_group=True)


def run(work: Work) -> Output:
    """Drop what is near a held-out gold row, then near-duplicates. Of a row only what decides is held."""
    gold = work.read("gold") if work.config.against_gold else None
    held = held_out(gold, work.config.evaluations)
    if work.versions["prompts"].rows > work.config.in_one and not work.config.semantic:
        return spread(work, held, decontaminate, audited, COLUMNS)
    table = work.read("prompts", columns=DECIDING)
    read = table.num_rows
    table = table.append_column("at", pa.array(np.arange(read)))
    near: list[dict[str, Any]] = []
    for name, texts in held.items():
        table, found = decontaminate(table, name, texts)
        near += found
    result = dedup.deduplicate(
        table,
        work.config.dedup,
        text="text",
        label="intended",
        pair="pair_id",
        priority="source",
        vectors=vectors(work, table["text"].to_pylist()) if work.config.semantic else None,
    )
    stays = np.zeros(read, dtype=bool)
    stays[table["at"].to_numpy()[result.rows]] = True
    removed = pa.concat_tables([result.duplicates.select(["id"]), result.conflicts.select(["id"])])
    named = table.filter(pc.is_in(table["id"].cast(pa.string()), pc.unique(removed["id"])))
    groups = dict(zip(named["id"].to_pylist(), named["group_id"].to_pylist(), strict=True))
    pairs = [
        one.append_column("group_id", pa.array([groups[row] for row in one["id"].to_pylist()], pa.string()))
        for one in (result.duplicates, result.conflicts)
    ]
    tables: dict[str, Rows | Iterator[Rows]] = {
        "deduped": kept(work, stays),
        "duplicates": audited(pairs[0], "duplicate"),
        "conflicts": audited(pairs[1], "conflict"),
        "contaminated": near,
    }
    dropped = Counter({
        "near-duplicate": table.num_rows - len(result.rows), "near an evaluation row": len(near),
    })  # fmt: skip
    return Output(tables, dropped=+dropped)


def kept(work: Work, stays: np.ndarray) -> Iterator[pa.Table]:
    """The rows that stay, whole, as they are read once more."""
    first = 0
    for batch in work.store.batches(work.versions["prompts"].ref, columns=COLUMNS):
        yield pa.table(batch).filter(pa.array(stays[first : first + batch.num_rows]))
        first += batch.num_rows


def vectors(work: Work, texts: list[str]) -> np.ndarray:
    """The texts' embeddings; a text that the embedder could not read is near nothing."""
    found = work.engines.get("embedder").embed(texts)
    size = next((len(one) for one in found if not isinstance(one, Failure)), 1)
    return np.stack([np.zeros(size) if isinstance(one, Failure) else np.asarray(one) for one in found])


def audited(pairs: pa.Table, kind: str) -> list[dict[str, Any]]:
    """Pairs with their rows' groups as rows of a side table: `row` is the removed (or disputed) prompt."""
    rows = []
    for pair in pairs.to_pylist():
        row, other = pair.pop("id"), pair.get("kept_id") or pair.get("other_id")
        rows.append({"id": row_id(row, kind, other), "parent_id": row, "row": row} | pair)
    return rows


def held_out(gold: pa.Table | None, evaluations: tuple[Import, ...]) -> dict[str, list[str]]:
    """The texts that training must stay away from, by the name of their evaluation set: the prompts of held-out gold
    rows, and the registered files' column `prompt` (or `text`). BadInput for a file that has changed."""
    held: dict[str, list[str]] = {}
    if gold is not None:
        held["gold"] = [row["prompt"] for row in gold.to_pylist() if row["split"] == "test"]
    for file in evaluations:
        if import_file(file.path).sha256 != file.sha256:
            raise BadInput(f"{file.path}: the evaluation set is not the one that was registered")
        table = read_table(file.path)
        name = "prompt" if "prompt" in table.column_names else "text"
        held[Path(file.path).name] = [text or "" for text in readable(table, name, file.path).to_pylist()]
    return held


def decontaminate(table: pa.Table, name: str, held: list[str]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows far enough from every text of an evaluation set, and those that are not."""
    found = nearest(table["text"], pa.array(held, pa.string()))
    texts = table.select(["id", "group_id", "text"]).to_pylist()
    rows = [
        {
            "id": row_id(texts[at]["id"], "contaminated", name),
            "parent_id": texts[at]["id"],
            "group_id": texts[at]["group_id"],
            "text": texts[at]["text"],
            "evaluation": held[pair["eval_row"]],
            "reason": pair["reason"],
            "overlap": pair["overlap"],
        }
        for at, pair in sorted(found.items())
    ]
    return table.filter(pa.array([at not in found for at in range(table.num_rows)], pa.bool_())), rows


if __name__ == "__main__":
    from ray_jobs.job import main

    main("dedup")
