"""`guardmill dedup`: near-duplicates out of a file of one's own, with a record of every removal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_jobs.files import broken_rows, check_writable, column, read_table, readable, write_table
from synth.errors import BadInput

if TYPE_CHECKING:
    from synth.dedup import DedupResult
    from synth.near import DedupConfig


def add_dedup(commands: Any) -> None:
    about = (
        "remove near-duplicates from a file of your own (JSONL, Parquet, CSV), and rows near evaluation sets"
    )
    one = commands.add_parser("dedup", help=about, description=about)
    one.set_defaults(command=dedup)
    one.add_argument("input")
    one.add_argument("output")
    one.add_argument("--text", required=True, metavar="COLUMN")
    one.add_argument("--label", metavar="COLUMN", help="rows with different labels never merge")
    one.add_argument(
        "--id", metavar="COLUMN", help="of rows with one id the first is kept; default: row numbers"
    )
    one.add_argument("--pair", metavar="COLUMN", help="contrastive twins: rows of one pair survive together")
    one.add_argument("--source", metavar="COLUMN", help="where a row is from, for --prefer")
    one.add_argument("--prefer", nargs="+", default=["human"], metavar="SOURCE",
                     help="sources whose rows survive, best first; then the longer text, then the id")  # fmt: skip
    one.add_argument("--threshold", type=float, default=0.7, help="Jaccard similarity of duplicates")
    one.add_argument("--ngram", type=int, help="words per shingle; default: by the length of the text")
    one.add_argument("--perms", type=int, default=128)
    one.add_argument(
        "--against", nargs="*", default=[], metavar="FILE", help="drop rows near these evaluation sets"
    )
    one.add_argument(
        "--duplicates", metavar="FILE", help="write what was removed: kept row, similarity, band"
    )
    one.add_argument(
        "--conflicts", metavar="FILE", help="write near-duplicates whose labels differ (both stay)"
    )
    one.add_argument("--contaminated", metavar="FILE", help="write the rows near an evaluation set, and why")
    one.add_argument("--json", action="store_true", help="print the counts as JSON")


def dedup(options: argparse.Namespace) -> None:
    """Kept rows, in their order and with all their columns, into the output file; the record beside it, on request."""
    from synth.dedup import DedupConfig, deduplicate

    for path in filter(None, (options.output, options.duplicates, options.conflicts, options.contaminated)):
        check_writable(path)
    config = DedupConfig(options.threshold, options.perms, options.ngram, prefer=tuple(options.prefer))
    table = read_table(options.input, replace=True)
    rows = columns_of(table, options)
    near = contamination(rows["text"], options, config)
    gone = set(near["row"].to_pylist())
    clean = [i for i in range(len(table)) if i not in gone]
    result = deduplicate(
        rows.take(pa.array(clean, pa.int64())), config, label="label", pair="pair", priority="source"
    )
    kept = [clean[i] for i in result.rows]
    write_table(table.take(pa.array(kept, pa.int64())), options.output)
    for path, found in (
        (options.duplicates, named(result.duplicates, options)),
        (options.conflicts, named(result.conflicts, options)),
        (options.contaminated, counted(near, rows["id"], options)),
    ):
        if path:
            write_table(found, path)
    report(table, result, near, config, options)


def columns_of(table: pa.Table, options: argparse.Namespace) -> pa.Table:
    """The columns that decide, as strings. Without ids of its own a row is named by its number."""
    path = options.input
    work = {"text": readable(table, options.text, path)}
    if options.id:
        ids = column(table, options.id, path)
        if ids.null_count:
            row = ids.is_null().to_pylist().index(True) + 1
            raise BadInput(f"{path}, row {row}: column {options.id!r} holds no id")
        work["id"] = pa.array([str(value) for value in ids.to_pylist()], pa.string())
    else:
        work["id"] = pa.array([f"{i:012d}" for i in range(1, len(table) + 1)])
    for name in ("label", "pair", "source"):
        if chosen := getattr(options, name):
            values = column(table, chosen, path).to_pylist()
            work[name] = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.table(work)


def contamination(texts: pa.ChunkedArray, options: argparse.Namespace, config: DedupConfig) -> pa.Table:
    """The rows near an evaluation set: (row, evaluation, evaluation_row, reason, overlap); `row` counts from 0."""
    from synth.decontaminate import contaminated

    parts = []
    for path in options.against:
        other = read_table(path, replace=True)
        name = options.text if options.text in other.column_names else "text"
        found = contaminated(texts, readable(other, name, path), config)
        found = found.add_column(1, "evaluation", pa.array([path] * len(found), pa.string()))
        numbers = pa.array([row + 1 for row in found["eval_row"].to_pylist()], pa.int64())
        at = found.column_names.index("eval_row")
        parts.append(found.set_column(at, "evaluation_row", numbers))
    empty = pa.table({"row": pa.array([], pa.int64()), "evaluation": pa.array([], pa.string())})
    return pa.concat_tables(parts) if parts else empty


def counted(near: pa.Table, ids: pa.ChunkedArray, options: argparse.Namespace) -> pa.Table:
    """Rows near an evaluation set by their ids or numbers (from 1)."""
    found = ids.take(near["row"])
    named_so = found if options.id else found.cast(pa.int64())
    return near.set_column(0, "id" if options.id else "row", named_so)


def named(pairs: pa.Table, options: argparse.Namespace) -> pa.Table:
    """Pairs by ids, or by row numbers (from 1) of the input file where it has no ids."""
    if options.id:
        return pairs
    names = {"id": "row", "kept_id": "kept_row", "via": "via_row", "other_id": "other_row"}
    columns = {}
    for name in pairs.column_names:
        values = pairs[name]
        if name in names:
            values = pa.array([None if v is None else int(v) for v in values.to_pylist()], pa.int64())
        columns[names.get(name, name)] = values
    return pa.table(columns)


def report(
    table: pa.Table, result: DedupResult, near: pa.Table, config: DedupConfig, options: argparse.Namespace
) -> None:
    """Every row by what became of it, and the S-curve of the bands."""
    counts = dict(result.counts) | {
        "rows": len(table),
        "near_evaluation": len(set(near["row"].to_pylist())),
        "not_utf8": broken_rows(table),
    }
    bands = config.bands
    curve = {f"{s:.2f}": round(bands.recall(s), 4) for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)}
    if options.json:
        print(json.dumps(counts | {"bands": bands.count, "rows_per_band": bands.rows, "curve": curve}))
        return
    print(
        f"{counts['rows']} rows in, {counts['kept']} kept, {counts['removed']} near-duplicates, "
        f"{counts['near_evaluation']} near an evaluation set, {counts['conflicts']} pairs with conflicting labels\n"
        f"of these {counts['exact_copies']} exact copies, {counts['repeated_ids']} repeated ids; kept although "
        f"without words: {counts['empty']} ({counts['nulls']} null); not UTF-8: {counts['not_utf8']}",
        file=sys.stderr,
    )
    told = ", ".join(f"{share:.1%} at {s}" for s, share in curve.items())
    print(f"{bands.count} bands of {bands.rows}: pairs that meet, by similarity: {told}", file=sys.stderr)
