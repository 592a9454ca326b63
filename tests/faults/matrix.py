"""The matrix: every fault of injected.py once, each on a flow of its own.

    python -m tests.faults.matrix --json FILE [--doc docs/reliability.md] [--only NAME …] [--short]

With --only, the other results that FILE holds already stay. It runs apart (tests/apart.py) where the kernel allows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_jobs.store import Store
from tests import apart
from tests.faults.bench import Bench
from tests.faults.doc import write_doc
from tests.faults.flow import FLOW
from tests.faults.injected import MATRIX

SHORT = ("stopped_before_commit", "engine_dies", "job_stopped", "worker_killed", "disk_full")
MOUNTS = ("disk_full",)


def calm(bench: Bench) -> float:
    """Seconds of the flow when nothing breaks; a driver's start included."""
    trial = bench.trial("calm")
    trial.fire()
    trial.start()
    told = trial.outcome("", "")
    assert not told["lost"] and not told["paid_twice"] and len(Store(trial.root).tables()) == 2 * len(FLOW)
    return float(told["seconds"])


def run(names: list[str], calm_s: float | None, seen: Callable[[dict[str, Any]], None]) -> None:
    """The faults named, one after the other on one cluster; `seen` is given all results after each. A fault that is
    not shown has the reason in `error`. `calm_s`: seconds of the undisturbed flow; None measures them."""
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    results: list[dict[str, Any]] = []
    started = time.monotonic()
    with Bench(folder) as bench:
        calm_s = calm(bench) if calm_s is None else calm_s
        for name in names:
            if name in MOUNTS and not os.environ.get(apart.MARK):
                results.append(
                    {"name": name, "skipped": "mounting a small file system is not permitted here"}
                )
                continue
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                results.append({"name": name, **MATRIX[name](bench)})
            except Exception as problem:  # the next fault shows what it shows
                results.append({"name": name, "error": f"{type(problem).__name__}: {problem}"[-4000:]})
                bench.restore_nodes()
            print(f"  {json.dumps(results[-1])[:1500]}", file=sys.stderr, flush=True)
            seen(summary(calm_s, started, results))
    shutil.rmtree(folder, ignore_errors=True)


def summary(calm_s: float, started: float, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "environment": {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[2],
            "nodes": 3,
            "apart": bool(os.environ.get(apart.MARK)),
        },
        "calm_s": calm_s,
        "seconds": round(time.monotonic() - started),
        "faults": list(results),
    }


def merged(earlier: dict[str, Any], now: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Results of a file with those of this run in their place, in the order of `names`."""
    found = {fault["name"]: fault for fault in (*earlier["faults"], *now["faults"])}
    loads = [one["environment"]["load"] for one in (earlier, now) if "environment" in one]
    return {
        **now,
        "environment": {**now["environment"], "load": max(loads)},
        "seconds": earlier["seconds"] + now["seconds"],
        "faults": [found[n] for n in names if n in found],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--doc", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], choices=list(MATRIX))
    options = parser.parse_args()
    if (inside := apart.prefix()) and not os.environ.get(apart.MARK):
        command = [*inside, sys.executable, "-m", "tests.faults.matrix", *sys.argv[1:]]
        return subprocess.run(command, env=apart.environment(), cwd=apart.ROOT, check=False).returncode
    earlier: dict[str, Any] = {"faults": [], "seconds": 0, "calm_s": 0.0}
    if options.json and options.json.is_file() and options.only:
        earlier = json.loads(options.json.read_text())
    told: dict[str, Any] = {}

    def seen(results: dict[str, Any]) -> None:
        told.update(merged(earlier, results, list(MATRIX)))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(told, indent=1))

    known = 0.0 if options.short else earlier["calm_s"] or None  # only the page tells it
    run(options.only or list(SHORT if options.short else MATRIX), known, seen)
    if options.doc:
        options.doc.write_text(write_doc(told), encoding="utf-8")
    return int(any("error" in fault for fault in told["faults"]))


if __name__ == "__main__":
    sys.exit(main())
