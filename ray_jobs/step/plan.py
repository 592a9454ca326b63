"""What a run would do: each step cached or new, its units, and what they are likely to cost.

A step whose inputs are all settled is planned exactly: its units are cut and looked up. Behind a step that will make a
new version, the rows that may change are followed by their facts (group, leaf, language): a unit of a later step is
redone, at most, if one of them falls into it, or if what it reads of policy, config and weights is new. A step that
works on all rows at once is redone whole. A step that reads nothing but the policy and files (the seeds) is made in
memory, so that its changed rows are known exactly. Costs are those of the step's newest version, per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from ray_jobs.step.commit import committed
from ray_jobs.step.definition import Step, Work, resolve_roles, step_identity
from ray_jobs.step.run import Run
from ray_jobs.step.units import FACTS, Unit, cut_units, finished, read_facts, to_table
from ray_jobs.store import TableVersion, row_digests, without
from synth.errors import BadInput

Changed = frozenset[tuple[str, ...]] | None  # the facts of rows that may change; None: of any row


@dataclass(frozen=True)
class Planned:
    """One step's outlook. `units_to_do` of `units`; rows, calls, tokens and seconds are estimates, None if unknown."""

    step: str
    state: str
    units: int
    units_to_do: int
    rows: float | None
    calls: float | None
    tokens: float | None
    seconds: float | None
    why: str


def plan(steps: list[Step], run: Run) -> list[Planned]:
    """The outlook of every step, in order. Writes and starts nothing."""
    planned: list[Planned] = []
    stale: dict[str, Changed] = {}
    for step in steps:
        behind = [name for name in (*step.inputs, *step.sides) if name in stale]
        behind += [name for name in _checkpoints(step, run) if name in stale]
        entry, changed = _stale(step, run, stale, behind) if behind else _settled(step, run)
        planned.append(entry)
        if entry.state != "cached":
            stale.update(changed)
    return planned


def _checkpoints(step: Step, run: Run) -> list[str]:
    """The tables of this mill's checkpoints that the step's roles are bound to."""
    try:
        names = [model.name for model in resolve_roles(step, run.roles).values()]
    except BadInput:  # told by the step's own entry
        return []
    return sorted({name[1:].partition("/")[0] for name in names if name.startswith("@")})


def _settled(step: Step, run: Run) -> tuple[Planned, dict[str, Changed]]:
    """A step whose inputs stand: its exact state."""
    try:
        versions = {name: run.version(name) for name in (*step.inputs, *step.sides)}
        weights = run.weights(step)
    except BadInput as problem:
        return Planned(step.name, "new", 0, 0, None, None, None, None, str(problem)), _any(step)
    identity = step_identity(step, run.policy, run.seed, weights, versions)
    done = committed(run.store, step, identity)
    if done:
        run.versions.update(done)
        return Planned(step.name, "cached", 1, 0, done[step.main].rows, 0, 0, 0, done[step.main].ref), {}
    if step.cut is None:
        source = not (versions or step.roles) and _newest(run, step) is not None
        changed = _changed_rows(step, run) if source else _any(step)
        return _estimate(step, run, 1, 1, 1.0, "runs on all rows at once"), changed
    units = cut_units(step, run, weights, versions)
    todo = [unit for unit in units if finished(run.store, step, unit.identity) is None]
    why = "its input or the policy it reads changed"
    changed = {name: _facts(todo) for name in step.tables}
    return _estimate(step, run, len(units), len(todo), _share(todo, units), why), changed


def _stale(
    step: Step, run: Run, stale: Mapping[str, Changed], behind: list[str]
) -> tuple[Planned, dict[str, Changed]]:
    """A step behind others that will make new versions (the tables `behind`): followed by the rows that change."""
    touched = [stale[name] for name in behind]
    known = [facts for facts in touched if facts is not None]
    arrived = frozenset().union(*known)
    whole = step.cut is None or any(name not in step.inputs for name in behind) or len(known) < len(touched)
    if whole:
        follows = step.by_group and len(known) == len(touched)
        follow: dict[str, Changed] = dict.fromkeys(step.tables, arrived if follows else None)
        return _estimate(step, run, 1, 1, 1.0, f"follows {', '.join(behind)}"), follow
    if _newest(run, step) is None:
        return _estimate(step, run, 0, 0, 1.0, "never run"), _any(step)
    assert step.cut is not None
    versions = {name: run.store.resolve(name) if name in stale else run.version(name) for name in step.inputs}
    units = cut_units(
        step, run, run.weights(step), versions | {name: run.version(name) for name in step.sides}
    )
    keys = {step.cut.key([fact[FACTS.index(c)] for c in step.cut.columns], run.units) for fact in arrived}
    todo = [u for u in units if u.key in keys or finished(run.store, step, u.identity) is None]
    added = len(keys - {unit.key for unit in units})
    changed: dict[str, Changed] = {name: _facts(todo) | arrived for name in step.tables}
    why = "units that changed rows may fall into, at most"
    return _estimate(step, run, len(units) + added, len(todo) + added, _share(todo, units), why), changed


def _changed_rows(step: Step, run: Run) -> dict[str, Changed]:
    """The rows in which a source's tables would differ from their newest versions."""
    from ray_jobs.engine import Engines

    work = Work("all", "", {}, step.config, run.policy, run.seed, Engines({}), run.store, {})
    made = step.run(work).tables
    gone = run.store.excluded_ids()
    rows = {name: without(to_table(made.get(name, []), s), gone) for name, s in step.tables.items()}
    return {name: _differing(run, name, table) for name, table in rows.items()}


def _differing(run: Run, name: str, new: pa.Table) -> Changed:
    if name not in run.store.tables():
        return None
    old, told = read_facts(run.store, run.store.resolve(name))
    there = set(
        zip(old["id"].to_pylist(), old["digest"].to_pylist(), zip(*told.values(), strict=True), strict=True)
    )
    made = [new[c].to_pylist() if c in new.column_names else [""] * new.num_rows for c in FACTS]
    here = set(zip(new["id"].to_pylist(), row_digests(new).to_pylist(), zip(*made, strict=True), strict=True))
    return frozenset(fact for _, _, fact in there ^ here)


def _any(step: Step) -> dict[str, Changed]:
    return dict.fromkeys(step.tables, None)


def _facts(units: list[Unit]) -> frozenset[tuple[str, ...]]:
    return frozenset().union(*(unit.facts for unit in units))


def _share(todo: list[Unit], units: list[Unit]) -> float:
    """The share of the rows that `todo` holds."""
    return sum(unit.size for unit in todo) / max(1, sum(unit.size for unit in units))


def _newest(run: Run, step: Step) -> TableVersion | None:
    return run.store.resolve(step.main) if step.main in run.store.tables() else None


def _estimate(step: Step, run: Run, units: int, todo: int, share: float, why: str) -> Planned:
    """Costs by the newest version's, in proportion to the rows redone."""
    old = _newest(run, step)
    if old is None:
        return Planned(step.name, "new", units, todo, None, None, None, None, "never run")
    made = old.provenance
    asked = made.calls + sum(used.get("cached", 0) for used in made.usage.values())
    rows, calls, tokens, seconds = (
        round(share * value, 1) for value in (old.rows, asked, made.tokens, made.seconds)
    )
    return Planned(step.name, "new", units, todo, rows, calls, tokens, seconds, why)
