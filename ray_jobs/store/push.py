"""Copying one exact version, or all it was made from as well, into another store.

Rows travel in parts of a fixed range. Each is checked against the digests it was written with, written, and read back
and hashed where it has arrived; arrived parts are noted in the target, so that a push that was broken off goes on.
Folders that rows stand for (checkpoints) are copied before the rows, by their sha256. One commit then makes the version
visible, with the same provenance: numbers are the target's own, so inputs are named as the target knows them, or by
their old store, and `origin` says where the version came from. A version that has arrived before is found, not copied.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray_jobs.store import artifacts, tables, versions
from ray_jobs.store.digest import check_digests
from ray_jobs.store.provenance import TableVersion
from ray_jobs.store.pull import PART_ROWS, checkpoint_rows, verified_rows
from synth.errors import BadInput
from synth.ids import stable_hash

if TYPE_CHECKING:
    from ray_jobs.store.store import Store


def push_lineage(store: "Store", ref: str, target: "Store") -> list[TableVersion]:
    """Pushes a version after all that it was made from and that is still there; the target's versions, in order."""
    pushed: dict[str, TableVersion] = {}

    def go(at: TableVersion) -> None:
        for name in at.provenance.inputs.values():
            if there(store, name) and name not in pushed:
                go(store.resolve(name))
        pushed[at.ref] = push_version(store, at.ref, target)

    go(store.resolve(ref))
    return list(pushed.values())


def push_version(store: "Store", ref: str, target: "Store") -> TableVersion:
    """The version in `target` with the rows, the provenance and the folders of `ref`."""
    at = store.resolve(ref)
    if store.root == target.root:
        raise BadInput(f"cannot push {at.ref} into the store that it is in, {store.root}")
    arrived = find_copy(target, at)
    if arrived is None:
        for _, uri, sha256 in checkpoint_rows(store, at):
            artifacts.copy_folder(store.files, target.files, uri, sha256)
        fragments = _parts(store, at, target)
        inputs = {name: _named(store, target, one) for name, one in at.provenance.inputs.items()}
        made = replace(
            at.provenance, inputs=inputs, origin=at.provenance.origin or f"{store.root}#{at.ref}", same_as=""
        )
        arrived = target.commit(at.name, store.schema(at.ref), fragments, made)
    target.remove_json(_record(store, at))
    return arrived


def find_copy(target: "Store", at: TableVersion) -> TableVersion | None:
    """The newest version in `target` that is a copy of `at`, whose digests it has, or None."""
    if at.name not in target.tables():
        return None
    told = at.provenance
    for other in target.log(at.name):
        made = other.provenance
        if (made.identity, made.created, other.rows) == (told.identity, told.created, at.rows):
            return other
    return None


def there(store: "Store", ref: str) -> bool:
    """Whether a provenance's input is a version that this store still has."""
    name, at, number = ref.partition("@v")
    known = name in store.tables() if at and number.isdigit() else False
    return known and int(number) in versions.version_numbers(store.files, name)


def _parts(store: "Store", at: TableVersion, target: "Store") -> list[str]:
    """The fragments of all rows in the target; what an earlier push left whole is kept."""
    path = _record(store, at)
    noted: dict[str, Any] = target.get_json(path) or {}
    schema = store.schema(at.ref)
    fragments: list[str] = []
    for first in range(0, at.rows, PART_ROWS):
        part = noted.get(str(first))
        if part is None or not target.fragments_exist(at.name, part):
            part = target.write_fragments(at.name, verified_rows(store, at, first), schema)
            for rows in tables.read_fragments(target.files, at.name, part):
                check_digests(f"the copy of {at.ref} under {target.root}", rows)
            noted[str(first)] = part
            target.put_json(path, noted)
        fragments += part
    return fragments


def _record(store: "Store", at: TableVersion) -> str:
    return f"pushes/{at.name}-{stable_hash(store.root, at.ref, at.provenance.created)}.json"


def _named(store: "Store", target: "Store", ref: str) -> str:
    """An input as the target knows it, else with the store it stayed in."""
    copy = find_copy(target, store.resolve(ref)) if there(store, ref) else None
    return copy.ref if copy else ref if "#" in ref or "@v" not in ref else f"{store.root}#{ref}"
