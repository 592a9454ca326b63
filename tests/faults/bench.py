"""What the faults are injected into: a cluster of three real Ray nodes, the scripted endpoint, and drivers.

A `Bench` is one cluster; a `Trial` is one fault on a root of its own, from its first driver to whole tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.store import Store
from tests import apart
from tests.faults import flow
from tests.ray_nodes import Nodes, descendants, free_port, is_gone, kill, processes, until

NODES, CPUS = 2, 2
IN_FLIGHT = int(NODES * CPUS / flow.UNIT_CPUS)
CALL_S = 0.4
MOST_RESUMES = 3
LONGEST_S = 600.0  # of one driver, on a busy machine


class Bench:
    """`with Bench(folder) as bench`: head, two worker nodes, endpoint; `bench.trial(name)` for each fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint_port, self.storage_port = free_port(), free_port()
        self.calls = folder / "calls"
        self.calls.touch()
        os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else reaches it; tests/cluster has tokens
        self.nodes = Nodes({**apart.environment(), **self.s3(), "RAY_AUTH_MODE": "disabled"})
        self.raylets: list[int] = []
        self.servers: list[subprocess.Popen[bytes]] = []
        self.calm_s = 0.0

    def s3(self) -> dict[str, str]:
        """What Ray's workers have to know of the S3 server that one fault uses."""
        keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.storage_port}"}

    def __enter__(self) -> Bench:
        self.server("tests.faults.server", str(self.endpoint_port), str(self.calls), str(CALL_S))
        self.nodes.__enter__()
        self.restore_nodes()
        return self

    def __exit__(self, *_: object) -> None:
        self.nodes.__exit__()
        for server in self.servers:
            server.kill()
            server.wait()

    def server(self, module: str, *arguments: str) -> None:
        started = subprocess.Popen([sys.executable, "-m", module, *arguments], env=apart.environment())
        self.servers.append(started)

    def restore_nodes(self) -> None:
        """Back to all worker nodes, after a fault that cost one."""
        self.raylets = [pid for pid in self.raylets if not is_gone(pid)]
        while len(self.raylets) < NODES:
            self.raylets.append(self.nodes.add(CPUS))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.endpoint_port}/v1"

    def endpoint_down(self, seconds: float) -> None:
        body = json.dumps({"down_s": seconds}).encode()
        target = f"http://127.0.0.1:{self.endpoint_port}/control"
        urllib.request.urlopen(urllib.request.Request(target, body), timeout=10).read()

    def gcs_nodes(self) -> dict[str, Any]:
        """What the cluster's control store knows of each node, by id in hex."""
        from ray._raylet import GcsClient

        found = GcsClient(address=self.nodes.environment["RAY_ADDRESS"]).get_all_node_info()
        return {node_id.hex(): info for node_id, info in found.items()}

    def node_id(self, raylet: int) -> str:
        """The id of the node whose raylet this is, by its socket."""
        arguments = (Path("/proc") / str(raylet) / "cmdline").read_bytes().decode().split("\0")
        told = {f"--raylet_socket_name={info.raylet_socket_name}": n for n, info in self.gcs_nodes().items()}
        return next(
            told[argument] for argument in arguments if argument in told
        )  # one's name begins another's

    def trial(self, name: str, root: str = "") -> Trial:
        root = root or str(self.folder / name / "mill")
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        flow.prepare(root)
        return Trial(self, name, root, seen=len(self.call_log()))

    def call_log(self) -> list[list[str]]:
        return [line.split() for line in self.calls.read_text().splitlines()]


@dataclass
class Trial:
    """One fault: drivers on one root, and what they cost and left."""

    bench: Bench
    name: str
    root: str
    seen: int
    fired_at: float = 0.0
    sentence: str = ""
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def marker(self) -> Path:
        return self.bench.folder / self.name / "marker"

    def log(self, number: int) -> Path:
        return self.bench.folder / self.name / f"driver-{number}.log"

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """One more driver on this root."""
        command = [sys.executable, "-m", "tests.faults.drive", self.root, self.bench.url, *flags]
        with self.log(len(self.drivers)).open("w") as out:
            driver = subprocess.Popen(
                command, env=self.bench.nodes.environment, stdout=out, stderr=out, text=True, cwd=apart.ROOT
            )
        self.drivers.append(driver)
        return driver

    def broken(self, what: str, *flags: str) -> subprocess.Popen[str]:
        return self.start("--break", what, "--marker", str(self.marker), *flags)

    def units(self, step: str = "written") -> int:
        return len(Store(self.root).list_json(f"ledger/{step}"))

    def in_the_middle(self, units: int = 4) -> None:
        """Wait until so many units of the first step are finished, and it goes on."""
        until(
            lambda: self.units() >= units or self.ended(), LONGEST_S, f"{self.name}: {units} finished units"
        )
        assert not self.ended(), f"{self.name}: the driver ended early\n{self.told()}"

    def ended(self) -> bool:
        return all(driver.poll() is not None for driver in self.drivers)

    def fire(self) -> None:
        self.fired_at = time.time()

    def told(self) -> str:
        """What the last driver said."""
        return self.log(len(self.drivers) - 1).read_text()[-3000:]

    def recover(self) -> int:
        """Wait for the driver; submit the same command again until the flow is whole. Returns how often."""
        resumed = 0
        while self.wait_for_last() != 0:
            failed = [line for line in self.told().splitlines() if line.startswith("guardmill: ")]
            self.sentence = self.sentence or (failed[-1].removeprefix("guardmill: ") if failed else "")
            assert resumed < MOST_RESUMES, f"{self.name}: not whole after {resumed} resumes\n{self.told()}"
            resumed += 1
            self.start()
        return resumed

    def said(self) -> str:
        """The run's sentence without what differs from run to run."""
        plain = self.sentence.replace(str(self.bench.folder), "…")
        return re.sub(r"pid \d+ on [^,]+, since [^)]+", "pid … on …, since …", plain)

    def wait_for_last(self) -> int:
        return self.drivers[-1].wait(timeout=LONGEST_S)

    def outcome(self, injected: str, proof: str, recovered: str = "") -> dict[str, Any]:
        """Recover, compare the tables with what must be there, and count what was paid."""
        resumed = self.recover()
        whole = time.time()
        store, wanted = Store(self.root), flow.expected()
        rows = store.read("judged").to_pylist()
        texts = {row["id"]: row["text"] for row in rows}
        paid = Counter(line[1] for line in self.bench.call_log()[self.seen :] if line[0] == "call")
        assert len(paid) == 2 * len(wanted), f"{len(paid)} rows were asked for, not {2 * len(wanted)}"
        notes = store.read("judged_notes")["id"].to_pylist()
        if not recovered:
            recovered = f"the same command again, {resumed}×" if resumed else "the run went on by itself"
        return {
            "fault": self.name,
            "injected": injected,
            "proof": proof,
            "recovered": recovered,
            "said": self.said(),
            "rows": len(wanted),
            "lost": len(set(wanted) - set(texts)),
            "doubled": len(rows) - len(texts) + len(notes) - len(set(notes)),
            "wrong": sum(texts[row] != text for row, text in wanted.items() if row in texts),
            "paid": sum(paid.values()),
            "paid_twice": sum(times - 1 for times in paid.values()),
            "bound": flow.largest_units(IN_FLIGHT),
            "seconds": round(whole - self.fired_at, 1),
        }


def busy_worker(bench: Bench) -> int:
    """A process that runs a unit just now."""

    def found() -> int:
        titled = processes(lambda command: command.startswith("ray::Map"), live=True)
        ours = {pid for raylet in bench.raylets for pid in descendants(raylet)}
        return next((pid for pid in titled if pid in ours), 0)

    return int(until(found, 60, "a worker that runs a unit", every=0.01))


def kill_node(raylet: int) -> None:
    """All of a node at once, as when its machine goes."""
    for pid in [raylet, *descendants(raylet)]:
        kill(pid)
    until(lambda: is_gone(raylet), 10, "the end of the raylet")


def fill_disk(folder: Path) -> Path:
    """Write a file until nothing fits any more."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return filler


def small_disk(folder: Path, megabytes: int) -> None:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder)


def interrupted(driver: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    os.kill(driver.pid, number)
    driver.wait()
