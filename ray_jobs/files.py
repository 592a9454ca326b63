"""The user's own files: JSON Lines, Parquet and CSV in, the same formats out, one clear sentence for bad ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synth.errors import BadInput
from synth.ids import row_id
from synth.policy import Policy

FORMATS = (".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Import:
    """A file of rows to import. Its content's sha256 is its identity, its path is not."""

    path: str = field(metadata={"identity": False})
    sha256: str


def import_file(path: str) -> Import:
    """Check that a file to import is there, and hash it."""
    file = existing(path)
    return Import(str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest())


def existing(path: str) -> Path:
    """A readable file of a known format. BadInput otherwise."""
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"{path}: no such file")
    if file.suffix not in FORMATS:
        raise BadInput(f"{path}: unknown format {file.suffix or '(none)'!r}; use {', '.join(FORMATS)}")
    if file.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty")
    return file


def read_table(path: str, replace: bool = False) -> pa.Table:
    """All rows of a JSON Lines, Parquet or CSV file. BadInput names the file and line that cannot be read; with
    `replace`, bytes that are not UTF-8 become the replacement character instead (see `broken_rows`)."""
    file = existing(path)
    try:
        if file.suffix == ".jsonl":
            table = _by_column(list(_json_lines(file, replace)), path)
        elif file.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(file)
            table = _valid(table) if replace else table
        else:
            import pyarrow.csv as csv

            if not replace:
                _check_utf8(file)
            content = file.read_bytes().decode("utf-8", "replace").encode() if replace else file.read_bytes()
            options = csv.ParseOptions(newlines_in_values=True)
            table = csv.read_csv(pa.BufferReader(content), parse_options=options)
    except (pa.ArrowInvalid, OSError) as problem:
        raise BadInput(f"{path}: not readable as {file.suffix[1:]}: {str(problem).splitlines()[0]}") from None
    if not table.num_rows:
        raise BadInput(f"{path}: the file has no rows")
    return table


def _by_column(rows: list[dict[str, Any]], path: str) -> pa.Table:
    """Rows as a table with every column that any of them has."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise BadInput(f"{path}: column {name!r} holds values of different kinds") from None
    return pa.table(columns)


def _valid(table: pa.Table) -> pa.Table:
    """The table with the replacement character for what is not UTF-8 in its columns of strings."""
    for at, field_ in enumerate(table.schema):
        if pa.types.is_string(field_.type) or pa.types.is_large_string(field_.type):
            values = table.column(at).combine_chunks()
            try:
                values.validate(full=True)
            except pa.ArrowInvalid:
                raw = values.cast(pa.large_binary() if field_.type == pa.large_string() else pa.binary())
                whole = [None if one is None else one.decode("utf-8", "replace") for one in raw.to_pylist()]
                table = table.set_column(at, field_.name, pa.array(whole, pa.large_string()))
    return table


def broken_rows(table: pa.Table) -> int:
    """How many rows hold a replacement character: what was not UTF-8 when it was read with `replace`."""
    broken = pa.array([False] * len(table))
    for name in table.column_names:
        values = table[name]
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            broken = pc.or_(broken, pc.fill_null(pc.match_substring(values, "\ufffd"), False))
    return int(pc.sum(broken).as_py() or 0)


def readable(table: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    """A column of texts, nulls and empty ones among them. BadInput for one of another kind."""
    values = column(table, name, path)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return pa.chunked_array(
            [pa.array([None if v is None else v.decode("utf-8", "replace") for v in values.to_pylist()])]
        )
    if not (
        pa.types.is_string(values.type)
        or pa.types.is_large_string(values.type)
        or pa.types.is_null(values.type)
    ):
        raise BadInput(f"{path}: column {name!r} holds {values.type}, not text")
    return values.cast(pa.large_string())


def _json_lines(file: Path, replace: bool = False) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8", "replace" if replace else "strict")
                )
                if b"\\ud" in line.lower():
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeDecodeError as problem:
                raise BadInput(f"{file}, line {number}: not UTF-8 (byte {problem.start})") from None
            except UnicodeEncodeError:
                raise BadInput(f"{file}, line {number}: a \\u escape names half a character") from None
            except json.JSONDecodeError as problem:
                raise BadInput(f"{file}, line {number}: not JSON: {problem.msg}") from None
            if not isinstance(row, dict):
                raise BadInput(f"{file}, line {number}: a row is a JSON object, not {type(row).__name__}")
            yield row


def _check_utf8(file: Path) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as problem:
                raise BadInput(f"{file}, line {number}: not UTF-8 (byte {problem.start})") from None


def check_writable(path: str) -> Path:
    """A path that a table can be written to. BadInput for an unknown format or a folder that is not there."""
    file = Path(path)
    if file.suffix not in FORMATS:
        raise BadInput(f"{path}: unknown format {file.suffix or '(none)'!r}; use {', '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise BadInput(f"{path}: there is no folder {file.parent}")
    return file


def write_table(table: pa.Table, path: str) -> None:
    """Write rows in the format of the path's ending, atomically: the file appears whole or not at all. CSV holds nested
    values as JSON."""
    file = check_writable(path)
    part = file.with_name(f".{file.name}.part")
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, part)
        elif file.suffix == ".csv":
            import pyarrow.csv as csv

            csv.write_csv(_flat(table), part)
        else:
            with part.open("w", encoding="utf-8") as out:
                for row in table.to_pylist():
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _flat(table: pa.Table) -> pa.Table:
    columns = {}
    for name in table.column_names:
        values = table[name]
        if pa.types.is_nested(values.type):
            values = pa.array(
                [json.dumps(value, ensure_ascii=False) for value in values.to_pylist()], pa.string()
            )
        columns[name] = values
    return pa.table(columns)


def column(table: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    """A column of a user's table. BadInput lists the columns there are."""
    if name not in table.column_names:
        raise BadInput(f"{path}: no column {name!r}; it has {', '.join(table.column_names)}")
    return table[name]


def text_column(table: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    """A column of texts. BadInput names the first row that holds none."""
    values = column(table, name, path)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    number = 0
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        lengths = pc.utf8_length(pc.utf8_trim_whitespace(values))
        number = pc.index(pc.fill_null(pc.equal(lengths, 0), True), True).as_py()
    if number >= 0 and len(values):
        raise BadInput(f"{path}, row {number + 1}: column {name!r} holds no text")
    return values.cast(pa.string())


def read_import(source: Import, policy: Policy) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Every row of an imported file as (prompt row, response row or None). Columns: `prompt` (or `text`), and if they
    are there `response`, `thinking`, `severity`, `category`, `refusal`, `language`, `history`."""
    table = read_table(source.path)
    text = "prompt" if "prompt" in table.column_names else "text"
    column(table, text, source.path)
    for number, row in enumerate(table.to_pylist(), 1):
        where = f"{source.path}, row {number}"
        if not isinstance(row[text], str) or not row[text].strip():
            raise BadInput(f"{where}: column {text!r} holds no text")
        _check_row(row, where)
        yield _imported(row, row[text], source, policy, where)


def _check_row(row: dict[str, Any], where: str) -> None:
    """BadInput for an optional column whose value is of the wrong kind."""
    for name in ("response", "thinking", "severity", "category", "language"):
        if not isinstance(row.get(name) or "", str):
            raise BadInput(f"{where}: column {name!r} holds no text")
    refusal = row.get("refusal")
    if not (refusal is None or refusal == "" or isinstance(refusal, bool)):
        raise BadInput(f"{where}: column 'refusal' holds {refusal!r}, not true or false")
    turns = row.get("history") or []
    told = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not told or any(not isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
        raise BadInput(f"{where}: column 'history' holds no list of messages with role and content")


def _imported(
    row: dict[str, Any], text: str, source: Import, policy: Policy, where: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from ray_jobs.seeds import import_group, response_row

    severity = row.get("severity") or ""
    category = row.get("category") or ""
    if severity and severity not in policy.severity_names:
        names = ", ".join(policy.severity_names)
        raise BadInput(f"{where}: column 'severity' holds {severity!r}; the policy knows {names}")
    if category and category not in {c.id for c in policy.categories}:
        names = ", ".join(c.id for c in policy.categories)
        raise BadInput(f"{where}: column 'category' holds {category!r}; the policy knows {names}")
    response = row.get("response") or ""
    label = "" if response else severity
    prompt = {
        "id": row_id(source.sha256, "import", [text, label]),
        "parent_id": "",
        "group_id": import_group(text),
        "text": text,
        "history": row.get("history") or [],
        "language": row.get("language") or "und",
        "leaf": "",
        "category": category,
        "intended": label,
        "human": label,
        "source": "import",
        "keyword": "",
        "pair_id": "",
    }
    if not response:
        return prompt, None
    refusal = None if row.get("refusal") == "" else row.get("refusal")
    answer = response_row(prompt, response, severity, refusal)
    return prompt, answer | {"thinking": row.get("thinking") or "", "source": "import"}
