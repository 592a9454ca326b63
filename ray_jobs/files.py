"""The user's own files: JSON Lines, Parquet and CSV in, the same formats out, one clear sentence for bad ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

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


def read_table(path: str) -> pa.Table:
    """All rows of a JSON Lines, Parquet or CSV file. BadInput names the file and line that cannot be read."""
    file = existing(path)
    if file.suffix == ".jsonl":
        return pa.Table.from_pylist(list(_json_lines(file)))
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(file)
        import pyarrow.csv as csv

        return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"{path}: not readable as {file.suffix[1:]}: {str(problem).splitlines()[0]}") from None


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as problem:
                raise BadInput(f"{file}, line {number}: not UTF-8 (byte {problem.start})") from None
            except json.JSONDecodeError as problem:
                raise BadInput(f"{file}, line {number}: not JSON: {problem.msg}") from None
            if not isinstance(row, dict):
                raise BadInput(f"{file}, line {number}: a row is a JSON object, not {type(row).__name__}")
            yield row


def write_table(table: pa.Table, path: str) -> None:
    """Write rows in the format of the path's ending, atomically: the file appears whole or not at all."""
    file = Path(path)
    if file.suffix not in FORMATS:
        raise BadInput(f"{path}: unknown format {file.suffix or '(none)'!r}; use {', '.join(FORMATS)}")
    part = file.with_name(f".{file.name}.part")
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, part)
    elif file.suffix == ".csv":
        import pyarrow.csv as csv

        csv.write_csv(table, part)
    else:
        with part.open("w", encoding="utf-8") as out:
            for row in table.to_pylist():
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(file)


def column(table: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    """A column of a user's table. BadInput lists the columns there are."""
    if name not in table.column_names:
        raise BadInput(f"{path}: no column {name!r}; it has {', '.join(table.column_names)}")
    return table[name]


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
        yield _imported(row, row[text], source, policy, where)


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
    answer = response_row(prompt, response, severity, row.get("refusal"))
    return prompt, answer | {"thinking": row.get("thinking") or "", "source": "import"}
