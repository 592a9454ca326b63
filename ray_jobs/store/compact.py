"""Compacting: the newest version's rows in few large fragments, as a new version with the same content.

A step writes a fragment per unit, so that a unit can be found again; a reader of hundreds of small files pays for each.
The order of the rows stays. The new version carries the old one's provenance and identity and says which version it is
the same as, so that no later step takes it for new data. The old files stay with the old version, and with them the
finished units that an edit of the policy can reuse, until `clean` may remove that version.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from ray_jobs.store import tables
from ray_jobs.store.digest import check_digests
from ray_jobs.store.provenance import Overtaken, StoreError, TableVersion

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

FRAGMENT_ROWS = 250_000  # at 2 kB a row 500 MB: what a writer holds at once
_TRIES = 5


def compact(store: "Store", name: str, rows: int = FRAGMENT_ROWS) -> TableVersion:
    """The compacted version, or the newest one where that has no more fragments than it needs.

    Busy when a run holds the root; when another writer commits meanwhile, its rows are compacted instead.
    """
    with store.lock():
        for _ in range(_TRIES):
            at = store.resolve(name)
            if len(tables.fragments_of(store.files, at)) <= -(-at.rows // rows):
                return at
            schema = store.schema(at.ref)
            written = [f for t in _chunks(store, at, rows) for f in store.write_fragments(name, t, schema)]
            made = replace(at.provenance, same_as=at.content_ref)
            try:
                return tables.commit(store.files, name, schema, written, made, after=at.version)
            except Overtaken:
                continue
    raise StoreError(f"cannot compact table {name}: other writers were faster {_TRIES} times; try again")


def _chunks(store: "Store", at: TableVersion, rows: int) -> Iterator[pa.Table]:
    """The version's rows in order, `rows` at a time."""
    held = store.schema(at.ref).empty_table()
    for batch in store.batches(at.ref):
        held = pa.concat_tables([held, check_digests(at.ref, pa.table(batch).replace_schema_metadata())])
        if held.num_rows >= rows:
            yield held.slice(0, rows)
            held = held.slice(rows)
    if held.num_rows:
        yield held
