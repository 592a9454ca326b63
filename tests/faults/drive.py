"""A driver: joins the cluster at $RAY_ADDRESS and runs the flow, as a job would.

python -m tests.faults.drive ROOT URL [--stall S] [--break WHAT --marker FILE]
"""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from typing import Any

from ray_jobs.engine import actor
from ray_jobs.job import as_job
from ray_jobs.step import run_steps
from ray_jobs.store import Store
from tests.faults import faulty
from tests.faults.flow import FLOW, make_run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("url")
    parser.add_argument("--stall", type=float, default=120.0)
    parser.add_argument("--break", dest="what", default="")
    parser.add_argument("--marker", default="")
    options = parser.parse_args()
    flow = list(FLOW)
    if options.what in faulty.ENGINES:
        kind = faulty.ENGINES[options.what]
        actor.ModelActor = type("Broken", (kind,), {"marker": options.marker})  # type: ignore[misc]
    if options.what == "unit-hangs":
        flow[0] = replace(flow[0], run=faulty.HangingUnit(options.marker))
    if options.what == "commit":
        kill_before_commit(options.marker)

    def go() -> None:
        run = make_run(options.root, options.url, options.stall)
        with run.store.lock():
            run_steps(flow, run)

    as_job(go)


def kill_before_commit(marker: str) -> None:
    """This process ends when all units of `written` and its side table are there, and the main table is to come."""
    commit = Store.commit

    def killed(self: Store, name: str, *arguments: Any) -> Any:
        if name == "written" and faulty.fires(marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(self, name, *arguments)

    Store.commit = killed  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
