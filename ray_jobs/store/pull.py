"""Copying one exact version out: in parts, verified, resumable, with a manifest and a data card.

A part is a fixed range of rows. It is written under a draft name, renamed, and entered with its sha256 in
`.pull.json`; a pull that was broken off starts again from there and keeps each part whose file still has its
sha256. `manifest.json` is written last, so a folder that has one is whole. Every row is hashed again on its
way and compared with the digest it was written with. Rows that stand for folders (checkpoints) bring them along.
`datasets.load_dataset(FOLDER)` reads the parquet and jsonl forms through the card's header.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.store import artifacts
from ray_jobs.store.card import data_card
from ray_jobs.store.digest import check_digests
from ray_jobs.store.provenance import StoreError, TableVersion, storage_errors
from ray_jobs.store.root import checked
from ray_jobs.store.versions import lance_module
from synth.errors import BadInput

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

FORMATS = ("parquet", "jsonl", "lance")
PART_ROWS = 50_000
_BATCH_ROWS = 10_000  # divides PART_ROWS, so parts end where batches do
_PROGRESS, _MANIFEST = ".pull.json", "manifest.json"


def pull_version(store: "Store", ref: str, folder: Path, format: str) -> dict[str, Any]:
    """The manifest of the finished pull. BadInput for an unknown format or a folder that is in use."""
    if format not in FORMATS:
        raise BadInput(f"unknown format {format!r}: use {', '.join(FORMATS)}")
    at = store.resolve(ref)
    head = {"ref": at.ref, "format": format, "rows": at.rows, "identity": at.provenance.identity}
    head["created"] = at.provenance.created
    with storage_errors(f"pull {at.ref} into {folder}"):
        earlier = _earlier_parts(folder, head)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        _write_json(folder / _PROGRESS, head | {"files": earlier})
        (folder / _MANIFEST).unlink(missing_ok=True)
        files = _parts(store, at, folder, head, earlier)
        if format == "lance":
            _finish_lance(folder, store.schema(at.ref), files)
        schema = store.schema(at.ref)
        files += _folders(store, at, folder)
        columns = [{"name": f.name, "type": str(f.type)} for f in schema]
        manifest = head | {"files": files, "columns": columns, "provenance": _record(at)}
        _write(folder / "README.md", data_card(store, at, schema, manifest).encode())
        _write_json(folder / _MANIFEST, manifest)
        (folder / _PROGRESS).unlink()
    return manifest


def verify_pull(folder: Path) -> dict[str, Any]:
    """The manifest of a pulled folder, every file checked against it. StoreError names one that differs."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise BadInput(f"{folder} has no {_MANIFEST}: it is no finished pull")
    manifest = json.loads(path.read_text())
    for part in manifest["files"]:
        if not _whole(folder, part):
            raise StoreError(
                f"{folder / part['path']} is gone or not what was pulled: pull {manifest['ref']} again"
            )
    return manifest


def _earlier_parts(folder: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts that an earlier pull of the same version left whole. BadInput when there is anything else."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"cannot pull into {folder}: it is a file")
    if not folder.exists() or not any(folder.iterdir()):
        return []
    record = next((p for p in (folder / _PROGRESS, folder / _MANIFEST) if p.is_file()), None)
    if record is None:
        raise BadInput(f"cannot pull into {folder}: it holds other things than a pulled version")
    earlier = json.loads(record.read_text())
    if {key: earlier.get(key) for key in head} != head:
        what = f"{earlier.get('ref')} as {earlier.get('format')}"
        raise BadInput(f"cannot pull {head['ref']} as {head['format']} into {folder}: it holds {what}")
    parts = [part for part in earlier["files"] if "first_row" in part]
    return [part for part in parts if _whole(folder, part)]


def _parts(
    store: "Store", at: TableVersion, folder: Path, head: dict[str, Any], earlier: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Writes the parts that are missing; progress is on disk after each."""
    whole = {part["first_row"]: part for part in earlier}
    files: list[dict[str, Any]] = []
    least = (
        0 if head["format"] == "lance" else 1
    )  # an empty version has one empty file, but no Lance fragment
    for first in range(0, max(at.rows, least), PART_ROWS):
        if first not in whole:
            rows = verified_rows(store, at, first)
            path, extra = _write_part(folder, head["format"], first // PART_ROWS, rows)
            whole[first] = {"path": path, "first_row": first, "rows": rows.num_rows, **extra}
            whole[first] |= {"sha256": _sha256(folder / path), "bytes": (folder / path).stat().st_size}
        files.append(whole[first])
        _write_json(folder / _PROGRESS, head | {"files": list(whole.values())})
    return files


def _folders(store: "Store", at: TableVersion, folder: Path) -> list[dict[str, Any]]:
    """What the rows of a checkpoint table stand for: each stored folder, as FOLDER/checkpoints/NAME, its sha256
    compared with the row's before and after the copy."""
    listed: list[dict[str, Any]] = []
    for name, uri, sha256 in checkpoint_rows(store, at):
        target = folder / "checkpoints" / checked(name or sha256[:16])
        if not target.is_dir() or artifacts.folder_sha256(target) != sha256:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(store.get_folder(uri, sha256), target)
        if artifacts.folder_sha256(target) != sha256:
            raise StoreError(f"the copy of {uri} in {target} is not what was stored: checksums differ")
        for path in sorted(p for p in target.rglob("*") if p.is_file()):
            entry = {"path": path.relative_to(folder).as_posix(), "checkpoint": name}
            listed.append(entry | {"sha256": _sha256(path), "bytes": path.stat().st_size})
    return listed


def checkpoint_rows(store: "Store", at: TableVersion) -> list[tuple[str, str, str]]:
    """(name, uri, sha256) of the folders that a version's rows stand for; none for a table of other rows."""
    columns = store.schema(at.ref).names
    if not {"uri", "sha256"} <= set(columns):
        return []
    wanted = [name for name in ("name", "uri", "sha256") if name in columns]
    return [
        (row.get("name", ""), row["uri"], row["sha256"]) for row in store.read(at.ref, wanted).to_pylist()
    ]


def verified_rows(store: "Store", at: TableVersion, first: int) -> pa.Table:
    """The rows of one part, each with its stored digest. StoreError names the first that differs."""
    positions = range(first, min(first + PART_ROWS, at.rows))
    rows = store.take(at.ref, list(positions)) if positions else store.schema(at.ref).empty_table()
    return check_digests(at.ref, rows)


def _write_part(folder: Path, format: str, number: int, rows: pa.Table) -> tuple[str, dict[str, Any]]:
    """Writes one part whole: its path in the folder, and what must be remembered of it."""
    if format == "lance":
        lance_module()
        from lance.fragment import write_fragments

        uri = str(folder / "data" / "table.lance")
        (fragment,) = write_fragments(rows, uri, schema=rows.schema, mode="overwrite")
        return f"data/table.lance/data/{fragment.files[0].path}", {"fragment": fragment.to_json()}
    path = folder / "data" / f"part-{number:05d}.{format}"
    draft = path.with_name(f".{path.name}.part")
    if format == "parquet":
        pq.write_table(rows, draft, compression="zstd")
    else:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(_json_lines(rows))
    draft.replace(path)
    return f"data/{path.name}", {}


def _json_lines(rows: pa.Table) -> Iterator[str]:
    for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            yield json.dumps(row, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> str:
    """Bytes as base64, times in ISO form."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value.isoformat()


def _finish_lance(folder: Path, schema: pa.Schema, files: list[dict[str, Any]]) -> None:
    """Commits the parts as version 1 of a table of its own, and removes parts that a broken pull left."""
    lance = lance_module()
    from lance.fragment import FragmentMetadata

    table = folder / "data" / "table.lance"
    for leftover in ("_versions", "_transactions"):
        shutil.rmtree(table / leftover, ignore_errors=True)
    listed = {folder / part["path"] for part in files}
    for data_file in table.glob("data/*"):
        if data_file not in listed:
            data_file.unlink()
    fragments = [FragmentMetadata.from_json(json.dumps(part["fragment"])) for part in files]
    lance.LanceDataset.commit(str(table), lance.LanceOperation.Overwrite(schema, fragments))


def _record(at: TableVersion) -> dict[str, Any]:
    return json.loads(at.provenance.to_json())


def _whole(folder: Path, part: dict[str, Any]) -> bool:
    path = folder / part["path"]
    return path.is_file() and path.stat().st_size == part["bytes"] and _sha256(path) == part["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, record: dict[str, Any]) -> None:
    _write(path, json.dumps(record, ensure_ascii=False, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(data)
    os.replace(draft, path)
