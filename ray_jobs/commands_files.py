"""`guardmill dedup` and `guardmill mixing`: single steps on the user's own files."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict

import pyarrow as pa

from ray_jobs.files import check_writable, column, read_table, text_column, write_table
from synth.errors import BadInput


def dedup(options: argparse.Namespace) -> None:
    """Kept rows, in their order and with all their columns, into the output file; what was removed, on request."""
    from synth.decontaminate import contaminated
    from synth.dedup import DedupConfig, deduplicate

    for path in filter(None, (options.output, options.duplicates)):
        check_writable(path)
    table = read_table(options.input)
    texts = text_column(table, options.text, options.input)
    work = {"id": pa.array([f"{i:012d}" for i in range(table.num_rows)]), "text": texts}
    if options.label:
        labels = column(table, options.label, options.input).to_pylist()
        work["label"] = pa.array([None if label is None else str(label) for label in labels], pa.string())
    rows = pa.table(work)
    near: set[int] = set()
    for path in options.against:
        other = read_table(path)
        name = options.text if options.text in other.column_names else "text"
        found = contaminated(rows["text"], text_column(other, name, path))
        near.update(found["row"].to_pylist())
    clean = [i for i in range(table.num_rows) if i not in near]
    config = DedupConfig(threshold=options.threshold, permutations=options.perms, ngram=options.ngram)
    result = deduplicate(rows.take(pa.array(clean, pa.int64())), config, label="label")
    kept = [clean[i] for i in result.rows]
    write_table(table.take(pa.array(kept, pa.int64())), options.output)
    if options.duplicates:
        write_table(numbered(result.duplicates), options.duplicates)
    conflicts = result.conflicts.num_rows
    print(
        f"{table.num_rows} rows in, {len(kept)} kept, {len(clean) - len(kept)} near-duplicates, "
        f"{len(near)} near an evaluation set, {conflicts} pairs with conflicting labels",
        file=sys.stderr,
    )


def numbered(duplicates: pa.Table) -> pa.Table:
    """Removals with row numbers (from 1) of the input file in place of ids."""
    names = {"id": "row", "kept_id": "kept_row", "via": "via_row"}
    columns = {}
    for name in duplicates.column_names:
        values = duplicates[name]
        if name in names:
            values = pa.array([None if v is None else int(v) + 1 for v in values.to_pylist()], pa.int64())
        columns[names.get(name, name)] = values
    return pa.table(columns)


def mixing(options: argparse.Namespace) -> None:
    """The input's columns plus `mixed` and `spans`; a summary per language on stderr."""
    from synth.mixing import mixing as find

    check_writable(options.output)
    table = read_table(options.input)
    texts = text_column(table, options.text, options.input).to_pylist()
    languages = column(table, options.lang, options.input).to_pylist()
    sources = (
        column(table, options.source, options.input).to_pylist() if options.source else [None] * len(texts)
    )
    found, counts = [], defaultdict[str, Counter[str]](Counter)
    for number, (text, language, source) in enumerate(zip(texts, languages, sources, strict=True), 1):
        try:
            one = find(text, language, source)
        except BadInput as problem:
            raise BadInput(f"{options.input}, row {number}, column {options.lang!r}: {problem}") from None
        found.append(one)
        counts[language].update(rows=1, mixed=int(one.mixed))
    span = pa.struct(
        [("start", pa.int64()), ("end", pa.int64()), ("language", pa.string()), ("why", pa.string())]
    )
    spans = pa.array([[vars(s) for s in one.spans] for one in found], pa.list_(span))
    out = table.append_column("mixed", pa.array([one.mixed for one in found])).append_column("spans", spans)
    write_table(out, options.output)
    for language, count in sorted(counts.items()):
        print(f"{language}: {count['mixed']} of {count['rows']} rows mixed", file=sys.stderr)
