"""What changed between two versions: rows by id and digest, then the columns of the changed rows.

Ids are matched by Arrow's hash join of one column against the other; only rows whose digests differ are read
in full, and compared column by column on their canonical bytes (see digest.py), so nested columns count too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.store.digest import DIGEST_COLUMN, encode_column, kind_of

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Diff:
    """From version `a` to version `b`: ids of rows, and for each column the number of common rows it differs
    in.

    `columns` has the common columns with at least one difference; `columns_added` and `columns_removed` are
    those only one side has (a column whose kind changed is in both). Rows count as changed by common columns.
    """

    a: str
    b: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    columns: dict[str, int]
    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both versions have the same columns and rows (their order does not count)."""
        return not (self.added or self.removed or self.changed or self.columns_added or self.columns_removed)


def diff_versions(store: "Store", a: str, b: str) -> Diff:
    """Compares two versions, of one table or of two that share ids. BadInput for an unknown reference."""
    ref_a, ref_b = store.resolve(a).ref, store.resolve(b).ref
    keys_a = store.read(ref_a, columns=["id", DIGEST_COLUMN]).combine_chunks()
    keys_b = store.read(ref_b, columns=["id", DIGEST_COLUMN]).combine_chunks()
    at_a = pc.index_in(keys_b["id"], value_set=keys_a["id"])  # for each row of b its position in a, or null
    positions_b = pc.indices_nonzero(at_a.is_valid())
    positions_a = at_a.drop_null()
    kinds_a, kinds_b = _kinds(store.schema(ref_a)), _kinds(store.schema(ref_b))
    if kinds_a == kinds_b:
        differs = pc.not_equal(
            keys_a[DIGEST_COLUMN].take(positions_a), keys_b[DIGEST_COLUMN].take(positions_b)
        )
        positions_a, positions_b = positions_a.filter(differs), positions_b.filter(differs)
    common = sorted(set(kinds_a.items()) & set(kinds_b.items()))
    columns, changed = _compare(
        store, (ref_a, positions_a), (ref_b, positions_b), [name for name, _ in common]
    )
    removed = keys_a["id"].filter(pc.invert(pc.is_in(keys_a["id"], value_set=keys_b["id"])))
    return Diff(
        ref_a,
        ref_b,
        tuple(keys_b["id"].filter(at_a.is_null()).to_pylist()),
        tuple(removed.to_pylist()),
        changed,
        columns,
        tuple(sorted(name for name, kind in kinds_b.items() if kinds_a.get(name) != kind)),
        tuple(sorted(name for name, kind in kinds_a.items() if kinds_b.get(name) != kind)),
    )


def _kinds(schema: pa.Schema) -> dict[str, str]:
    return {field.name: kind_of(field.type) for field in schema if field.name != DIGEST_COLUMN}


def _compare(
    store: "Store", a: tuple[str, pa.Array], b: tuple[str, pa.Array], names: list[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Pairs of rows by position: how many differ in each column, and the ids of those that differ in any."""
    counts = dict.fromkeys(names, 0)
    changed: list[str] = []
    for start in range(0, len(a[1]), _BATCH_ROWS):
        rows_a, rows_b = (
            store.take(ref, positions.slice(start, _BATCH_ROWS).to_pylist(), columns=names)
            for ref, positions in (a, b)
        )
        any_differs = pa.array([False] * rows_a.num_rows)
        for name in names:
            differs = pc.not_equal(encode_column(rows_a.column(name)), encode_column(rows_b.column(name)))
            counts[name] += pc.sum(differs).as_py() or 0
            any_differs = pc.or_(any_differs, differs)
        changed.extend(rows_b.column("id").filter(any_differs).to_pylist())
    return {name: count for name, count in counts.items() if count}, tuple(changed)
