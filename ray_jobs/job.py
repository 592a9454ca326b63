"""Runs as jobs: the whole flow or one step of it, on the cluster that the job was submitted to.

    ray job submit --working-dir . -- python -m ray_jobs.pipeline --recipe local --root s3://BUCKET/mill
    ray job submit --working-dir . -- python -m ray_jobs.votes    --recipe local --root s3://BUCKET/mill

A step alone reads the newest version of each of its inputs in the root. A submitted job says in its own metadata what
it is at (recipe, root, step, versions reached), beside what its submitter wrote there. Ray has no call for that, so
the job's record in the cluster's key-value store is rewritten: read, metadata replaced, put back. Ray itself writes it
when the job starts and when its process has ended, never in between. Told to stop (SIGTERM), a job leaves as by an
exception: its lock on the root is freed, and what is finished stays finished.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ray_jobs import own_ray

if TYPE_CHECKING:
    from ray_jobs.step import Run
    from ray_jobs.store import TableVersion


def main(step: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """`python -m ray_jobs.<step>`: one step of a recipe."""
    options = parser(f"Run the step {step} alone, on the newest versions of its inputs.").parse_args(
        arguments
    )
    as_job(lambda: alone(step, options))


def parser(about: str) -> argparse.ArgumentParser:
    """The arguments that every job takes."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--recipe", required=True)
    made.add_argument("--root", help="where tables live (a folder or s3://…); default: mill/RECIPE")
    made.add_argument("--policy", help="another policy: a packaged name or a YAML file")
    return made


def alone(name: str, options: argparse.Namespace) -> dict[str, TableVersion]:
    """One step to its committed version. BadInput for a step that the recipe has not, or an input not made yet."""
    from ray_jobs.pipeline import held, prepared, steps
    from ray_jobs.step import run_steps
    from synth.errors import BadInput

    recipe, policy, root = prepared(options)
    found = [step for step in steps(recipe, policy) if step.name == name]
    if not found:
        raise BadInput(f"the policy {policy.id} has no step {name!r}")
    with held(recipe, policy, root) as run:
        return run_steps(found, run)


def as_job(work: Callable[[], object]) -> NoReturn:
    """Do the work of a command line and end the process: 0 done, 1 failed, 2 wrong use, 143 told to stop."""
    from ray_jobs.cli import exit_code

    def stop(number: int, _frame: object) -> NoReturn:
        raise Stopped(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(exit_code(work))
    except Stopped as told:
        if own_ray.joins():
            # all is freed; threads of Ray's may abort an interpreter that ends under them
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(told.code or 0))
        raise


class Stopped(SystemExit):
    """Told to stop, by a SIGTERM."""


def submission_id() -> str:
    """The id under which this process was submitted to a cluster; "" when it was not."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return str(config.get("metadata", {}).get("job_submission_id", ""))


def announce(told: Mapping[str, str]) -> None:
    """Put `told` into this job's metadata; nothing where this is no submitted job."""
    job = submission_id()
    if not job or not own_ray.joins():
        return
    from ray._private.ray_constants import KV_NAMESPACE_JOB
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = GcsClient(address=os.environ["RAY_ADDRESS"])
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
    record = store.internal_kv_get(key, namespace=KV_NAMESPACE_JOB)
    if record is None:
        return
    info: dict[str, Any] = json.loads(record)
    info["metadata"] = {**(info.get("metadata") or {}), **told}
    store.internal_kv_put(key, json.dumps(info).encode(), True, namespace=KV_NAMESPACE_JOB)


def announced(run: Run, recipe: str) -> Callable[[str], None]:
    """What `run_steps` calls when it comes to a step ("" at the end): keeps the job's metadata true."""

    def come_to(step: str) -> None:
        reached = " ".join(sorted(version.ref for version in run.versions.values()))
        announce(
            {
                "recipe": recipe,
                "root": run.store.root,
                "policy": run.policy.id,
                "code": run.code_revision,
                "step": step or "done",
                "versions": reached,
            }
        )

    return come_to
