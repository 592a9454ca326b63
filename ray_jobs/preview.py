"""A few rows through one step, in a store of their own that is thrown away: nothing is committed.

The rows are those of the first unit that has some, at the newest versions of the root, cut to about `n` with their
groups whole; a step whose units are a leaf in one language gets one leaf whole, since its seeds are its context. Inputs
that need no model and nothing before them (the seeds, the gold set) are made here when the root lacks them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ray_jobs.step import Run, Step, Work
from ray_jobs.step.units import to_table
from ray_jobs.store import Provenance, Store, TableVersion
from synth.errors import BadInput


def preview(steps: Sequence[Step], name: str, run: Run, n: int) -> dict[str, Any]:
    """What the step makes of a few rows: rows per table (at most n), counts, failed rows, costs."""
    from ray_jobs.engine import Engines

    step = next((step for step in steps if step.name == name), None)
    if step is None or step.cut is None or not step.inputs:
        able = [step.name for step in steps if step.cut is not None and step.inputs]
        what = "there is no such step" if step is None else "it works on all rows at once"
        raise BadInput(f"step {name!r} cannot be previewed ({what}); these can: {', '.join(able)}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Store(folder)
        whole = {table: _table(table, steps, run) for table in (*step.inputs, *step.sides)}
        rows = _some(step, {table: whole[table][0] for table in step.inputs}, n)
        versions = {
            table: _copy(scratch, table, rows.get(table, found), schema)
            for table, (found, schema) in whole.items()
        }
        models = run.models(step)
        run.start_ray()
        engines = Engines(models, requests=run.requests)
        run.opened.append(engines)
        started = time.monotonic()
        work = Work("preview", "preview", rows, step.config, run.policy, run.seed, engines, scratch, versions)
        try:
            output = step.run(work)
            usage = engines.take_usage()
        finally:
            run.release([])
    tables = {table: to_table(output.tables.get(table, []), schema) for table, schema in step.tables.items()}
    return {
        "tables": {
            table: made.slice(0, n).to_pylist() for table, made in _newest_first(tables, rows).items()
        },
        "counts": {table: made.num_rows for table, made in tables.items()},
        "failed": [vars(one) for one in output.failed[:n]],
        "dropped": dict(sorted(output.dropped.items())),
        "rows": sum(table.num_rows for table in rows.values()),
        "usage": usage,
        "seconds": round(time.monotonic() - started, 2),
    }


def _table(name: str, steps: Sequence[Step], run: Run) -> tuple[pa.Table, pa.Schema]:
    """A table of the root at its newest version, or made here by a step that needs neither rows nor models; and its
    declared schema."""
    from ray_jobs.engine import Engines

    if name in run.store.tables():
        ref = run.version(name).ref
        return run.store.read(ref), run.store.schema(ref)
    maker = next((step for step in steps if name in step.tables), None)
    if maker is None or maker.inputs or maker.sides or maker.roles:
        raise BadInput(
            f"{run.store.root} has no table {name!r} yet: run the recipe first, --until {maker.name if maker else name}"
        )
    work = Work("all", "preview", {}, maker.config, run.policy, run.seed, Engines({}), run.store, {})
    return to_table(maker.run(work).tables.get(name, []), maker.tables[name]), maker.tables[name]


def _some(step: Step, inputs: dict[str, pa.Table], n: int) -> dict[str, pa.Table]:
    """About n rows of the inputs with their groups whole; of a step cut by leaf and language, one such unit."""
    assert step.cut is not None
    columns = step.cut.columns
    first = next((table for table in inputs.values() if table.num_rows), None)
    if first is None:
        raise BadInput(f"step {step.name}: its inputs {', '.join(inputs)} are empty")
    keys = list(zip(*(first[column].to_pylist() for column in columns), strict=True))
    wanted = getattr(step.config, "languages", None)
    if wanted and not step.cut.hashed and "language" in columns:
        keys = [key for key in keys if key[columns.index("language")] in wanted] or keys
    chosen = set(keys[:1] if not step.cut.hashed else keys[:n])
    return {
        name: table.filter(pa.array([
            key in chosen for key in zip(*(table[column].to_pylist() for column in columns), strict=True)
        ], pa.bool_()))
        for name, table in inputs.items()
    }  # fmt: skip


def _newest_first(tables: dict[str, pa.Table], rows: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Each table with the rows that the step made in front of those it only carried over."""
    before = {row for table in rows.values() for row in table["id"].to_pylist()}
    return {
        name: table.take(sorted(range(table.num_rows), key=lambda at: table["id"][at].as_py() in before))
        for name, table in tables.items()
    }


def _copy(scratch: Store, name: str, rows: pa.Table, schema: pa.Schema) -> TableVersion:
    plain = rows.drop_columns(["digest"]) if "digest" in rows.column_names else rows
    fragments = scratch.write_fragments(name, plain, schema) if rows.num_rows else []
    return scratch.commit(name, schema, fragments, Provenance("preview", f"preview-{name}"))
