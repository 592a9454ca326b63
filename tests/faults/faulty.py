"""What is broken inside a run: engines that die or hang, a unit that never ends, a driver killed before its commit.

Each leaves a line in a marker file when it fires, and does not fire again once the file has as many as it may.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.engine.actor import ModelActor
from ray_jobs.step import Output
from tests.faults.flow import write

MARKER = "GUARDMILL_FAULT_MARKER"


def fires(marker: str, times: int = 1) -> bool:
    """Whether a fault still has to happen; it is written down at once."""
    path = Path(marker)
    if path.is_file() and len(path.read_text().splitlines()) >= times:
        return False
    with path.open("a") as file:
        print(f"pid {os.getpid()} at {time.time():.3f}", file=file, flush=True)
    return True


class DiesAtLoad(ModelActor):
    """Ends at each of the first two loads: an engine tries again once."""

    marker = ""

    async def load(self, *arguments: Any) -> str:
        if fires(self.marker, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().load(*arguments)


class DiesInTheMiddle(ModelActor):
    """Ends when the eighth call has come."""

    marker, calls = "", 0

    async def call(self, *arguments: Any) -> list[Any]:
        self.calls += 1
        if self.calls == 8 and fires(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().call(*arguments)


class Hangs(ModelActor):
    """Answers no call any more from the eighth on, but goes on living."""

    marker, calls, hung = "", 0, False

    async def call(self, *arguments: Any) -> list[Any]:
        self.calls += 1
        if self.calls == 8 and fires(self.marker):
            self.hung = True
        if self.hung:
            await asyncio.sleep(1e6)
        return await super().call(*arguments)


ENGINES = {"engine-load": DiesAtLoad, "engine-middle": DiesInTheMiddle, "engine-hangs": Hangs}


@dataclass(frozen=True)
class HangingUnit:
    """The step `written`, with one unit that never ends."""

    marker: str

    def __call__(self, work: Any) -> Output:
        if fires(self.marker):
            time.sleep(1e6)
        return write(work)
