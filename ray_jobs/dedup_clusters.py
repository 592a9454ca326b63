"""The second half of the distributed deduplication, block by block: from verified edges to clusters, survivors and the
record of removals. As in dedup_blocks, a block holds all lines of its keys, and every choice falls as it does in
`synth.dedup.deduplicate`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.dedup_blocks import TEXT, ordered, shaped
from synth.lsh import components, star_round
from synth.near import DedupConfig, Edges
from synth.shingles import as_text
from synth.survivors import DUPLICATES, Rows, codes, duplicates_table, keepers

STARS = pa.schema([("id", TEXT), ("cluster", TEXT)])
TWINS = pa.schema([("id", TEXT), ("best", pa.int64()), ("total", pa.int64()), ("first", TEXT)])
MEMBERS = pa.schema([
    ("cluster", TEXT), ("id", TEXT), ("text", TEXT), ("pair", TEXT), ("source", TEXT), ("best", pa.int64()),
    ("total", pa.int64()), ("first", TEXT), ("b", TEXT), ("similarity", pa.float64()), ("band", pa.int64()),
])  # fmt: skip


def contract(table: pa.Table) -> pa.Table:
    """Edges of one block as stars: every node and the smallest of its component within the block."""
    if not len(table):
        return STARS.empty_table()
    names, left, right = _numbered(table["a"], table["b"])
    root = components(len(names), left, right)
    node = np.flatnonzero(root != np.arange(len(names)))
    return _named(names, node, root[node])


def star(table: pa.Table, small: bool) -> pa.Table:
    """Key: id. One round of large-star or small-star (see lsh.star_round)."""
    if not len(table):
        return STARS.empty_table()
    names, node, neighbour = _numbered(table["id"], table["cluster"])
    moved, target = star_round(node, neighbour, small)
    pair = np.unique(np.stack([moved, target]), axis=1)
    return _named(names, pair[0], pair[1])


def both_ways(table: pa.Table) -> pa.Table:
    turned = pa.table({"id": table["cluster"], "cluster": table["id"]})
    return pa.concat_tables([shaped(table, STARS), shaped(turned, STARS)])


def _numbered(one: pa.ChunkedArray, two: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Names in order, and both columns as positions in them."""
    names = pa.chunked_array([*one.chunks, *two.chunks], TEXT).unique()
    names = names.take(pc.sort_indices(names))
    return names, *(pc.index_in(c, names).to_numpy().astype(np.int64) for c in (one, two))


def _named(names: pa.Array, node: np.ndarray, root: np.ndarray) -> pa.Table:
    return pa.table({"id": names.take(pa.array(node)), "cluster": names.take(pa.array(root))}, schema=STARS)


def twins(table: pa.Table, config: DedupConfig) -> pa.Table:
    """Key: pair. What a pair is judged by: its best source, joint length and first id; single rows get
    nothing."""
    table = table.append_column("length", pc.utf8_length(pc.fill_null(table["text"], "")).cast(pa.int64()))
    place = pc.fill_null(pc.index_in(table["source"], pa.array(config.prefer, TEXT)), len(config.prefer))
    table = table.append_column("best", place.cast(pa.int64()))
    pairs = table.group_by("pair").aggregate(
        [("best", "min"), ("length", "sum"), ("id", "min"), ("id", "count")]
    )
    pairs = pairs.filter(pc.greater(pairs["id_count"], 1))
    joined = table.select(["id", "pair"]).join(pairs, "pair", join_type="inner")
    return shaped(
        joined.rename_columns({"best_min": "best", "length_sum": "total", "id_min": "first"}), TWINS
    )


def conclude(table: pa.Table, config: DedupConfig) -> pa.Table:
    """Key: cluster. Rows (without `b`) and merging edges (with `b`) of whole clusters -> DUPLICATES."""
    rows = ordered(table.filter(pc.is_null(table["b"])), "id").combine_chunks()
    if not len(rows):
        return DUPLICATES.empty_table()
    edges = table.filter(pc.is_valid(table["b"]))
    ids = rows["id"].combine_chunks()
    find = {name: pc.index_in(edges[name], ids).to_numpy().astype(np.int64) for name in ("id", "b")}
    ends = np.sort(np.stack([find["id"], find["b"]]), axis=0)
    merges = Edges(ends[0], ends[1], edges["similarity"].to_numpy(), edges["band"].to_numpy())
    is_twin = np.array(rows["first"].is_valid().to_pylist(), dtype=bool)
    pair = np.where(is_twin, codes(rows["pair"].combine_chunks())[0], -1)
    rank = _rank(rows, ids, config)
    none = np.empty(0, np.int64)
    as_rows = Rows(
        ids,
        as_text(rows["text"]),
        none,
        pa.array([], TEXT),
        pair,
        rank,
        none,
        (none, none, pa.array([], TEXT)),
    )
    cluster = components(len(ids), merges.left, merges.right)
    return duplicates_table(as_rows, merges, keepers(cluster, rank, pair), config)


def _rank(rows: pa.Table, ids: pa.Array, config: DedupConfig) -> np.ndarray:
    """The survivor order within a block (survivors.survivor_rank, with the pairs' values joined in)."""
    single = pc.fill_null(
        pc.index_in(rows["source"], pa.array(config.prefer, TEXT)), len(config.prefer)
    ).cast(pa.int64())
    source = pc.coalesce(rows["best"], single).to_numpy()
    size = pc.coalesce(rows["total"], pc.utf8_length(rows["text"]).cast(pa.int64())).to_numpy()
    name = codes(pc.coalesce(rows["first"], rows["id"]).combine_chunks())[0]
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.lexsort((np.arange(len(ids)), name, -size, source))] = np.arange(len(ids))
    return rank
