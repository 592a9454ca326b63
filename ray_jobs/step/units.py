"""Units: how a step's rows are cut, how a unit is named, run and recorded."""

from __future__ import annotations

import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_jobs.step.definition import Cut, Failed, Output, Rows, Step, Work, recipe_of
from ray_jobs.store import Store, TableVersion, table_schema, without
from synth.ids import row_id, stable_hash

if TYPE_CHECKING:
    from ray_jobs.step.run import Run

QUARANTINE = table_schema(
    [pa.field("reason", pa.string()), pa.field("raw", pa.string()), pa.field("unit", pa.string())]
)


PIECE = 32_768  # rows of a fragment, of a table that comes in parts
FACTS = ("group_id", "leaf", "language")  # what a cut can go by, and what `plan` follows rows by


@dataclass(frozen=True)
class Unit:
    """A share of a step's work: its key, its identity, where its rows stand in each cut input, and their facts."""

    key: str
    identity: str
    rows: Mapping[str, np.ndarray]
    facts: frozenset[tuple[str, ...]]

    @property
    def size(self) -> int:
        return sum(len(indices) for indices in self.rows.values())


def cut_units(
    step: Step,
    run: Run,
    weights: Mapping[str, str],
    versions: Mapping[str, TableVersion],
    facts: bool = True,
) -> list[Unit]:
    """The units of `step` over its input versions, by key. Only ids, digests and facts are read, a batch at a time: of
    a row its position stays, and without `facts` nothing else (units then know their leaves only)."""
    assert step.cut is not None
    shares: dict[str, Share] = defaultdict(Share)
    for name in step.inputs:
        first = 0
        for batch in fact_batches(run.store, versions[name]):
            _deal(shares, step.cut, run.units, name, first, batch, facts)
            first += batch.num_rows
    sides = {name: side_digest(run.store, versions[name]) for name in step.sides}
    shared = recipe_of(step, run.seed, weights)
    return [
        Unit(
            key,
            stable_hash(shared, sides, step.reads(run.policy, leaves_of(share.facts)), share.content()),
            {name: np.frombuffer(places, np.int64) for name, places in share.places.items()},
            frozenset(share.facts),
        )
        for key, share in sorted(shares.items())
    ]


@dataclass
class Share:
    """A unit while rows are dealt out: positions and count of rows by input, and the sum of the rows' hashes, which is
    the same in any order. A multiset of rows is named by it but for a chance of 2**-128."""

    places: dict[str, array[int]] = field(default_factory=dict)
    total: int = 0
    facts: set[tuple[str, ...]] = field(default_factory=set)

    def content(self) -> list[object]:
        sizes = {name: len(places) for name, places in sorted(self.places.items())}
        return [sizes, f"{self.total % (1 << 128):032x}"]


def _deal(
    shares: dict[str, Share], cut: Cut, units: int, name: str, first: int, batch: pa.Table, facts: bool
) -> None:
    """One batch of an input's rows to their units."""
    told = [batch[column].to_pylist() for column in FACTS]
    cut_by = [told[FACTS.index(column)] for column in cut.columns]
    rows = zip(batch["id"].to_pylist(), batch["digest"].to_pylist(), strict=True)
    known = zip(zip(*cut_by, strict=True), rows, zip(*told, strict=True), strict=True)
    for index, (values, (row, digest), fact) in enumerate(known, first):
        share = shares[cut.key(values, units)]
        if name not in share.places:
            share.places[name] = array("q")
        share.places[name].append(index)
        named = f"{name}\0{row}\0{digest}".encode("utf-8", "surrogatepass")
        share.total += int.from_bytes(blake2b(named, digest_size=16).digest(), "big")
        share.facts.add(fact if facts else ("", fact[FACTS.index("leaf")], ""))


def fact_batches(store: Store, version: TableVersion) -> Iterator[pa.Table]:
    """Ids, digests and facts of a version's rows; "" where the table has no such column."""
    there = [name for name in FACTS if name in store.schema(version.ref).names]
    for batch in store.batches(version.ref, columns=["id", "digest", *there]):
        rows = pa.table(batch)
        for name in FACTS:
            if name not in there:
                rows = rows.append_column(name, pa.array([""] * rows.num_rows, pa.string()))
        yield rows


def read_facts(store: Store, version: TableVersion) -> tuple[pa.Table, dict[str, list[str]]]:
    """Ids and digests of a version, and its rows' facts by column; "" where the table has no such column."""
    there = [name for name in FACTS if name in store.schema(version.ref).names]
    table = store.read(version.ref, columns=["id", "digest", *there])
    return table, {
        name: table[name].to_pylist() if name in there else [""] * table.num_rows for name in FACTS
    }


def leaves_of(facts: set[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(fact[FACTS.index("leaf")] for fact in facts)


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
    rows = {
        name: work.store.take(work.versions[name].ref, places.tolist()) for name, places in unit.rows.items()
    }
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
    excluded, gone = store.excluded_ids(), 0
    named = [(name, schema, output.tables.get(name, [])) for name, schema in step.tables.items()]
    named.append((f"{step.name}_quarantine", QUARANTINE, _quarantined(output.failed, identity)))
    for name, schema, rows in named:
        fragments[name], counts[name] = [], 0
        for made in pieces(rows, schema):
            table = without(made, excluded)
            gone += made.num_rows - table.num_rows if name == step.main else 0
            counts[name] += table.num_rows
            fragments[name] += store.write_fragments(name, table, schema) if table.num_rows else []
    dropped = Counter(output.dropped)  # complete now that the parts are written
    dropped.update({"excluded": gone} if gone else {})
    return {
        "identity": identity,
        "fragments": fragments,
        "rows": counts,
        "in": rows_in,
        "failed": len(output.failed),
        "dropped": dict(sorted(dropped.items())),
        "usage": {},
        "seconds": 0.0,
    }


def pieces(rows: Rows | Iterator[Rows], schema: pa.Schema) -> Iterator[pa.Table]:
    """A table to write: whole as it is, or the parts of an iterator, joined into fragments of PIECE rows or more."""
    if isinstance(rows, pa.Table | list):
        yield to_table(rows, schema)
        return
    parts: list[pa.Table] = []
    for part in rows:
        parts.append(to_table(part, schema))
        if sum(one.num_rows for one in parts) >= PIECE:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)


def _quarantined(failed: list[Failed], unit: str) -> list[dict[str, Any]]:
    """Failed rows as quarantine rows. A row may fail several times for one reason: they are numbered."""
    times: Counter[tuple[str, str]] = Counter()
    rows = []
    for one in failed:
        number = times[one.row, one.reason]
        times[one.row, one.reason] += 1
        rows.append(
            {
                "id": row_id(one.row, "quarantine", [one.reason, number]),
                "parent_id": one.row,
                "group_id": one.group_id,
                "reason": one.reason,
                "raw": one.raw[:20_000],
                "unit": unit,
            }
        )
    return rows


def to_table(rows: Rows, schema: pa.Schema) -> pa.Table:
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
    usage: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for name, written in record["fragments"].items():
            fragments[name].extend(written)
        rows.update(record["rows"])
        dropped.update(record["dropped"])
        for role, used in record["usage"].items():
            usage[role].update(used)
    totals = {
        "in": sum(record["in"] for record in records),
        "failed": sum(record["failed"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "rows": dict(rows),
        "dropped": dict(sorted(dropped.items())),
        "usage": {role: dict(used) for role, used in sorted(usage.items())},
    }
    return dict(fragments), totals
