"""Running steps: find what is done, do what is not, commit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs import own_ray
from ray_jobs.progress import Progress
from ray_jobs.step.artifacts import checkpoint_of, resolve_model
from ray_jobs.step.commit import commit, committed
from ray_jobs.step.definition import Step, Work, resolve_roles, step_identity
from ray_jobs.step.units import Unit, cut_units, finished, run_unit
from ray_jobs.step.watchdog import Watch, watched
from ray_jobs.store import Store, StoreError, TableVersion
from synth.errors import BadInput
from synth.policy import Policy

if TYPE_CHECKING:
    from ray_jobs.engine import Engines, Model


@dataclass
class Run:
    """One recipe on one root: the store, the policy, the bound models, and the versions this run has reached."""

    store: Store
    policy: Policy
    seed: int
    roles: Mapping[str, Model]
    error_budget: float = 0.01
    unit_cpus: float = 0.33
    local_cpus: int = 4
    units: int = 64
    request_cache_gb: float = 4.0
    stall_s: float = 3600.0
    come_to: Callable[[str], None] = lambda step: None  # called at each step, and with "" at the end
    progress: Progress = field(default_factory=Progress)
    versions: dict[str, TableVersion] = field(default_factory=dict)
    opened: list[Engines] = field(default_factory=list)

    @cached_property
    def code_revision(self) -> str:
        """The git commit of a checkout, else the installed version."""
        here = Path(__file__).parent
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
        )
        if git.returncode == 0:
            return git.stdout.strip()
        from importlib.metadata import version

        return version("guardmill")

    def version(self, name: str) -> TableVersion:
        """The version of `name` this run works on: the one it made or found, else the newest in the store."""
        if name not in self.versions:
            self.versions[name] = self.store.resolve(name)
        return self.versions[name]

    def weights(self, step: Step) -> dict[str, str]:
        """What names the weights of each of the step's roles: for a checkpoint of this mill its sha256."""
        from ray_jobs.engine import fingerprint

        bound = resolve_roles(step, self.roles)
        found = {role: checkpoint_of(model, self.store, self.version) for role, model in bound.items()}
        return {role: row["sha256"] if row else fingerprint(bound[role]) for role, row in found.items()}

    def models(self, step: Step) -> dict[str, Model]:
        """The step's roles with checkpoints of this mill resolved to local, verified folders."""
        bound = resolve_roles(step, self.roles)
        return {role: resolve_model(model, self.store, self.version) for role, model in bound.items()}

    @property
    def requests(self) -> tuple[str, int] | None:
        """The root of the request cache and the bytes it may take; None where the recipe switches it off."""
        limit = int(self.request_cache_gb * 2**30)
        return (self.store.root, limit) if limit > 0 else None

    def release(self, coming: list[Step]) -> None:
        """End the engines that no coming step uses, and all of them before one that trains: their memory belongs to the
        next step."""
        from ray_jobs.engine import actor_name

        later = [] if coming and coming[0].trains else coming
        wanted = {model for step in later for model in resolve_roles(step, self.roles).values()}
        kept = {actor_name(model) for model in wanted if not model.name.startswith("@")}
        for engines in self.opened:
            engines.shutdown(kept)
        self.opened = self.opened if coming else []

    def start_ray(self) -> None:
        """Start Ray here, or join the cluster that submitted this job. Local Ray gets more logical CPUs than cores:
        trainer workers that hold them all would starve Ray Data for ever."""
        import logging
        import os
        import warnings

        import ray

        if not ray.is_initialized():
            os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            os.environ.setdefault("RAY_worker_niceness", "0")  # the models compute in workers
            # Ray warns once it has started four times this many workers
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
            # A worker takes 3 s of CPU to start: those of one step stay for the next one, Ray would end them after 1 s.
            # It would also keep as many as it has CPUs for good, with all they have read (one of translations: 1 GB).
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
            os.environ.setdefault("RAY_num_workers_soft_limit", "0")
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the other processes
            # Lance warns of any fork; the processes forked here become another program at once
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "lance is not fork-safe")
                own_ray.start(
                    "guardmill",
                    num_cpus=self.local_cpus,
                    include_dashboard=False,
                    object_store_memory=512 << 20,
                )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_steps(steps: list[Step], run: Run) -> dict[str, TableVersion]:
    """Run `steps` in order; each is a no-op when it is done. Returns the version of every main table. BadInput, before
    anything starts, when the recipe binds no model to a role that one of them needs."""
    for step in steps:
        resolve_roles(step, run.roles)
    try:
        for at, step in enumerate(steps):
            run.come_to(step.name)
            for name, version in run_step(step, run).items():
                run.versions[name] = version
            run.release(steps[at + 1 :])
        run.come_to("")
    finally:
        run.release([])
    return dict(run.versions)


def run_step(step: Step, run: Run) -> dict[str, TableVersion]:
    """Bring one step to its committed versions, main table first, doing only what is not done yet."""
    from ray_jobs.engine import Engines

    versions = {name: run.version(name) for name in (*step.inputs, *step.sides)}
    weights = run.weights(step)
    identity = step_identity(step, run.policy, run.seed, weights, versions)
    done = committed(run.store, step, identity)
    if done:
        run.progress.cached(step.name, done[step.main].rows)
        return done
    run.start_ray()
    engines = Engines(run.models(step), requests=run.requests)
    run.opened.append(engines)
    work = Work("all", identity, {}, step.config, run.policy, run.seed, engines, run.store, versions)
    with watched(step.name, run.stall_s, engines, run.store.working_folder(step.name)) as watch:
        records = list(_records(step, run, work, weights, watch))
    return commit(step, run, identity, versions, weights, records)


def _records(
    step: Step, run: Run, work: Work, weights: Mapping[str, str], watch: Watch
) -> Iterator[dict[str, Any]]:
    """The records of all the step's units: those found finished, then those run now."""
    if step.cut is None:
        units = [Unit("all", work.identity, {}, frozenset())]
    else:
        units = cut_units(step, run, weights, work.versions, facts=False)
    found = {unit.key: finished(run.store, step, unit.identity) for unit in units}
    pending = [unit for unit in units if found[unit.key] is None]
    watch.expect(units, pending, on_driver=step.cut is None)
    with run.progress.step(step.name, len(units), len(units) - len(pending)) as bar:
        yield from (record for record in found.values() if record is not None)
        if not pending:
            return
        if step.cut is None:
            yield run_unit(step, pending[0], work)
            bar.advance()
            return
        work.engines.open(*work.engines.roles)
        for record in _run_on_ray(step, pending, work, step.cpus or run.unit_cpus):
            bar.advance()
            watch.finished(record["identity"])
            yield record


def _run_on_ray(step: Step, units: list[Unit], work: Work, cpus: float) -> Iterator[dict[str, Any]]:
    """Run units as tasks of one Ray Data pipeline; each writes its own fragments, only records come back. Errors that
    carry their own sentence come back as well, since Ray would wrap them beyond recognition."""
    import json
    import pickle

    import ray

    from ray_jobs.engine import EngineDied

    if not own_ray.joins():
        # No node will come: a unit that asks for more than the engines leave would never run.
        cpus = min(cpus, max(0.25, ray.available_resources().get("CPU", cpus)))
    # engines travel by the names of their actors; a unit's rows only to its task, or N units would cost N times N
    shared = ray.put((step, [ray.put(unit) for unit in units], work))

    def task(row: dict[str, Any]) -> dict[str, Any]:
        the_step, the_units, the_work = ray.get(shared)
        try:
            record = run_unit(the_step, ray.get(the_units[row["item"]]), the_work)
        except (BadInput, StoreError, EngineDied) as problem:
            return {"record": "", "raised": pickle.dumps(problem)}
        return {"record": json.dumps(record), "raised": b""}

    pipeline = ray.data.from_items(list(range(len(units))), override_num_blocks=len(units)).map(
        task, num_cpus=cpus
    )
    for row in pipeline.iter_rows():
        if row["raised"]:
            raise pickle.loads(row["raised"])
        yield json.loads(row["record"])
