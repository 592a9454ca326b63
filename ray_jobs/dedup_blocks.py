"""What happens to one block of the distributed deduplication: Arrow tables in and out, no Ray.

Each function expects a block that holds *all* rows of the keys in it (the caller repartitions by that key),
and is a thin wrapper of the pure functions of synth: rows are named by their ids instead of their positions,
and a position within a block follows the order of the ids, so that every choice falls as it does in
`synth.dedup.deduplicate`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synth.ids import stable_hash
from synth.lsh import Members, band_pairs, components, jaccard, star_round, unique_pairs
from synth.near import EXACT, DedupConfig, Edges, comparable, set_keys, sign
from synth.shingles import Shingles, as_text, mix, starts_of
from synth.survivors import DUPLICATES, Rows, codes, duplicates_table, keepers, plain_columns

TEXT = pa.large_string()
ROWS = pa.schema(
    [(name, TEXT) for name in ("id", "text", "label", "pair", "source")] + [("repeat", pa.bool_())]
)
ENTRIES = pa.schema([
    ("id", TEXT), ("n", pa.int64()), ("own", pa.bool_()), ("tokens", pa.int64()), ("label", TEXT), ("pair", TEXT),
    ("same", pa.uint64()), ("keys", pa.large_binary()), ("sketch", pa.large_binary()), ("shingles", pa.large_binary()),
])  # fmt: skip
EDGES = pa.schema([("a", TEXT), ("b", TEXT), ("similarity", pa.float64()), ("band", pa.int64()), ("merges", pa.bool_()),
                   ("label_a", TEXT), ("label_b", TEXT)])  # fmt: skip
CROWDED = pa.schema([("id", TEXT), ("n", pa.int64()), ("key", pa.uint64()), ("band", pa.int64())])
CANDIDATES = pa.schema([("a", TEXT), ("b", TEXT), ("n", pa.int64()), ("band", pa.int64())])
STARS = pa.schema([("id", TEXT), ("cluster", TEXT)])
TWINS = pa.schema([("id", TEXT), ("best", pa.int64()), ("total", pa.int64()), ("first", TEXT)])
MEMBERS = pa.schema([
    ("cluster", TEXT), ("id", TEXT), ("text", TEXT), ("pair", TEXT), ("source", TEXT), ("best", pa.int64()),
    ("total", pa.int64()), ("first", TEXT), ("b", TEXT), ("similarity", pa.float64()), ("band", pa.int64()),
])  # fmt: skip


def shaped(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns; missing ones are null."""
    names = set(table.column_names)
    columns = [
        table[f.name].cast(f.type) if f.name in names else pa.nulls(len(table), f.type) for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def ordered(table: pa.Table, *names: str) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names]))


def read(table: pa.Table, names: tuple[str, str, str, str]) -> pa.Table:
    """The columns that decide, under their own names."""
    return shaped(pa.table(plain_columns(table, names)), ROWS)


def mark_repeats(table: pa.Table) -> pa.Table:
    """Key: id. Marks every row but the first of an id."""
    table = ordered(table, "id", "source", "pair", "label", "text").combine_chunks()
    seen = codes(table["id"].combine_chunks())[0] if len(table) else np.empty(0, np.int64)
    again = np.zeros(len(table), dtype=bool)
    again[1:] = (seen[1:] == seen[:-1]) & (seen[1:] >= 0)
    return shaped(table.set_column(table.column_names.index("repeat"), "repeat", pa.array(again)), ROWS)


def sign_rows(table: pa.Table, config: DedupConfig) -> pa.Table:
    """One line per entry (see shingles.py): its set, band keys and sketch; `same` is equal for exact
    copies."""
    if not len(table):
        return ENTRIES.empty_table()
    signed = sign(as_text(table["text"]), config, threads=1)
    shingles, rows = signed.shingles, table.select(["id", "label", "pair"])
    names = table["label"].to_pylist()
    label = {name: np.uint64(int(stable_hash(name or "")[:16], 16)) for name in set(names)}
    same = fingerprints(shingles) + mix(np.array([label[name] for name in names], dtype=np.uint64))
    row = rows.take(pa.array(shingles.row))
    sets = [shingles.hashes[a:b].tobytes() for a, b in pairwise(shingles.offsets)]
    columns = {
        "id": row["id"], "n": shingles.n, "own": shingles.own, "tokens": shingles.tokens[shingles.row],
        "label": row["label"], "pair": row["pair"], "same": same[shingles.row],
        "keys": packed(np.ascontiguousarray(signed.keys.T)), "sketch": packed(signed.sketch),
        "shingles": pa.array(sets, pa.large_binary()),
    }  # fmt: skip
    return shaped(pa.table(columns), ENTRIES)


def fingerprints(shingles: Shingles) -> np.ndarray:
    """A hash of every row's own set, uint64 [rows]; rows of equal sets have equal ones (as `near.copies` has
    it)."""
    found = np.zeros(len(shingles.tokens), dtype=np.uint64)
    row, key = set_keys(shingles)
    found[row] = key
    return found


def packed(matrix: np.ndarray) -> pa.Array:
    """The rows of a matrix as bytes."""
    return pa.array([row.tobytes() for row in matrix], pa.large_binary())


def unpacked(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    """The inverse of `packed`, for rows of one width."""
    return np.frombuffer(b"".join(column.to_pylist()), dtype=dtype).reshape(len(column), -1)


def collapse(table: pa.Table) -> pa.Table:
    """Key: same. Adds the first id with the same set and label (`copy_of`) and its pair (`pair_of`)."""
    table = ordered(table, "same", "id").combine_chunks()
    same = table["same"].to_numpy()
    heads = np.ones(len(same), dtype=bool)
    heads[1:] = same[1:] != same[:-1]
    first = np.flatnonzero(heads)[np.cumsum(heads) - 1] if len(same) else np.empty(0, np.int64)
    origin = table.take(pa.array(first))
    return table.append_column("copy_of", origin["id"]).append_column("pair_of", origin["pair"])


def copy_edges(table: pa.Table) -> pa.Table:
    """Edges from collapsed rows to the first of them; twins get none."""
    pair = pc.fill_null(table["pair"], "")
    twins = pc.and_(pc.equal(pair, pc.fill_null(table["pair_of"], "")), pc.not_equal(pair, ""))
    copy = pc.and_not(pc.and_(pc.not_equal(table["id"], table["copy_of"]), table["own"]), twins)
    table = table.filter(copy)
    count = len(table)
    edges = {
        "a": table["copy_of"],
        "b": table["id"],
        "similarity": np.ones(count),
        "band": np.full(count, EXACT),
    }
    return shaped(pa.table(edges), EDGES)


def explode(table: pa.Table) -> pa.Table:
    """One line per entry and band."""
    if not len(table):
        return CROWDED.empty_table()
    keys = unpacked(table["keys"], np.uint64)
    count, bands = keys.shape
    row = pa.array(np.repeat(np.arange(count), bands))
    band = np.tile(np.arange(bands), count)
    columns = {"id": table["id"].take(row), "n": table["n"].take(row), "key": keys.ravel(), "band": band}
    return shaped(pa.table(columns), CROWDED)


def crowded(table: pa.Table) -> pa.Table:
    """Key: key. Keeps what shares its key."""
    keys = table["key"].to_numpy()
    _, back, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return table.filter(pa.array(counts[back] > 1)) if len(keys) else table


def meet(table: pa.Table, config: DedupConfig) -> pa.Table:
    """Key: key. Candidate pairs of the buckets in this block."""
    parts = [CANDIDATES.empty_table()]
    for band in np.unique(table["band"].to_numpy()):
        mine = ordered(table.filter(pc.equal(table["band"], int(band))), "id", "n").combine_chunks()
        members = Members(
            unpacked(mine["sketch"], np.uint8),
            codes(mine["label"].combine_chunks())[0],
            np.array(mine["own"].to_pylist(), dtype=bool),
        )
        left, right = band_pairs(mine["key"].to_numpy(), members, int(band), config.bands, config.threshold)
        first = unique_pairs(left, right, len(mine))
        one, two = pa.array(left[first]), pa.array(right[first])
        pairs = {"a": mine["id"].take(one), "b": mine["id"].take(two), "n": mine["n"].take(one)}
        parts.append(shaped(pa.table(pairs | {"band": np.full(len(first), band)}), CANDIDATES))
    return pa.concat_tables(parts)


def first_band(table: pa.Table) -> pa.Table:
    """Key: a. One line per pair: the lowest band that found it."""
    return shaped(
        table.group_by(["a", "b", "n"]).aggregate([("band", "min")]).rename_columns({"band_min": "band"}),
        CANDIDATES,
    )


def verify(table: pa.Table, config: DedupConfig) -> pa.Table:
    """Candidates with both ends' entries (columns `…_a`, `…_b`) -> verified edges, merges and conflicts."""
    if not len(table):
        return EDGES.empty_table()
    count = len(table)
    sets = [np.frombuffer(b, np.uint64) for side in "ab" for b in table[f"shingles_{side}"].to_pylist()]
    both = {
        name: np.concatenate([np.array(table[f"{name}_{s}"].to_pylist()) for s in "ab"])
        for name in ("own", "tokens")
    }
    n = np.tile(table["n"].to_numpy(), 2)
    where = starts_of(np.array([len(s) for s in sets]))
    shingles = Shingles(
        np.arange(2 * count), n, both["own"].astype(bool), where, np.concatenate(sets), both["tokens"]
    )
    left, right = np.arange(count), np.arange(count) + count
    similarity = jaccard(shingles, left, right)
    close = comparable(shingles, left, right, config) & (similarity >= config.threshold)
    table = table.append_column("similarity", pa.array(similarity)).filter(pa.array(close))
    return split(shaped(table, pa.schema([*EDGES, ("pair_a", TEXT), ("pair_b", TEXT)])))


def split(table: pa.Table) -> pa.Table:
    """Mark which edges merge; edges between twins fall away, and those to rows without a label where labels
    differ."""
    filled = {name: pc.fill_null(table[name], "") for name in ("label_a", "label_b", "pair_a", "pair_b")}
    twins = pc.and_(pc.equal(filled["pair_a"], filled["pair_b"]), pc.not_equal(filled["pair_a"], ""))
    same = pc.equal(filled["label_a"], filled["label_b"])
    named = pc.and_(pc.not_equal(filled["label_a"], ""), pc.not_equal(filled["label_b"], ""))
    table = table.set_column(table.column_names.index("merges"), "merges", same)
    return shaped(table.filter(pc.and_not(pc.or_(same, named), twins)), EDGES)


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
