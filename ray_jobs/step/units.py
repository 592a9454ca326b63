"""Units: how a step's rows are cut, how a unit is named, run and recorded."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_jobs.step.definition import Failed, Output, Step, Work, recipe_of
from ray_jobs.store import Store, TableVersion, table_schema
from synth.ids import row_id, stable_hash

if TYPE_CHECKING:
    from synth.policy import Policy

QUARANTINE = table_schema(
    [pa.field("reason", pa.string()), pa.field("raw", pa.string()), pa.field("unit", pa.string())]
)


@dataclass(frozen=True)
class Unit:
    """A share of a step's work: its key, its identity, and where its rows stand in each cut input."""

    key: str
    identity: str
    rows: Mapping[str, tuple[int, ...]]
    groups: frozenset[str]

    @property
    def size(self) -> int:
        return sum(len(indices) for indices in self.rows.values())


def cut_units(
    step: Step,
    policy: Policy,
    seed: int,
    weights: Mapping[str, str],
    store: Store,
    versions: Mapping[str, TableVersion],
) -> list[Unit]:
    """The units of `step` over its input versions, by key. Only ids, digests and the cut's columns are read."""
    assert step.cut is not None
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    content: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    leaves: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, set[str]] = defaultdict(set)
    for name in step.inputs:
        columns = dict.fromkeys(("id", "digest", "group_id", "leaf", *step.cut.columns))
        table = store.read(versions[name].ref, columns=list(columns))
        keys = [step.cut.key(values) for values in zip(*(table[c].to_pylist() for c in step.cut.columns))]
        facts = zip(keys, *(table[c].to_pylist() for c in ("id", "digest", "leaf", "group_id")))
        for index, (key, row, digest, leaf, group) in enumerate(facts):
            places[key][name].append(index)
            content[key].append((name, row, digest))
            leaves[key].add(leaf)
            groups[key].add(group)
    sides = {name: side_digest(store, versions[name]) for name in step.sides}
    shared = recipe_of(step, seed, weights)
    return [
        Unit(
            key,
            stable_hash(shared, sides, step.reads(policy, frozenset(leaves[key])), sorted(content[key])),
            {name: tuple(indices) for name, indices in places[key].items()},
            frozenset(groups[key]),
        )
        for key in sorted(places)
    ]


def side_digest(store: Store, version: TableVersion) -> str:
    """The content of a table that every unit reads whole."""
    return stable_hash(sorted(store.read(version.ref, columns=["digest"])["digest"].to_pylist()))


def record_path(step: Step, identity: str) -> str:
    return f"ledger/{step.name}/{identity}.json"


def finished(store: Store, step: Step, unit_identity: str) -> dict[str, Any] | None:
    """The record of a finished unit whose fragments are all there, else None."""
    record = store.get_json(record_path(step, unit_identity))
    if record is None:
        return None
    there = all(store.fragments_exist(name, fragments) for name, fragments in record["fragments"].items())
    return record if there else None


def run_unit(step: Step, unit: Unit, work: Work) -> dict[str, Any]:
    """Run one unit and record it: fragments first, the record last. Returns the record."""
    started = time.monotonic()
    rows = {name: work.store.take(work.versions[name].ref, places) for name, places in unit.rows.items()}
    output = step.run(replace(work, unit=unit.key, identity=unit.identity, rows=rows))
    record = write_output(step, unit.identity, unit.size, output, work.store)
    record["usage"] = work.engines.take_usage()
    record["seconds"] = round(time.monotonic() - started, 3)
    work.store.put_json(record_path(step, unit.identity), record)
    return record


def write_output(step: Step, identity: str, rows_in: int, output: Output, store: Store) -> dict[str, Any]:
    """Write a unit's tables as fragments that no version shows yet. Returns the record without its costs."""
    fragments: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    unknown = set(output.tables) - set(step.tables)
    assert not unknown, f"{step.name} wrote undeclared tables {sorted(unknown)}"
    quarantine = [_quarantined(failed, identity) for failed in output.failed]
    named = [(name, schema, output.tables.get(name, [])) for name, schema in step.tables.items()]
    for name, schema, rows in [*named, (f"{step.name}_quarantine", QUARANTINE, quarantine)]:
        table = to_table(rows, schema)
        counts[name] = table.num_rows
        fragments[name] = store.write_fragments(name, table, schema) if table.num_rows else []
    return {
        "identity": identity,
        "fragments": fragments,
        "rows": counts,
        "in": rows_in,
        "failed": len(output.failed),
        "dropped": dict(sorted(output.dropped.items())),
        "usage": {},
        "seconds": 0.0,
    }


def _quarantined(failed: Failed, unit: str) -> dict[str, Any]:
    return {
        "id": row_id(failed.row, "quarantine", failed.reason),
        "parent_id": failed.row,
        "group_id": failed.group_id,
        "reason": failed.reason,
        "raw": failed.raw[:20_000],
        "unit": unit,
    }


def to_table(rows: pa.Table | list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as the declared schema, in the order of their ids' first appearance; `digest` is the store's to fill."""
    fields = pa.schema([f for f in schema if f.name != "digest"])
    if isinstance(rows, pa.Table):
        return rows.select(fields.names).cast(fields)
    return pa.Table.from_pylist(rows, schema=fields)


def add_up(records: list[dict[str, Any]]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """All fragments by table, and the counts and costs of a step, from its units' records."""
    fragments: dict[str, list[str]] = defaultdict(list)
    rows: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    usage: Counter[str] = Counter()
    for record in records:
        for name, written in record["fragments"].items():
            fragments[name].extend(written)
        rows.update(record["rows"])
        dropped.update(record["dropped"])
        usage.update(record["usage"])
    totals = {
        "in": sum(record["in"] for record in records),
        "failed": sum(record["failed"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "rows": dict(rows),
        "dropped": dict(sorted(dropped.items())),
        "usage": dict(sorted(usage.items())),
    }
    return dict(fragments), totals
