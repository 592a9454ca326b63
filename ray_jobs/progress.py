"""What a person sees of a run: a bar per step on a terminal, a line per step elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_jobs.store import Provenance


SAY_EVERY = 15.0  # seconds between two lines on one step where there is no terminal


class Bar:
    """One step's bar; without a terminal a line from time to time."""

    def __init__(self, say: Callable[[str], None], step: str, units: int, done: int) -> None:
        self.say, self.step, self.units, self.done = say, step, units, done
        self.started = self.said = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.said >= SAY_EVERY and self.done < self.units:
            self.said = now
            share = self.done / self.units
            self.say(
                f"    {self.step:<14} {self.done} of {self.units} units ({share:.0%}, {now - self.started:.0f} s)"
            )


class TerminalBar(Bar):
    """The same on a terminal."""

    def __init__(self, bars: Any, task: Any) -> None:
        self.bars, self.task = bars, task

    def advance(self) -> None:
        self.bars.advance(self.task, 1)


@dataclass
class Progress:
    """Reports the steps of one run. `quiet` says nothing at all."""

    quiet: bool = False
    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def cached(self, step: str, rows: int) -> None:
        self.say(f"  = {step:<14} {rows:>6} rows, done before")

    @contextmanager
    def step(self, step: str, units: int, found: int) -> Iterator[Bar]:
        if self.quiet or not sys.stderr.isatty():
            self.say(f"  > {step:<14} {units - found} of {units} units to do")
            yield Bar(self.say, step, units, found)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("  > {task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        from rich.console import Console

        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            yield TerminalBar(bars, bars.add_task(step, total=units, completed=found))

    def finished(self, step: str, provenance: Provenance) -> None:
        counts = provenance.counts
        dropped = sum(counts["dropped"].values())
        parts = [f"{counts['out']:>6} rows"]
        parts += [f"{dropped} set aside"] if dropped else []
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        parts += [f"{provenance.calls} calls, {provenance.tokens} tokens"] if provenance.calls else []
        elapsed = time.monotonic() - self.started
        self.say(f"  + {step:<14} {', '.join(parts)} ({provenance.seconds:.0f} s; {elapsed:.0f} s so far)")
