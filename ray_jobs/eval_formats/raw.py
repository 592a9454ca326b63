"""Rows of a local file as dicts, whatever it is written in: JSON, JSON Lines (also as .json), CSV, TSV, Parquet, and
all but the last compressed with gzip or xz. CSV cells stay the strings they are."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synth.errors import BadInput

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
csv.field_size_limit(1 << 27)


def raw_rows(path: str) -> list[dict[str, Any]]:
    """All rows of the file. BadInput, in one sentence, for a file that cannot be read or has none."""
    file = Path(path)
    packed = file.suffix if file.suffix in (".gz", ".xz") else ""
    ending = Path(file.stem).suffix if packed else file.suffix
    if not file.is_file():
        raise BadInput(f"{path}: no such file")
    if ending not in ENDINGS:
        raise BadInput(f"{path}: unknown format {ending or '(none)'!r}; use {', '.join(ENDINGS)}")
    rows = _parquet(file) if ending == ".parquet" else _text_rows(_decoded(file, packed), ending, path)
    if not rows:
        raise BadInput(f"{path}: the file has no rows")
    return rows


def _decoded(file: Path, packed: str) -> str:
    try:
        data = file.read_bytes()
        if packed:
            data = (gzip if packed == ".gz" else lzma).decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise BadInput(f"{file}: not UTF-8 (byte {problem.start})") from None
    except (OSError, EOFError, lzma.LZMAError) as problem:
        raise BadInput(f"{file}: not readable ({problem})") from None


def _text_rows(content: str, ending: str, path: str) -> list[dict[str, Any]]:
    if ending in (".csv", ".tsv"):
        return list(_delimited(content, "\t" if ending == ".tsv" else ",", path))
    if ending == ".json":
        try:
            return _listed(json.loads(content), path)
        except json.JSONDecodeError as problem:
            if not problem.msg.startswith("Extra data"):
                raise BadInput(f"{path}, line {problem.lineno}: not JSON: {problem.msg}") from None
    return list(_lines(content, path))


def _delimited(content: str, delimiter: str, path: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise BadInput(
                    f"{path}, line {reader.line_num}: the row has another number of cells than the header"
                )
            yield row
    except csv.Error as problem:
        raise BadInput(f"{path}, line {reader.line_num}: not readable as CSV: {problem}") from None


def _listed(value: Any, path: str) -> list[dict[str, Any]]:
    """A list of objects; an object with a list `instances` or `data` of them; or a single object."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("instances", "data") if name in value), [value])
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadInput(f"{path}: holds no list of JSON objects")
    return value


def _lines(content: str, path: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise BadInput(f"{path}, line {number}: not JSON: {problem.msg}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number}: a row is a JSON object, not {type(row).__name__}")
        yield row


def _parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file).to_pylist()
    except pa.ArrowInvalid as problem:
        raise BadInput(f"{file}: not readable as parquet: {str(problem).splitlines()[0]}") from None
