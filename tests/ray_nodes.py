"""A Ray cluster of several nodes on this machine, started as a user would (`ray start`), each node a raylet of its
own. It has its own ports and folder, so it disturbs nobody where namespaces are not to be had (tests/apart.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STORE_BYTES = 100 << 20  # Ray wants at least 75 MB
START_TRIES = 3  # on a busy machine


@dataclass
class Nodes:
    """`with Nodes() as nodes`: a head that runs no task and `nodes.add(cpus)` workers; `environment` points at it."""

    environment: dict[str, str]
    head_cpus: int = 0
    dashboard: bool = False
    more: tuple[str, ...] = ()
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="gm", dir="/tmp"))
    port: int = 0
    dashboard_port: int = 0

    def __enter__(self) -> Nodes:
        self.port, self.dashboard_port = free_port(), free_port()
        self.environment = {
            **self.environment,
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_TMPDIR": self.folder,
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_idle_worker_killing_time_threshold_ms": "30000",  # as where a run starts Ray itself
        }
        show = f"--include-dashboard={str(self.dashboard).lower()}"
        self.ray("start", "--head", f"--port={self.port}", f"--num-cpus={self.head_cpus}", show,
                 f"--dashboard-port={self.dashboard_port}", f"--temp-dir={self.folder}",
                 f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
                 *self.more)  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for pid in processes(lambda command: self.folder in command):
            kill(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add(self, cpus: int, **resources: float) -> int:
        """Start one more node; returns the pid of its raylet."""
        before = set(self.raylets())
        self.ray("start", f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1",
                 f"--object-store-memory={STORE_BYTES}", f"--resources={json.dumps(resources)}",
                 "--disable-usage-stats")  # fmt: skip
        (new,) = set(self.raylets()) - before
        return new

    def raylets(self) -> list[int]:
        return processes(
            lambda command: "/raylet/raylet " in command + " " and self.folder in command, live=True
        )

    def ray(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = self.environment
        if arguments[0] == "start":  # `ray start` refuses an address in the environment
            environment = {k: v for k, v in environment.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
        for _ in range(START_TRIES):
            done = subprocess.run(
                ["ray", *arguments], env=environment, capture_output=True, text=True, timeout=400
            )
            if "timed out during startup" not in done.stderr:  # Ray gives a node 30 s
                break
        if check and done.returncode:
            raise RuntimeError(f"ray {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done


def processes(wanted: Callable[[str], bool], live: bool = False) -> list[int]:
    """Pids whose command line (or title) is wanted, oldest first; never this process. `live`: no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command and wanted(command) and not (live and is_gone(int(entry.name))):
            found.append(int(entry.name))
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """All processes that a process started, directly or not."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below, found = {pid}, []
    while new := [child for child, parent in parents.items() if parent in below and child not in below]:
        below.update(new)
        found.extend(new)
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def until(holds: Callable[[], Any], seconds: float, what: str, every: float = 0.05) -> Any:
    """What `holds` returns once it is true. TimeoutError naming `what`."""
    end = time.monotonic() + seconds
    while True:
        if answer := holds():
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def with_token(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment of a cluster with token authentication, its token made by Ray's own command."""
    there = {**environment, "RAY_AUTH_MODE": "token", "HOME": str(folder)}
    subprocess.run(["ray", "get-auth-token", "--generate"], env=there, check=True, capture_output=True)
    path = folder / ".ray" / "auth_token"
    return {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
