"""No run hangs: a step that shows no sign of progress for the recipe's limit is ended, with what it waited for.

Signs: a finished unit; a model that made a step; a file in the step's working folder that grew (trainings save their
checkpoints there); and, of a step that computes in the driver, its processor time. A thread looks at them. When none
has changed for `limit` seconds it says what it saw, interrupts the main thread with a signal (Ray's waits and most
others return at one), and ends the process outright where that does not help within `GRACE` seconds. Either way the
step is left as a crash would leave it: finished units are found by the next run.

Not noticed: a driver step that computes in a circle, and anything that never happens while a model is kept busy.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ray_jobs.step.definition import StepFailed

if TYPE_CHECKING:
    from ray_jobs.engine import Engines
    from ray_jobs.step.units import Unit

GRACE = 60.0
BUSY = 0.1  # share of a core from which on the driver counts as computing; an idle one takes 0.01 to 0.03
LISTED = 8  # units named in the message


class Stalled(BaseException):
    """Raised in the main thread by the signal; never leaves `watched`."""


class Watch:
    """What is known of a running step."""

    def __init__(self, step: str, limit: float, engines: Engines, folder: Path | None) -> None:
        self.step, self.limit, self.engines, self.folder = step, limit, engines, folder
        self.waiting: dict[str, str] = {}
        self.units = self.found = 0
        self.on_driver = False
        self.reason = ""
        self.ended = threading.Event()

    def expect(self, units: Sequence[Unit], pending: Sequence[Unit], on_driver: bool) -> None:
        """The step's units, and those of them to be done now."""
        self.units, self.on_driver = len(units), on_driver
        self.waiting = {unit.identity: unit.key for unit in pending}

    def finished(self, identity: str) -> None:
        self.waiting.pop(identity, None)

    def look(self) -> None:
        """Runs beside the step until it ends, or until it has shown nothing for `limit` seconds."""
        pause = min(10.0, self.limit / 4)
        last, changed, computed = self.signs(), time.monotonic(), time.process_time()
        while not self.ended.wait(pause):
            now, spent = self.signs(), time.process_time()
            busy = self.on_driver and spent - computed > BUSY * pause
            if now != last or busy:
                last, changed = now, time.monotonic()
            computed = spent
            if time.monotonic() - changed > self.limit:
                self.end()
                return

    def signs(self) -> tuple[Any, ...]:
        return len(self.waiting), tuple(sorted(self.ticks().items())), self.written()

    def ticks(self) -> dict[str, int | None]:
        """Steps that each role's model has made; None for one that does not answer."""
        found: dict[str, int | None] = {}
        for role, client in list(self.engines.clients.items()):
            handle = getattr(client, "handle", None) or getattr(getattr(client, "base", None), "handle", None)
            if handle is None:
                continue
            import ray

            try:
                found[role] = ray.get(handle.progress.remote(), timeout=min(5.0, self.limit / 4))
            except Exception:  # dead, or too busy to say: no sign of life, whatever it is
                found[role] = None
        return found

    def written(self) -> int:
        """Bytes of files in the step's working folder."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        files = (Path(at) / name for at, _, names in os.walk(self.folder) for name in names)
        return sum(file.stat().st_size for file in files if file.exists())

    def end(self) -> None:
        """Say what was waited for, and get the main thread out of its wait."""
        self.reason = f"step {self.step} made no progress for {self.limit:.0f} s: {self.seen()}"
        print(f"guardmill: {self.reason}", file=sys.stderr, flush=True)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR2)
        if not self.ended.wait(GRACE):
            print("guardmill: it does not leave its wait; ended", file=sys.stderr, flush=True)
            os._exit(1)

    def seen(self) -> str:
        """What the step waits for: its units, its models, and what Ray has free."""
        import ray

        keys = sorted(self.waiting.values())
        listed = ", ".join(keys[:LISTED]) + (", …" if len(keys) > LISTED else "")
        told = [
            f"{self.units - len(keys)} of {self.units} units are finished, waiting for {listed or 'none'}"
        ]
        for role, steps in sorted(self.ticks().items()):
            state = "does not answer" if steps is None else f"answers, and stands still at step {steps}"
            told.append(f"the model of role {role} {state}")
        there = ray.cluster_resources() if ray.is_initialized() else {}
        free = ray.available_resources() if there else {}
        for kind in ("CPU", "GPU"):
            if there.get(kind):
                told.append(f"{free.get(kind, 0):g} of {there[kind]:g} {kind}s are free")
        return "; ".join(told)


@contextmanager
def watched(step: str, limit: float, engines: Engines, folder: Path | None) -> Iterator[Watch]:
    """Watches the block, if it runs in the main thread and there is a limit. StepFailed when it was ended."""
    watch = Watch(step, limit, engines, folder)
    if limit <= 0 or threading.current_thread() is not threading.main_thread():
        yield watch
        return

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise Stalled

    before = signal.signal(signal.SIGUSR2, interrupt)
    thread = threading.Thread(target=watch.look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watch
    except Stalled:
        raise StepFailed(watch.reason) from None
    finally:
        watch.ended.set()
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        thread.join()
        signal.signal(signal.SIGUSR2, before)
