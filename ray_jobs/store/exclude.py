"""Taking rows out for good, with everything that was made from them, as new versions.

Chosen rows are those of one table that a condition on columns names (a source, an id). Everything derived is what has
an excluded row as its parent, or is one under the same id in another table, again and again until nothing more is
found. Each table that holds any of it gets a new version without it: fragments that hold nothing of it are listed again
as they are, the others are written anew. The identity stays (it is still that step's output), the inputs are the new
versions, and `counts` say how many rows went; so the next run takes it up, and redoes what follows from it.

What a later run makes again under the same id (a seed of the policy, a cached unit) stays out: the chosen rows are
listed in the table `exclusions`, which every unit's output is filtered by, and the records of finished units that hold
them are removed. Earlier versions keep their rows until `clean` may remove them: never while a tag or a checkpoint
refers to them. Weights that were trained on excluded rows do not forget them: those checkpoints are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.store import tables
from ray_jobs.store.provenance import Overtaken, Provenance, StoreError, TableVersion, utc_now
from ray_jobs.store.pull import checkpoint_rows
from synth.errors import BadInput
from synth.ids import stable_hash

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

TABLE = "exclusions"
SCHEMA = tables.table_schema([pa.field(name, pa.string()) for name in ("table", "reason", "at")])
_TRIES = 5


@dataclass(frozen=True)
class Excluded:
    """`chosen`: rows that the condition named. `rows`: those and all derived ones, by table, with `versions`, each
    table's new exact name ("" in a dry run). `trained`: checkpoints that have seen some of them."""

    chosen: int
    rows: dict[str, int]
    versions: dict[str, str]
    trained: tuple[str, ...]


def exclude(
    store: "Store", name: str, where: Mapping[str, str], reason: str, dry_run: bool = False
) -> Excluded:
    """Excludes the rows of a table's newest version whose columns have the values of `where`, and all derived ones.

    Busy when a run holds the root. BadInput for an unknown column, or when no row is named.
    """
    with store.lock():
        newest = {n: store.resolve(n) for n in store.tables() if n != TABLE}
        at = store.resolve(name)
        chosen = _chosen(store, at, where)
        gone = derived(store, list(newest.values()), chosen["id"])
        counts = {n: count for n, v in newest.items() if (count := _count(store, v, gone))}
        trained = _trained(store, newest, counts)
        if dry_run:
            return Excluded(chosen.num_rows, counts, dict.fromkeys(counts, ""), trained)
        _note(store, at, chosen, reason)
        _forget_units(store, list(counts), gone)
        made: dict[str, str] = {}
        for version in _in_order(newest):
            if version.name in counts:
                made[version.name] = _rewrite(store, version.name, gone, made).ref
        return Excluded(chosen.num_rows, counts, made, trained)


def excluded_ids(store: "Store") -> pa.Array:
    """The ids of all rows chosen for exclusion so far."""
    if TABLE not in store.tables():
        return pa.array([], pa.string())
    return store.read(TABLE, columns=["id"])["id"].combine_chunks()


def without(rows: pa.Table, gone: pa.Array) -> pa.Table:
    """`rows` without those in `gone` and what was made from them here."""
    while len(gone):
        hit = _hit(rows, gone)
        if not pc.any(hit).as_py():
            break
        gone = rows["id"].filter(hit).combine_chunks()
        rows = rows.filter(pc.invert(hit))
    return rows


def derived(store: "Store", newest: Sequence[TableVersion], chosen: pa.ChunkedArray) -> pa.Array:
    """The ids of `chosen` and of everything made from them. Holds those ids and a batch of rows at a time."""
    gone = chosen.combine_chunks()
    while True:
        found = [gone]
        for version in newest:
            for batch in store.batches(version.ref, columns=["id", "parent_id"]):
                rows = pa.table(batch)
                found.append(rows["id"].filter(_hit(rows, gone)).combine_chunks())
        more = pa.chunked_array(found, pa.string()).unique()
        if len(more) == len(gone):
            return more
        gone = more


def _hit(rows: pa.Table, gone: pa.Array) -> pa.ChunkedArray:
    return pc.or_(pc.is_in(rows["id"], value_set=gone), pc.is_in(rows["parent_id"], value_set=gone))


def _chosen(store: "Store", at: TableVersion, where: Mapping[str, str]) -> pa.Table:
    if not where:
        raise BadInput("exclude needs a condition, such as source=import")
    wanted = sorted({"id", "parent_id", "group_id", *where})
    rows = store.read(at.ref, columns=wanted)
    for column, value in where.items():
        try:
            rows = rows.filter(pc.equal(rows[column].cast(pa.string()), value))
        except pa.ArrowNotImplementedError as error:
            raise BadInput(
                f"{at.ref}: column {column} is {rows[column].type}, which no value can be given for"
            ) from error
    if not rows.num_rows:
        told = ", ".join(f"{column}={value}" for column, value in where.items())
        raise BadInput(f"{at.ref} has no row with {told}")
    return rows


def _count(store: "Store", version: TableVersion, gone: pa.Array) -> int:
    batches = store.batches(version.ref, columns=["id", "parent_id"])
    return sum(pc.sum(_hit(pa.table(batch), gone)).as_py() or 0 for batch in batches)


def _trained(
    store: "Store", newest: Mapping[str, TableVersion], counts: Mapping[str, int]
) -> tuple[str, ...]:
    """Newest checkpoints, one of whose inputs loses rows."""
    hit = {newest[name].ref for name in counts}
    made = [v for v in newest.values() if hit & set(v.provenance.inputs.values())]
    return tuple(v.ref for v in made if checkpoint_rows(store, v))


def _note(store: "Store", at: TableVersion, chosen: pa.Table, reason: str) -> None:
    """The chosen rows into the table of exclusions, beside those that are there."""
    earlier = store.resolve(TABLE) if TABLE in store.tables() else None
    there = tables.fragments_of(store.files, earlier) if earlier else []
    known = excluded_ids(store)
    new = chosen.select(["id", "parent_id", "group_id"])
    new = new.filter(pc.invert(pc.is_in(new["id"], value_set=known)))
    for column, value in (("table", at.name), ("reason", reason), ("at", utc_now())):
        new = new.append_column(column, pa.array([value] * new.num_rows, pa.string()))
    written = store.write_fragments(TABLE, new, SCHEMA)
    identity = stable_hash(TABLE, sorted([*known.to_pylist(), *new["id"].to_pylist()]))
    made = Provenance("exclude", identity, {"reason": reason}, inputs={at.name: at.ref})
    store.commit(TABLE, SCHEMA, there + written, made)


def _forget_units(store: "Store", names: Sequence[str], gone: pa.Array) -> None:
    """Removes the records of finished units that hold excluded rows, whichever run made them."""
    seen: dict[str, bool] = {}
    for path in store.list_json("ledger"):
        record = store.get_json(path)
        for name, fragments in (record.get("fragments") or {}).items():
            if name in names and any(_holds(store, name, one, gone, seen) for one in fragments):
                store.remove_json(path)
                break


def _holds(store: "Store", name: str, fragment: str, gone: pa.Array, seen: dict[str, bool]) -> bool:
    if fragment not in seen:
        whole = tables.fragments_exist(store.files, name, [fragment])
        rows = tables.read_fragments(store.files, name, [fragment], ["id", "parent_id"]) if whole else ()
        seen[fragment] = any(pc.any(_hit(table, gone)).as_py() for table in rows)
    return seen[fragment]


def _in_order(newest: Mapping[str, TableVersion]) -> list[TableVersion]:
    """Versions after those they were made from."""
    by_ref = {version.ref: version for version in newest.values()}
    ordered: dict[str, TableVersion] = {}

    def go(version: TableVersion) -> None:
        for ref in version.provenance.inputs.values():
            if ref in by_ref and ref not in ordered:
                go(by_ref[ref])
        ordered.setdefault(version.ref, version)

    for version in newest.values():
        go(version)
    return list(ordered.values())


def _rewrite(store: "Store", name: str, gone: pa.Array, made: Mapping[str, str]) -> TableVersion:
    """A table's newest version without what is gone; again from the newest when another writer was faster."""
    for _ in range(_TRIES):
        at = store.resolve(name)
        schema = store.schema(at.ref)
        kept: list[str] = []
        dropped = 0
        for fragment in tables.fragments_of(store.files, at):
            if not _holds(store, name, fragment, gone, {}):
                kept.append(fragment)
                continue
            for rows in tables.read_fragments(store.files, name, [fragment]):
                left = rows.filter(pc.invert(_hit(rows, gone)))
                dropped += rows.num_rows - left.num_rows
                kept += store.write_fragments(name, left, schema)
        told = at.provenance
        inputs = {key: made.get(ref.partition("@")[0], ref) for key, ref in told.inputs.items()}
        lost = {**(told.counts.get("dropped") or {}), "excluded": dropped}
        counts = told.counts | {"out": at.rows - dropped, "dropped": lost}
        new = replace(told, inputs=inputs, counts=counts, created="", same_as="")
        try:
            return tables.commit(store.files, name, schema, kept, new, after=at.version)
        except Overtaken:
            continue
    raise StoreError(f"cannot rewrite table {name}: other writers were faster {_TRIES} times; try again")
