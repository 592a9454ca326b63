"""Lineage by id: from a row back to its seed, and from a row to all that was made of it.

A row's parent is looked for where it can be: in the versions that the provenance lists as inputs. A step that
passes rows on (dedup, votes) keeps their ids, so the same id upstream counts before the parent id. What is
found is followed in turn; the walk ends at a row whose parent no input holds, which is a seed of the policy.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_jobs.store.provenance import TableVersion
from synth.errors import BadInput

if TYPE_CHECKING:
    from ray_jobs.store.store import Store


@dataclass(frozen=True)
class LineageRow:
    """One row on the way: the exact version that holds it and all its columns."""

    ref: str
    id: str
    parent_id: str
    row: dict[str, Any]


def trace(store: "Store", ref: str, id: str) -> list[LineageRow]:
    """The row itself first, then each ancestor, the seed's first row last. BadInput for an unknown id."""
    here = store.resolve(ref)
    found = _row(store, here, id)
    if found is None:
        raise BadInput(f"{here.ref} has no row with the id {id}")
    path = [found]
    seen = {(found.ref, found.id)}
    while (step := _upstream(store, here, path[-1])) is not None:
        here, found = step
        if (found.ref, found.id) in seen:
            break
        seen.add((found.ref, found.id))
        path.append(found)
    return path


def descend(store: "Store", ref: str, id: str) -> list[LineageRow]:
    """Rows that came from this one, breadth first: those with its id or with it as parent, and so on."""
    start = store.resolve(ref)
    if _row(store, start, id) is None:
        raise BadInput(f"{start.ref} has no row with the id {id}")
    users = _users(store)
    found: dict[tuple[str, str], LineageRow] = {}
    queue = deque([(start, id)])
    while queue:
        at, parent = queue.popleft()
        for user in [at, *users.get(at.ref, [])]:
            for row in _rows(store, user, parent):
                key = (row.ref, row.id)
                if key not in found and key != (start.ref, id):
                    found[key] = row
                    queue.append((user, row.id))
    return list(found.values())


def _upstream(store: "Store", at: TableVersion, row: LineageRow) -> tuple[TableVersion, LineageRow] | None:
    """The same row in an input, else its parent: in its own version, its inputs, their inputs, and last in the
    tables that the same step made beside it."""
    for place in _inputs(store, at):
        found = _row(store, place, row.id)
        if found is not None and (found.ref, found.id) != (row.ref, row.id):
            return place, found
    for place in _places(store, at) if row.parent_id else ():
        found = _row(store, place, row.parent_id)
        if found is not None and (found.ref, found.id) != (row.ref, row.id):
            return place, found
    return None


def _places(store: "Store", at: TableVersion) -> Iterator[TableVersion]:
    """Where a row's parent may stand, nearest first."""
    yield at
    yield from all_inputs(store, at)
    for name in store.tables():
        beside = store.find(name, at.provenance.identity) if name != at.name else None
        if beside is not None:
            yield beside


def _inputs(store: "Store", at: TableVersion) -> list[TableVersion]:
    """Direct inputs that are still there."""
    known = set(store.tables())
    there = []
    for ref in at.provenance.inputs.values():
        if ref.partition("@")[0] in known:
            try:
                there.append(store.resolve(ref))
            except BadInput:
                continue  # cleaned up since: the walk goes on through the other inputs
    return there


def all_inputs(store: "Store", at: TableVersion) -> list[TableVersion]:
    """Inputs, their inputs and so on, nearest first."""
    ordered: dict[str, TableVersion] = {}
    queue = deque(_inputs(store, at))
    while queue:
        version = queue.popleft()
        if version.ref not in ordered:
            ordered[version.ref] = version
            queue.extend(_inputs(store, version))
    return list(ordered.values())


def _users(store: "Store") -> dict[str, list[TableVersion]]:
    """For each version, the newest version of every table that lists it as an input."""
    users: dict[str, dict[str, TableVersion]] = {}
    for name in store.tables():
        for version in store.versions(name):
            for ref in version.provenance.inputs.values():
                users.setdefault(ref, {})[name] = version
    return {ref: [by_table[name] for name in sorted(by_table)] for ref, by_table in users.items()}


def _row(store: "Store", at: TableVersion, id: str) -> LineageRow | None:
    rows = store.read(at.ref, filter=f"id = {_literal(id)}").to_pylist()
    return LineageRow(at.ref, id, rows[0]["parent_id"], rows[0]) if rows else None


def _rows(store: "Store", at: TableVersion, parent: str) -> list[LineageRow]:
    """Rows with that id or that parent."""
    literal = _literal(parent)
    rows = store.read(at.ref, filter=f"id = {literal} or parent_id = {literal}").to_pylist()
    return [LineageRow(at.ref, r["id"], r["parent_id"], r) for r in rows]


def _literal(text: str) -> str:
    """An SQL string literal: ids come from people and files too."""
    return "'" + text.replace("'", "''") + "'"
