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
from synth.lsh import Members, band_pairs, jaccard, unique_pairs
from synth.near import EXACT, DedupConfig, comparable, set_keys, sign
from synth.shingles import Shingles, as_text, mix, starts_of
from synth.survivors import codes, plain_columns

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
