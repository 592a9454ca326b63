"""Which row of a cluster of near-duplicates survives, and the record of why the others went.

The survivor: a row of a preferred source (`prefer`, in that order), then the longer text, then the smaller
id. Contrastive twins (rows of one pair id) stand together: both are judged by the pair's best source, joint
length and first id, so that of two duplicate pairs the same one survives on both sides; in a cluster that
holds both twins both survive; and a twin yields only to another twin, never to a single row that would leave
its partner alone.

Labels: rows of different label never merge; near-duplicates that disagree are conflicts, twins excepted (that
they nearly collide is their point). A row without a label merges only with others without. Of rows that share
an id the first in canonical order stands for all; the others are listed as removed, whatever their text.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synth.errors import BadInput
from synth.lsh import components
from synth.near import DedupConfig, Edges, row_similarity
from synth.shingles import as_text

SAME_ID = -2  # in place of a band's number
NAMES = ("id", "text", "label", "pair", "source")

DUPLICATES = pa.schema([
    ("id", pa.string()), ("kept_id", pa.string()), ("similarity", pa.float64()), ("band", pa.int32()),
    ("via", pa.string()), ("via_similarity", pa.float64()),
])  # fmt: skip
CONFLICTS = pa.schema([
    ("id", pa.string()), ("other_id", pa.string()), ("label", pa.string()), ("other_label", pa.string()),
    ("similarity", pa.float64()), ("band", pa.int32()),
])  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The columns that decide, one row per id, in order of ids (R rows).

    label and pair: int64 codes, -1 for none (a pair id that occurs once is none). rank: the survivor order,
    the smaller survives. position: where the row stood in the input. repeats: the rows left out for their id,
    as (kept row, position, text).
    """

    ids: pa.Array
    text: pa.Array
    label: np.ndarray
    label_names: pa.Array
    pair: np.ndarray
    rank: np.ndarray
    position: np.ndarray
    repeats: tuple[np.ndarray, np.ndarray, pa.Array]


def plain_columns(table: pa.Table, names: tuple[str, str, str, str]) -> dict[str, pa.Array]:
    """id, text, label, pair and source as strings; all but `id` and text may be missing. Raises BadInput."""
    columns = dict(zip(NAMES, (_column(table, name) for name in ("id", *names)), strict=True))
    for name, column in (("id", columns["id"]), (names[0], columns["text"])):
        if column is None:
            raise BadInput(f"dedup: no column '{name}' (columns: {', '.join(table.column_names)})")
    plain = {k: pa.nulls(len(table), pa.large_string()) if c is None else c for k, c in columns.items()}
    return plain | {"id": as_text(plain["id"]), "text": as_text(plain["text"])}


def read_rows(table: pa.Table, config: DedupConfig, names: tuple[str, str, str, str]) -> Rows:
    """Read and order the columns named (text, label, pair, priority), see `plain_columns`."""
    plain = plain_columns(table, names)
    position = pc.sort_indices(plain["id"]).to_numpy().astype(np.int64)
    heads = _heads(plain["id"].take(position))
    if not heads.all():
        by = [(k, "ascending") for k in ("id", "source", "pair", "label", "text")]
        position = pc.sort_indices(pa.table(plain), sort_keys=by).to_numpy().astype(np.int64)
    again = position[~heads]
    repeats = (np.cumsum(heads) - 1)[~heads], again, plain["text"].take(again)
    position = position[heads]
    plain = {k: c.take(position) for k, c in plain.items()}
    label, label_names = codes(plain["label"])
    pair = codes(plain["pair"])[0]
    alone = np.bincount(pair[pair >= 0], minlength=1) < 2
    pair[(pair >= 0) & alone[pair]] = -1
    rank = survivor_rank(plain["source"], pc.utf8_length(plain["text"]).to_numpy(), pair, config.prefer)
    return Rows(plain["id"], plain["text"], label, label_names, pair, rank, position, repeats)


def _column(table: pa.Table, name: str) -> pa.Array | None:
    if name not in table.column_names:
        return None
    column = table[name].combine_chunks()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return as_text(column)
    if pa.types.is_nested(column.type):
        column = pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.large_string())
    return column.cast(pa.large_string())


def _heads(ordered: pa.Array) -> np.ndarray:
    """Where a value differs from the one before, bool [values]."""
    heads = np.ones(len(ordered), dtype=bool)
    if len(ordered) > 1:
        heads[1:] = pc.not_equal(ordered.slice(1), ordered.slice(0, len(ordered) - 1)).to_numpy(
            zero_copy_only=False
        )
    return heads


def codes(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Codes (-1: null or empty) and their values. Codes follow the sorted values, so that they are stable."""
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    values = column.unique().drop_null()
    values = values.take(pc.sort_indices(values))
    return pc.fill_null(pc.index_in(column, values), -1).to_numpy().astype(np.int64), values


def survivor_rank(
    sources: pa.Array, length: np.ndarray, pair: np.ndarray, prefer: tuple[str, ...]
) -> np.ndarray:
    """Each row's place in the survivor order, int64 [rows], for rows in order of ids."""
    source = (
        pc.fill_null(pc.index_in(sources, pa.array(prefer, sources.type)), len(prefer))
        .to_numpy()
        .astype(np.int64)
    )
    size, name = length.astype(np.int64), np.arange(len(source), dtype=np.int64)
    twins = np.flatnonzero(pair >= 0)
    if len(twins):
        count, code = int(pair.max()) + 1, pair[twins]
        best, total, first = (
            np.full(count, len(prefer)),
            np.zeros(count, np.int64),
            np.full(count, len(source)),
        )
        np.minimum.at(best, code, source[twins])
        np.add.at(total, code, size[twins])
        np.minimum.at(first, code, twins)
        source[twins], size[twins], name[twins] = best[code], total[code], first[code]
    rank = np.empty(len(source), dtype=np.int64)
    rank[np.lexsort((np.arange(len(source)), name, -size, source))] = np.arange(len(source))
    return rank


def split_edges(rows: Rows, edges: Edges) -> tuple[Edges, Edges]:
    """The edges that merge, and those that are conflicts. Edges between twins are neither."""
    twins = (rows.pair[edges.left] == rows.pair[edges.right]) & (rows.pair[edges.left] >= 0)
    one, two = rows.label[edges.left], rows.label[edges.right]
    return edges.where((one == two) & ~twins), edges.where((one != two) & (one >= 0) & (two >= 0) & ~twins)


def keepers(cluster: np.ndarray, rank: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """For every row the row that survives in its place (itself if it survives), int64 [rows]."""
    best = _best(cluster, rank, np.arange(len(cluster)))
    twin = _best(cluster, rank, np.flatnonzero(pair >= 0))
    best, twin = best[cluster], twin[cluster]
    keeper = best.copy()
    paired = np.flatnonzero(pair >= 0)
    keeper[paired] = np.where(pair[paired] == pair[twin[paired]], paired, twin[paired])
    return keeper


def _best(cluster: np.ndarray, rank: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Per cluster its row of least rank among those given (-1 without), int64 [rows], indexed by cluster."""
    best = np.full(len(cluster), -1, dtype=np.int64)
    order = among[np.argsort(-rank[among])]
    best[cluster[order]] = order
    return best


def duplicates_table(rows: Rows, merges: Edges, keeper: np.ndarray, config: DedupConfig) -> pa.Table:
    """One line per removed row: the row kept in its place, their similarity, and the edge that tied it in."""
    gone = np.flatnonzero(keeper != np.arange(len(keeper)))
    row = np.concatenate([merges.left, merges.right])
    other = np.concatenate([merges.right, merges.left])
    similarity, band = np.tile(merges.similarity, 2), np.tile(merges.band, 2)
    order = np.lexsort((other, -similarity, other != keeper[row], row))
    row, first = np.unique(row[order], return_index=True)
    pick = order[first][np.searchsorted(row, gone)]
    via, near = other[pick], similarity[pick].copy()
    exact = near.copy()
    chained = np.flatnonzero(via != keeper[gone])
    exact[chained] = row_similarity(rows.text, gone[chained], keeper[gone[chained]], config)
    twice, _, texts = rows.repeats
    both = pa.concat_arrays([texts, rows.text.take(keeper[twice])])
    count = np.arange(len(twice))
    again = row_similarity(both, count, count + len(twice), config)
    columns = [
        rows.ids.take(np.concatenate([gone, twice])),
        rows.ids.take(np.concatenate([keeper[gone], keeper[twice]])),
        np.concatenate([exact, again]),
        np.concatenate([band[pick], np.full(len(twice), SAME_ID)]),
        rows.ids.take(np.concatenate([via, twice])),
        np.concatenate([near, np.ones(len(twice))]),
    ]
    return _table(columns, DUPLICATES)


def conflicts_table(rows: Rows, conflicts: Edges) -> pa.Table:
    """Near-duplicates whose labels differ, by id."""
    order = np.lexsort((conflicts.right, conflicts.left))
    left, right = conflicts.left[order], conflicts.right[order]
    columns = [
        rows.ids.take(left), rows.ids.take(right),
        rows.label_names.take(rows.label[left]), rows.label_names.take(rows.label[right]),
        conflicts.similarity[order], conflicts.band[order],
    ]  # fmt: skip
    return _table(columns, CONFLICTS)


def _table(columns: list, schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def cluster_rows(rows: Rows, merges: Edges) -> np.ndarray:
    """Every row's cluster, named by its smallest row, int64 [rows]."""
    return components(len(rows.ids), merges.left, merges.right)
