"""What a run would do: each step cached or new, its units, and what they are likely to cost.

A step whose inputs are all settled is planned exactly: its units are cut and looked up. Behind a step that will make a
new version nothing can be known for sure; then the groups that the changed units hold are followed instead: a unit of
a later step is redone if it holds one of them, and a step that works on all rows at once is redone whole. Costs are
those of the step's newest version, per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.step.definition import Step, step_identity
from ray_jobs.step.run import Run, committed
from ray_jobs.step.units import cut_units, finished
from ray_jobs.store import TableVersion
from synth.errors import BadInput


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
    """The outlook of every step, in order. Reads ids only; starts nothing."""
    planned: list[Planned] = []
    stale: dict[str, frozenset[str] | None] = {}  # table -> groups that will change (None: any)
    for step in steps:
        changed = [name for name in (*step.inputs, *step.sides) if name in stale]
        models = [m.name[1:].partition("/")[0] for m in run.roles.values() if m.name.startswith("@")]
        trained = [name for name in models if name in stale and _uses(step, run, name)]
        entry, groups = _settled(step, run) if not changed and not trained else _stale(step, run, stale, trained)
        planned.append(entry)
        if entry.state != "cached":
            stale.update(dict.fromkeys(step.tables, groups))
    return planned


def _uses(step: Step, run: Run, table: str) -> bool:
    from ray_jobs.step.definition import resolve_roles

    return any(m.name.startswith(f"@{table}/") for m in resolve_roles(step, run.roles).values())


def _settled(step: Step, run: Run) -> tuple[Planned, frozenset[str] | None]:
    """A step whose inputs stand: its exact state."""
    try:
        versions = {name: run.version(name) for name in (*step.inputs, *step.sides)}
        weights = run.weights(step)
    except BadInput as problem:
        return Planned(step.name, "new", 0, 0, None, None, None, None, str(problem)), None
    identity = step_identity(step, run.policy, run.seed, weights, versions)
    done = committed(run.store, step, identity)
    if done:
        run.versions.update(done)
        return Planned(step.name, "cached", 1, 0, done[step.main].rows, 0, 0, 0, done[step.main].ref), None
    if step.cut is None:
        return _estimate(step, run, 1, 1, 1.0, "runs on all rows at once"), None
    units = cut_units(step, run.policy, run.seed, weights, run.store, versions)
    todo = [unit for unit in units if finished(run.store, step, unit.identity) is None]
    share = sum(unit.size for unit in todo) / max(1, sum(unit.size for unit in units))
    groups = frozenset().union(*(unit.groups for unit in todo))
    return _estimate(step, run, len(units), len(todo), share, "its input or the policy it reads changed"), groups


def _stale(
    step: Step, run: Run, stale: Mapping[str, frozenset[str] | None], trained: list[str]
) -> tuple[Planned, frozenset[str] | None]:
    """A step behind one that will make a new version: followed by the groups that change."""
    touched = [stale[name] for name in (*step.inputs, *step.sides) if name in stale]
    broadcast = [name for name in step.sides if name in stale]
    if step.cut is None or trained or broadcast or any(groups is None for groups in touched):
        why = f"follows {', '.join([*trained, *(n for n in (*step.inputs, *step.sides) if n in stale)])}"
        known = [groups for groups in touched if groups is not None]
        follows = step.by_group and len(known) == len(touched)
        return _estimate(step, run, 1, 1, 1.0, why), frozenset().union(*known) if follows else None
    groups = frozenset().union(*(g for g in touched if g is not None))
    old = _newest(run, step)
    if old is None:
        return _estimate(step, run, 0, 0, 1.0, "never run"), groups
    versions = {name: run.store.resolve(name) for name in step.inputs if name in run.store.tables()}
    units = cut_units(step, run.policy, run.seed, {}, run.store, versions | {s: run.version(s) for s in step.sides})
    todo = [unit for unit in units if unit.groups & groups]
    share = sum(unit.size for unit in todo) / max(1, sum(unit.size for unit in units))
    return _estimate(step, run, len(units), len(todo), share, "units that hold changed groups, at most"), groups


def _newest(run: Run, step: Step) -> TableVersion | None:
    return run.store.resolve(step.main) if step.main in run.store.tables() else None


def _estimate(step: Step, run: Run, units: int, todo: int, share: float, why: str) -> Planned:
    """Costs by the newest version's, in proportion to the rows redone."""
    old = _newest(run, step)
    if old is None:
        return Planned(step.name, "new", units, todo, None, None, None, None, "never run")
    made = old.provenance
    costs = [round(share * value, 1) for value in (old.rows, made.calls, made.tokens, made.seconds)]
    return Planned(step.name, "new", units, todo, *costs, why)
