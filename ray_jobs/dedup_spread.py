"""dedup for more prompts than the driver should hold: the same rows go, found over Ray (dedup_graph).

The driver passes rows through a batch at a time. It holds the ids of what goes, and the evaluation sets, which travel
to the blocks whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.dedup_graph import deduplicate_dataset, each
from ray_jobs.step import Output, Work

if TYPE_CHECKING:
    from ray.data import Dataset

DECIDING = ["id", "group_id", "text", "intended", "pair_id", "source"]
PARTITION = 100_000  # prompts whose shingles one block holds
Decontaminate = Callable[[pa.Table, str, list[str]], tuple[pa.Table, list[dict[str, Any]]]]
Audited = Callable[[pa.Table, str], list[dict[str, Any]]]


def spread(
    work: Work, held: dict[str, list[str]], decontaminate: Decontaminate, audited: Audited, columns: list[str]
) -> Output:
    """What `ray_jobs.dedup.run` returns, which lends how a table is decontaminated and a pair written down; `columns`
    are those of the kept rows."""
    prompts = work.versions["prompts"]
    rows = work.store.dataset(prompts.ref, columns=DECIDING)
    near = lines(each(rows, found_near, held=held, decontaminate=decontaminate)) if held else []
    gone = pa.array([line["parent_id"] for line in near], pa.string())
    clean = each(rows, without, ids=gone) if near else rows
    parts = max(2, -(-prompts.rows // PARTITION))
    result = deduplicate_dataset(
        clean, work.config.dedup, "text", "intended", "pair_id", "source", partitions=parts
    )
    ids = [pa.chunked_array([gone])] + [
        batch["id"].cast(pa.string()) for batch in tables(result.duplicates.select_columns(["id"]))
    ]
    gone = pa.chunked_array([chunk for one in ids for chunk in one.chunks], pa.string())
    groups = work.store.dataset(prompts.ref, columns=["id", "group_id"])

    def record(pairs: Dataset, kind: str) -> Iterator[list[dict[str, Any]]]:
        if pairs.count():
            joined = pairs.join(groups, "inner", parts, on=("id",))  # type: ignore[arg-type]
            yield from (audited(batch, kind) for batch in tables(joined))

    dropped = {"near-duplicate": result.counts["removed"], "near an evaluation row": len(near)}
    return Output(
        {
            "deduped": kept(work, gone, columns),
            "duplicates": record(result.duplicates, "duplicate"),
            "conflicts": record(result.conflicts, "conflict"),
            "contaminated": near,
        },
        dropped=+Counter(dropped),
    )


def kept(work: Work, gone: pa.ChunkedArray, columns: list[str]) -> Iterator[pa.Table]:
    """The rows that stay, whole, as they are read once more."""
    for batch in work.store.batches(work.versions["prompts"].ref, columns=columns):
        yield without(pa.table(batch), gone)


def tables(data: Dataset) -> Iterator[pa.Table]:
    return iter(data.iter_batches(batch_format="pyarrow", batch_size=16_384))


def lines(data: Dataset) -> list[dict[str, Any]]:
    return [line for table in tables(data) for line in table.to_pylist()]


def found_near(table: pa.Table, held: dict[str, list[str]], decontaminate: Decontaminate) -> pa.Table:
    """The lines of a block's rows that lie near an evaluation set."""
    near: list[dict[str, Any]] = []
    for name, texts in held.items():
        table, found = decontaminate(table, name, texts)
        near += found
    return pa.Table.from_pylist(near, schema=NEAR)


NEAR = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "parent_id", "group_id", "text", "evaluation", "reason")),
        ("overlap", pa.float64()),
    ]
)


def without(table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["id"].cast(pa.string()), value_set=ids)))
