"""Checkpoints as rows: what a training or fitting step leaves behind, and how a role finds it.

A model named "@step/name" is the checkpoint `name` of that step's table, at the version the run works on. Its sha256
is its revision, so it enters the identity of every step that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.store import Store, TableVersion, table_schema
from synth.errors import BadInput
from synth.ids import row_id

if TYPE_CHECKING:
    from ray_jobs.engine import Model

CHECKPOINT = table_schema(
    [
        pa.field("name", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("metrics", pa.string()),
        pa.field("data", pa.string()),
    ]
)


def checkpoint_row(
    store: Store, step: str, identity: str, name: str, kind: str, folder: Path, metrics: str, data: str
) -> dict[str, Any]:
    """Move a finished checkpoint folder into the store and return its row. `metrics` and `data` (input versions)
    are JSON."""
    uri, sha256 = store.put_folder(str(folder), f"{step}/{identity}/{name}")
    return {
        "id": row_id(identity, "checkpoint", name),
        "parent_id": "",
        "group_id": identity,
        "name": name,
        "kind": kind,
        "uri": uri,
        "sha256": sha256,
        "metrics": metrics,
        "data": data,
    }


def find_checkpoint(store: Store, version: TableVersion, name: str) -> dict[str, Any]:
    """The row of checkpoint `name` in a checkpoint table."""
    table = store.read(version.ref)
    found = table.filter(pc.equal(table["name"], name)).to_pylist()
    if not found:
        names = ", ".join(sorted(table["name"].to_pylist()))
        raise BadInput(f"{version.ref} has no checkpoint {name!r}, only {names}")
    return found[0]


def checkpoint_of(
    model: Model, store: Store, version: Callable[[str], TableVersion]
) -> dict[str, Any] | None:
    """The checkpoint row that "@step/name" stands for; None for a model from elsewhere."""
    if not model.name.startswith("@"):
        return None
    step, _, name = model.name[1:].partition("/")
    return find_checkpoint(store, version(step), name)


def resolve_model(model: Model, store: Store, version: Callable[[str], TableVersion]) -> Model:
    """`model` itself, or for "@step/name" the verified local folder of that checkpoint."""
    row = checkpoint_of(model, store, version)
    if row is None:
        return model
    return replace(model, name=str(store.get_folder(row["uri"], row["sha256"])), revision=row["sha256"])
