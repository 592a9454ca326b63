"""The faults: each starts a driver, breaks something, proves that it is broken, and returns the outcome.

Without proof it raises, and the fault counts as not shown.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ray_jobs.store import Store
from tests.faults.bench import (
    LONGEST_S,
    Bench,
    busy_worker,
    fill_disk,
    interrupted,
    kill_node,
    small_disk,
    unmount,
)
from tests.ray_nodes import is_gone, kill, until

DOWN_S = 60.0


def worker_killed(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("worker process killed")
    trial.start()
    trial.in_the_middle()
    pid = busy_worker(bench)
    trial.fire()
    kill(pid)
    until(lambda: is_gone(pid), 10, "the end of the worker")
    return trial.outcome("SIGKILL to a process that ran a unit", f"process {pid}, titled ray::Map…, is gone")


def node_killed(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("node killed")
    trial.start()
    trial.in_the_middle()
    raylet = bench.raylets[-1]
    node = bench.node_id(raylet)
    trial.fire()
    kill_node(raylet)
    until(lambda: bench.gcs_nodes()[node].state != 0, 90, "Ray notices the dead node")
    told = trial.outcome(
        "SIGKILL to a raylet and all its workers", "Ray's control store lists the node as dead"
    )
    bench.restore_nodes()
    return told


def driver_killed(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("driver killed")
    driver = trial.start()
    trial.in_the_middle()
    trial.fire()
    interrupted(driver)
    assert driver.returncode == -signal.SIGKILL
    return trial.outcome("SIGKILL to the driver", f"exit status {driver.returncode}")


def job_stopped(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("job stopped")
    driver = trial.start()
    trial.in_the_middle()
    trial.fire()
    interrupted(driver, signal.SIGTERM)
    assert driver.returncode == 128 + signal.SIGTERM, f"exit status {driver.returncode}\n{trial.told()}"
    return trial.outcome("SIGTERM to the driver, as `ray job stop` does", f"exit status {driver.returncode}")


def object_store_filled(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("object store filled")
    hoard = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.fill", "600"],
        env=bench.nodes.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hoard.stdout is not None
    held, spilled = hoard.stdout.readline().split()
    assert int(spilled) > 0, "nothing was spilled: the object stores were not full"
    trial.fire()
    trial.start()
    told = trial.outcome(
        f"{held} MiB of objects in two stores of 100 MiB each, for the whole run",
        f"Ray spilled {spilled} MiB to disk",
    )
    assert hoard.poll() is None, "the objects were let go before the run ended"
    hoard.kill()
    hoard.wait()
    return told


def engine(bench: Bench, name: str, what: str, injected: str, says: str, *flags: str) -> dict[str, Any]:
    """A model's process that breaks by itself; its marker file is the proof, what the driver said another."""
    trial = bench.trial(name)
    trial.broken(what, *flags)
    until(lambda: trial.marker.is_file() or trial.ended(), LONGEST_S, f"{name} fires")
    trial.fire()
    trial.wait_for_last()
    fired = trial.marker.read_text().splitlines()
    assert re.search(says, trial.told()), trial.told()
    return trial.outcome(injected, f"{len(fired)}× written down by the process before; the run's sentence")


def engine_dies_at_load(bench: Bench) -> dict[str, Any]:
    return engine(
        bench, "engine dies at load", "engine-load", "SIGKILL to itself while it loads, twice", "died"
    )


def engine_dies(bench: Bench) -> dict[str, Any]:
    return engine(bench, "engine dies", "engine-middle", "SIGKILL to itself at its eighth call", "died")


def engine_hangs(bench: Bench) -> dict[str, Any]:
    return engine(
        bench,
        "engine hangs",
        "engine-hangs",
        "answers no call from the eighth on",
        "made no step for",
        "--stall",
        "12",
    )


def unit_hangs(bench: Bench) -> dict[str, Any]:
    return engine(
        bench,
        "unit hangs",
        "unit-hangs",
        "a unit that sleeps for ever in its worker",
        "step written made no progress for 12 s",
        "--stall",
        "12",
    )


def endpoint_down(bench: Bench, seconds: float = DOWN_S) -> dict[str, Any]:
    trial = bench.trial("endpoint down")
    trial.start()
    trial.in_the_middle()
    trial.fire()
    bench.endpoint_down(seconds)
    until(lambda: refused(bench.endpoint_port), 10, "the endpoint refuses connections")
    told = trial.outcome(
        f"port and connections closed for {seconds:.0f} s", "a connection was refused; its log"
    )
    log = bench.call_log()[trial.seen :]
    marks = [float(line[-1]) for line in log if line[0] in ("down", "up")]
    calls = [float(line[-1]) for line in log if line[0] == "call"]
    assert len(marks) == 2 and marks[1] - marks[0] >= seconds - 1
    assert not [at for at in calls if marks[0] < at < marks[1]] and max(calls) > marks[1]
    return told


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def disk_full(bench: Bench) -> dict[str, Any]:
    disk = bench.folder / "disk"
    small_disk(disk, 64)
    trial = bench.trial("disk full", str(disk / "mill"))
    trial.start()
    trial.in_the_middle()
    filler = fill_disk(disk)
    trial.fire()
    free = os.statvfs(disk).f_bfree
    assert free == 0
    assert trial.wait_for_last() == 1, trial.told()
    assert "no space left on the device" in trial.told(), trial.told()
    filler.unlink()
    told = trial.outcome("the 64 MB file system of the root filled up", "0 blocks free; the run's sentence")
    unmount(disk)
    return told


def storage_fails(bench: Bench) -> dict[str, Any]:
    failures = bench.folder / "failures"
    failures.touch()
    bench.server("tests.faults.storage", str(bench.storage_port), str(failures))
    until(lambda: not refused(bench.storage_port), 60, "the S3 server")
    os.environ.update(bench.s3())
    from pyarrow.fs import S3FileSystem

    host = f"127.0.0.1:{bench.storage_port}"
    S3FileSystem(endpoint_override=host, scheme="http", allow_bucket_creation=True).create_dir("bucket")
    trial = bench.trial("storage fails and is slow", "s3://bucket/mill")
    trial.fire()
    trial.start()
    told = trial.outcome("S3, 30 ms a request: one write in ten refused, or done and its answer lost", "")
    kinds = [line.split()[0] for line in failures.read_text().splitlines()]
    assert kinds.count("refused") > 5 and kinds.count("lost") > 5, kinds
    return told | {"proof": f"{kinds.count('refused')} writes refused, {kinds.count('lost')} answers lost"}


def preempted(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("spot preemption")
    trial.start()
    trial.in_the_middle()
    raylet = bench.raylets[-1]
    node = bench.node_id(raylet)
    trial.fire()
    told = bench.nodes.ray(
        "drain-node", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
        "--deadline-remaining-seconds=6",
    )  # fmt: skip
    time.sleep(6)
    kill_node(raylet)
    until(lambda: bench.gcs_nodes()[node].state != 0, 90, "Ray notices the dead node")
    assert told.returncode == 0
    outcome = trial.outcome(
        "`ray drain-node`, reason preemption, 6 s notice; then SIGKILL to the node",
        "Ray accepted the drain; then lists the node as dead",
    )
    bench.restore_nodes()
    return outcome


def two_drivers(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("two drivers")
    trial.fire()
    first, second = trial.start(), trial.start()
    codes = [driver.wait(timeout=LONGEST_S) for driver in (first, second)]
    logs = [trial.log(number).read_text() for number in (0, 1)]
    assert sorted(codes) == [0, 1], (codes, logs)
    loser = logs[codes.index(1)]
    assert "another run" in loser, loser
    if codes[1]:  # `outcome` looks at the last driver: let that be the one that ran
        trial.drivers.reverse()
    trial.sentence = next(line for line in loser.splitlines() if "another run" in line).removeprefix(
        "guardmill: "
    )
    return trial.outcome(
        "the same command twice at once",
        "one ran, one ended with exit code 1",
        "one ran; the other ended at once",
    )


def stopped_before_commit(bench: Bench) -> dict[str, Any]:
    trial = bench.trial("stopped before the commit")
    driver = trial.broken("commit")
    driver.wait(timeout=LONGEST_S)
    trial.fire()
    store = Store(trial.root)
    assert driver.returncode == -signal.SIGKILL and trial.marker.is_file()
    assert "written" not in store.tables() and "written_notes" in store.tables()
    written = {line[1] for line in bench.call_log()[trial.seen :]}
    before = len(bench.call_log())
    told = trial.outcome(
        "SIGKILL between the last unit and the commit of the main table",
        f"{trial.units()} units and the side table there, the main table not",
    )
    again = [line for line in bench.call_log()[before:] if line[1] in written]
    assert not again, f"{len(again)} calls of a finished step were paid again"
    return told


MATRIX: dict[str, Callable[[Bench], dict[str, Any]]] = {
    fault.__name__: fault
    for fault in (
        worker_killed, node_killed, driver_killed, job_stopped, object_store_filled, engine_dies_at_load, engine_dies,
        engine_hangs, unit_hangs, endpoint_down, disk_full, storage_fails, preempted, two_drivers,
        stopped_before_commit,
    )
}  # fmt: skip
