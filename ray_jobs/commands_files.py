"""`guardmill mixing`: foreign words in a file of one's own."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict

import pyarrow as pa

from ray_jobs.files import check_writable, column, read_table, readable, write_table
from synth.errors import BadInput


def mixing(options: argparse.Namespace) -> None:
    """The input's columns plus `mixed` and `spans`; a summary per language on stderr."""
    from synth.mixing import mixing as find

    check_writable(options.output)
    table = read_table(options.input)
    texts = readable(table, options.text, options.input).to_pylist()
    languages = column(table, options.lang, options.input).to_pylist()
    sources = (
        column(table, options.source, options.input).to_pylist() if options.source else [None] * len(texts)
    )
    found, counts = [], defaultdict[str, Counter[str]](Counter)
    for number, (text, language, source) in enumerate(zip(texts, languages, sources, strict=True), 1):
        try:
            if not language:
                raise BadInput("no language code")
            one = find(text, language, source)
        except BadInput as problem:
            raise BadInput(f"{options.input}, row {number}, column {options.lang!r}: {problem}") from None
        found.append(one)
        counts[language].update(rows=1, mixed=int(one.mixed), empty=int(not (text or "").strip()))
    span = pa.struct(
        [("start", pa.int64()), ("end", pa.int64()), ("language", pa.string()), ("why", pa.string())]
    )
    spans = pa.array([[vars(s) for s in one.spans] for one in found], pa.list_(span))
    out = table.append_column("mixed", pa.array([one.mixed for one in found])).append_column("spans", spans)
    write_table(out, options.output)
    for language, count in sorted(counts.items()):
        empty = f", {count['empty']} empty" if count["empty"] else ""
        print(f"{language}: {count['mixed']} of {count['rows']} rows mixed{empty}", file=sys.stderr)
