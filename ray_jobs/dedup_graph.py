"""Deduplication of a dataset that no single process should hold, on Ray Data: the same result as
`synth.dedup`.

The story, each arrow a repartition by the key named (what a block then does is in dedup_blocks.py
and dedup_clusters.py): rows → by
id: repeated ids → shingles, keys and sketches → by set: exact copies → one line per band → by key: what
shares a bucket → candidate pairs → by pair: each once → with both sets: verified edges → large-star and
small-star rounds by node (Kiveris et al. 2014) until nothing changes → by cluster: survivors and the record
of removals.

The driver holds counts and two checksums. Narrow lines travel where they can: only entries that share a
bucket meet their sketches, only candidates their sets, only rows in clusters their texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs import dedup_blocks as blocks
from ray_jobs import dedup_clusters as clusters
from synth.near import DedupConfig, row_similarity
from synth.survivors import DUPLICATES, SAME_ID

if TYPE_CHECKING:
    from ray.data import Dataset

MAX_ROUNDS = 40  # large-star and small-star need O(log**2 n)
SMALL = 200_000  # so many edges are one task's work: rounds of shuffles would cost more than they save


@dataclass(frozen=True)
class GraphResult:
    """kept: datasets of ids; duplicates: survivors.DUPLICATES; conflicts: id, other_id, labels, similarity,
    band."""

    kept: Dataset
    duplicates: Dataset
    conflicts: Dataset
    counts: dict[str, int]


def deduplicate_dataset(
    rows: Dataset,
    config: DedupConfig | None = None,
    text: str = "text",
    label: str = "intended",
    pair: str = "pair_id",
    priority: str = "source",
    partitions: int = 8,
    small: int = SMALL,
) -> GraphResult:
    """`synth.dedup.deduplicate` over a Ray dataset with columns `id` and `text`; results stay datasets.

    partitions: blocks after each shuffle; one should hold its share of the shingle sets (about 1 kB a row).
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    limit = context.target_max_block_size
    context.target_max_block_size = None  # a key's rows stay in one block
    try:
        return Graph(config or DedupConfig(), partitions, small).run(rows, (text, label, pair, priority))
    finally:
        context.target_max_block_size = limit


def each(data: Dataset, work: Callable[..., pa.Table], **how: Any) -> Dataset:
    """`work` on every block."""
    return data.map_batches(
        work, batch_format="pyarrow", batch_size=None, zero_copy_batch=True, fn_kwargs=how
    )


class Graph:
    """The steps, with what they share."""

    def __init__(self, config: DedupConfig, partitions: int, small: int = SMALL) -> None:
        self.config, self.partitions, self.small = config, partitions, small

    def by(self, data: Dataset, keys: list[str], work: Callable[..., pa.Table], **how: Any) -> Dataset:
        """`work` on blocks that hold all lines of the keys in them."""
        return each(data.repartition(self.partitions, keys=keys), work, **how)

    def join(self, left: Dataset, right: Dataset, on: list[str], kind: str = "inner") -> Dataset:
        """Ray's join; neither side may be empty, as an empty dataset has lost its columns."""
        keys: Any = tuple(on)  # annotated as a tuple of one
        return left.join(right, kind, self.partitions, on=keys)

    def run(self, data: Dataset, names: tuple[str, str, str, str]) -> GraphResult:
        rows = self.by(each(data, blocks.read, names=names), ["id"], blocks.mark_repeats).materialize()
        unique = each(rows, _where, column="repeat", value=False)
        signed = each(unique, blocks.sign_rows, config=self.config)
        entries = self.by(signed, ["same"], blocks.collapse).materialize()
        candidates = self.candidates(each(entries, _first_copies)).materialize()
        edges = each(self.with_ends(candidates, entries), blocks.verify, config=self.config).materialize()
        copies = each(entries, blocks.copy_edges).materialize()
        merges = each(edges, _where, column="merges", value=True).union(copies).materialize()
        if merges.count():
            duplicates = self.removals(unique, merges, self.clusters(merges)).materialize()
        else:
            duplicates = each(entries, _columns, names=[], schema=DUPLICATES).materialize()
        gone = duplicates.select_columns(["id"])
        ids = each(unique, _columns, names=["id"], schema=pa.schema([("id", pa.string())]))
        kept = (
            self.join(ids, gone, ["id"], "left_anti").materialize()
            if duplicates.count()
            else ids.materialize()
        )
        repeats = each(rows, _where, column="repeat", value=True).materialize()
        if repeated := repeats.count():
            duplicates = duplicates.union(self.repeats(repeats, unique, duplicates)).materialize()
        conflicts = each(edges, _conflicts).materialize()
        counts = {
            "rows": rows.count(), "candidate_pairs": candidates.count(), "exact_copies": copies.count(),
            "kept": kept.count(), "removed": duplicates.count(), "repeated_ids": repeated,
            "conflicts": conflicts.count(),
        }  # fmt: skip
        return GraphResult(kept, duplicates, conflicts, counts)

    def candidates(self, entries: Dataset) -> Dataset:
        """Pairs of entries that meet in a bucket, each once."""
        crowded = self.by(each(entries, blocks.explode), ["key"], blocks.crowded).materialize()
        if not crowded.count():
            return each(entries, _columns, names=[], schema=blocks.CANDIDATES)
        known = entries.select_columns(["id", "n", "own", "label", "sketch"])
        pairs = self.by(self.join(crowded, known, ["id", "n"]), ["key"], blocks.meet, config=self.config)
        return self.by(pairs, ["a"], blocks.first_band)

    def with_ends(self, candidates: Dataset, entries: Dataset) -> Dataset:
        """Candidates with the sets and labels of both ends."""
        wanted = ["id", "n", "own", "tokens", "label", "pair", "shingles"]
        ends = entries.select_columns(wanted)
        for side in "ab":
            names = {c: c if c == "n" else side if c == "id" else f"{c}_{side}" for c in wanted}
            candidates = self.join(candidates, ends.rename_columns(names), [side, "n"])
        return candidates

    def clusters(self, merges: Dataset) -> Dataset:
        """Every row that has an edge and the smallest row of its component, by rounds of large-star and
        small-star."""
        stars = each(merges, clusters.contract).materialize()
        if stars.count() <= self.small:
            edges = stars.rename_columns({"id": "a", "cluster": "b"}).repartition(1)
            return each(edges, clusters.contract).materialize()
        before = None
        for _ in range(MAX_ROUNDS):
            stars = self.by(each(stars, clusters.both_ways), ["id"], clusters.star, small=False)
            stars = self.by(stars, ["id"], clusters.star, small=True).materialize()
            if (now := _checksum(stars)) == before:
                return stars
            before = now
        raise RuntimeError(f"dedup: clusters still changed after {MAX_ROUNDS} rounds")

    def removals(self, unique: Dataset, merges: Dataset, stars: Dataset) -> Dataset:
        """The rows of each cluster with its edges, judged in one place."""
        roots = self.by(each(stars, _roots), ["id"], _distinct)
        members = stars.union(roots).materialize()
        rows = self.join(unique, members, ["id"])
        paired = each(unique, _paired).materialize()
        if paired.count():
            twins = self.by(paired, ["pair"], clusters.twins, config=self.config).materialize()
            rows = self.join(rows, twins, ["id"], "left_outer") if twins.count() else rows
        ends = merges.select_columns(["a", "b", "similarity", "band"]).rename_columns({"a": "id"})
        edges = self.join(ends, members, ["id"])
        together = each(rows, blocks.shaped, schema=clusters.MEMBERS).union(
            each(edges, blocks.shaped, schema=clusters.MEMBERS)
        )
        return self.by(together, ["cluster"], clusters.conclude, config=self.config)

    def repeats(self, repeats: Dataset, unique: Dataset, duplicates: Dataset) -> Dataset:
        """Lines for rows whose id stood already: kept in their place is what is kept in the place of the
        first."""
        known = each(
            duplicates, blocks.shaped, schema=pa.schema([("id", blocks.TEXT), ("kept_id", blocks.TEXT)])
        )
        found = each(self.join(repeats, known, ["id"], "left_outer") if known.count() else repeats, _kept_id)
        texts = unique.select_columns(["id", "text"]).rename_columns({"id": "kept_id", "text": "kept_text"})
        return each(self.join(found, texts, ["kept_id"]), _repeated, config=self.config)


def _where(table: pa.Table, column: str, value: bool) -> pa.Table:
    return table.filter(pc.equal(table[column], value))


def _first_copies(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["id"], table["copy_of"]))


def _columns(table: pa.Table, names: list[str], schema: pa.Schema) -> pa.Table:
    return blocks.shaped(table.select(names), schema) if names else schema.empty_table()


def _roots(table: pa.Table) -> pa.Table:
    return pa.table(
        {"id": table["cluster"].unique(), "cluster": table["cluster"].unique()}, schema=clusters.STARS
    )


def _distinct(table: pa.Table) -> pa.Table:
    return _roots(table)


def _paired(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(pc.fill_null(table["pair"], ""), ""))


def _conflicts(table: pa.Table) -> pa.Table:
    names = {"a": "id", "b": "other_id", "label_a": "label", "label_b": "other_label"}
    table = table.filter(pc.invert(pc.fill_null(table["merges"], True)))
    return table.select(["a", "b", "label_a", "label_b", "similarity", "band"]).rename_columns(names)


def _kept_id(table: pa.Table) -> pa.Table:
    table = blocks.shaped(table, pa.schema([*blocks.ROWS, ("kept_id", blocks.TEXT)]))
    at = table.column_names.index("kept_id")
    return table.set_column(at, "kept_id", pc.coalesce(table["kept_id"], table["id"]))


def _repeated(table: pa.Table, config: DedupConfig) -> pa.Table:
    import numpy as np

    from synth.shingles import as_text

    count = np.arange(len(table))
    both = pa.concat_arrays([as_text(table["text"]), as_text(table["kept_text"])])
    similarity = row_similarity(both, count, count + len(count), config)
    columns = {"id": table["id"], "kept_id": table["kept_id"], "via": table["id"], "similarity": similarity}
    more = {"band": np.full(len(count), SAME_ID), "via_similarity": np.ones(len(count))}
    return blocks.shaped(pa.table(columns | more), DUPLICATES)


def _checksum(stars: Dataset) -> tuple[int, int]:
    """(lines, order-free sum of their hashes): equal if and only if nothing changed, but for a chance of
    2**-64."""
    sums = stars.map_batches(_hashes, batch_format="pyarrow", batch_size=None).take_all()
    return sum(line["lines"] for line in sums), sum(line["sum"] for line in sums) % (1 << 61)


def _hashes(table: pa.Table) -> pa.Table:
    import xxhash

    pairs = zip(table["id"].to_pylist(), table["cluster"].to_pylist(), strict=True)
    total = sum(xxhash.xxh64_intdigest(f"{one}\0{two}".encode()) for one, two in pairs) % (1 << 61)
    return pa.table({"lines": [len(table)], "sum": pa.array([total], pa.int64())})
