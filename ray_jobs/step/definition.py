"""What a step is, and the hashes that name it and its units."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from synth.ids import stable_hash
from synth.policy import Policy

if TYPE_CHECKING:
    from ray_jobs.engine import Engines, Model
    from ray_jobs.store import Store, TableVersion


class StepFailed(RuntimeError):
    """A step that lost more rows than its budget, or made no progress. What is finished stays finished."""


def reads_nothing(_policy: Policy, _leaves: frozenset[str] | None) -> object:
    """The policy slice of a step that reads none of it."""
    return None


@dataclass(frozen=True)
class Cut:
    """How a step's input rows become units: by the values of `columns` (of group_id, leaf, language), hashed into the
    recipe's number of units, or one unit per distinct value."""

    columns: tuple[str, ...] = ("group_id",)
    hashed: bool = True

    def key(self, values: Sequence[object], units: int) -> str:
        if self.hashed:
            return f"{int(stable_hash(*values), 16) % units:05d}"
        return "/".join(str(value) for value in values)


@dataclass(frozen=True)
class Failed:
    """A row that an engine could not answer or whose answer could not be read."""

    row: str
    group_id: str
    reason: str
    raw: str = ""


Rows: TypeAlias = pa.Table | list[dict[str, Any]]


@dataclass
class Output:
    """What a step's function returns: rows per table, failed rows, and what was dropped and why. A table too large to
    be held may come as an iterator of its parts; what it drops may be counted until it ends."""

    tables: dict[str, Rows | Iterator[Rows]]
    failed: list[Failed] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Work:
    """What a step's function is given: one unit's rows of every cut input, and the whole run's context."""

    unit: str
    identity: str
    rows: Mapping[str, pa.Table]
    config: Any
    policy: Policy
    seed: int
    engines: Engines
    store: Store
    versions: Mapping[str, TableVersion]

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The whole of input `name`, at the version this run uses."""
        return self.store.read(self.versions[name].ref, columns=columns)


@dataclass(frozen=True)
class Step:
    """One arrow of the flow. `run` is a module-level function; `tables` maps table names to schemas, the main one
    last to be committed and first in order; `inputs` are cut into units, `sides` are read whole by every unit;
    `reads` gives the policy slice for a set of leaves (None: all); without `cut` the step is a single unit that runs
    on the driver, and may use Ray itself. `by_group` says of such a step that the rows of a group it changes are those
    whose group changed (as in dedup), so that later steps need not be redone whole. `trains`: before
    it all engines end, since it needs the memory. `cpus`: what one unit computes on (0: it only asks engines)."""

    name: str
    run: Callable[[Work], Output]
    config: Any
    tables: Mapping[str, pa.Schema]
    inputs: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    reads: Callable[[Policy, frozenset[str] | None], object] = reads_nothing
    cut: Cut | None = None
    by_group: bool = False
    trains: bool = False
    cpus: float = 0.0
    revision: int = 1

    @property
    def main(self) -> str:
        return next(iter(self.tables))


def identifying(config: Any) -> dict[str, Any]:
    """The fields of a frozen config that change results: all but those marked `metadata={"identity": False}`."""
    return {
        f.name: _plain(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.metadata.get("identity", True)
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return identifying(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def recipe_of(step: Step, seed: int, weights: Mapping[str, str]) -> list[object]:
    """What a step and each of its units share in their identities."""
    return [step.name, step.revision, identifying(step.config), seed, dict(sorted(weights.items()))]


def step_identity(
    step: Step, policy: Policy, seed: int, weights: Mapping[str, str], versions: Mapping[str, TableVersion]
) -> str:
    """The hash that names this step's output: config, policy slice, exact input versions, weights, revision."""
    inputs = {
        name: f"{versions[name].content_ref}:{versions[name].provenance.identity}"
        for name in (*step.inputs, *step.sides)
    }
    return stable_hash(recipe_of(step, seed, weights), step.reads(policy, None), inputs)


def resolve_roles(step: Step, roles: Mapping[str, Model]) -> dict[str, Model]:
    """The models a step's roles are bound to. A role "voter" also stands for voter-1, voter-2, …; an optional role
    ends in "?"."""
    bound: dict[str, Model] = {}
    for role in step.roles:
        plain = role.removesuffix("?")
        found = {name: model for name, model in roles.items() if name == plain or _numbered(name, plain)}
        if not found and not role.endswith("?"):
            from synth.errors import BadInput

            raise BadInput(
                f"step {step.name} needs a model for the role {plain!r}, and the recipe binds none"
            )
        bound.update(found)
    return bound


def _numbered(name: str, role: str) -> bool:
    head, _, number = name.rpartition("-")
    return head == role and number.isdigit()
