"""Near-duplicates out, with a record of every removal. Arrow in, Arrow out; no Ray, no models.

Algorithm. Texts become shingle sets (shingles.py); rows of equal sets and equal label collapse, the rest are
signed and banded (minhash.py), met in buckets and verified by exact Jaccard (lsh.py, near.py). Connected
components of the verified edges are clusters; one row of each survives, contrastive twins together
(survivors.py).

Measured against datasketch, rensa, datatrove and others by benchmarks/dedup.py.

Determinism: rows are put in order of their ids first; nothing afterwards depends on input order, batches or
threads.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synth.near import DedupConfig, Edges, all_edges, copies, near_edges, sign, signatures, united
from synth.semantic import semantic_edges
from synth.survivors import (
    Rows,
    cluster_rows,
    conflicts_table,
    duplicates_table,
    keepers,
    read_rows,
    split_edges,
)

__all__ = ["DedupConfig", "DedupResult", "deduplicate", "signatures"]


@dataclass(frozen=True)
class DedupResult:
    """kept: ids in the input's order, and `rows`, their positions there. duplicates: survivors.DUPLICATES
    (`band` is the band that found the row, -1 an exact copy, -2 a repeated id, -3 a neighbour by meaning, whose
    `via_similarity` is the cosine; `via` the neighbour that ties
    it to the kept row, often that row itself). conflicts: survivors.CONFLICTS. counts: rows by what became of
    them, and pairs by how far they came."""

    kept: pa.Table
    rows: np.ndarray
    duplicates: pa.Table
    conflicts: pa.Table
    counts: dict[str, int]


def deduplicate(
    table: pa.Table,
    config: DedupConfig | None = None,
    text: str = "text",
    label: str = "intended",
    pair: str = "pair_id",
    priority: str = "source",
    threads: int = 2,
    vectors: np.ndarray | None = None,
) -> DedupResult:
    """Find near-duplicates in a table with columns `id` and `text`, and say which rows survive.

    vectors: embeddings of the texts, float [rows, size]; with them rows at or above `config.semantic` by cosine are
    near-duplicates too (semantic.py).

    Memory: about 1.5 kB a row plus 16 bytes for each token. Raises BadInput for a missing column. Null and
    empty texts, and texts of punctuation alone, are kept and counted as `empty`.
    """
    config = config or DedupConfig()
    rows = read_rows(table, config, (text, label, pair, priority))
    signed = sign(rows.text, config, threads)
    empty = int((signed.shingles.tokens == 0).sum())
    first = copies(signed.shingles, rows.label)
    distinct = (first == np.arange(len(first)))[signed.shingles.row]
    if not distinct.all():
        signed = signed.take(np.flatnonzero(distinct))
    near, candidates = near_edges(signed, rows.label, config, threads)
    del signed
    counts = {
        "rows": len(table),
        "empty": empty,
        "nulls": table[text].null_count,
        "candidate_pairs": candidates,
    }
    if vectors is not None:
        spoken = np.flatnonzero(
            pc.not_equal(pc.utf8_trim_whitespace(rows.text), "").to_numpy(zero_copy_only=False)
        )
        close = semantic_edges(vectors[rows.position[spoken]], config.semantic, spoken)
        counts["semantic_pairs"] = len(close.left)
        near = united(near, close)
    return _conclude(rows, first, near, config, counts)


def _conclude(
    rows: Rows, first: np.ndarray, near: Edges, config: DedupConfig, counts: dict[str, int]
) -> DedupResult:
    merges, conflicts = split_edges(rows, all_edges(near, first))
    cluster = cluster_rows(rows, merges)
    keeper = keepers(cluster, rows.rank, rows.pair)
    stays = np.flatnonzero(keeper == np.arange(len(keeper)))
    stays = stays[np.argsort(rows.position[stays])]
    duplicates = duplicates_table(rows, merges, keeper, config)
    sizes = np.bincount(cluster, minlength=1)
    counts |= {
        "verified_pairs": len(near.left),
        "clusters": int((sizes > 1).sum()),
        "kept": len(stays),
        "exact_copies": int((first != np.arange(len(first))).sum()),
        "removed": len(duplicates),
        "repeated_ids": len(rows.repeats[0]),
        "conflicts": len(conflicts.left),
    }
    kept = pa.table({"id": rows.ids.take(stays).cast(pa.string())})
    return DedupResult(kept, rows.position[stays], duplicates, conflicts_table(rows, conflicts), counts)
