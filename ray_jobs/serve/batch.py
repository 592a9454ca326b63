"""Many live streams, one model: what is waiting when a forward step begins takes part in it (train.stream.StreamBatch).

New tokens of all streams are judged together, a few per stream; a long text (a prompt) goes alone and in parts between
those steps, since a step is as wide as its longest member. Steps run one after the other in a thread of their own, so
that the event loop stays free. A stream that is dropped while its step runs gives its slot back after it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from synth.errors import BadInput
from train.stream import Result, StreamBatch, StreamState

SHORT, PART = 16, 256  # tokens: up to here steps are shared; a long text's part


class Full(BadInput):
    """All streams are taken."""


@dataclass(eq=False)
class _Waiting:
    state: StreamState
    ids: list[int]
    role: str
    answer: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Judge:
    """Up to `streams` streams of at most `context` tokens; `on_step(seconds, tokens, streams)` hears of each step."""

    def __init__(
        self,
        guard: Any,
        streams: int,
        context: int,
        on_step: Callable[[float, int, int], None] = lambda seconds, tokens, streams: None,
    ) -> None:
        self.guard, self.streams, self.context, self.on_step = guard, streams, context, on_step
        self._batch = StreamBatch(guard, streams)
        self._open = 0
        self._waiting: list[_Waiting] = []
        self._running: list[StreamState] = []
        self._dropped: list[StreamState] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guard")
        self._work: asyncio.Task[None] | None = None

    @property
    def open_streams(self) -> int:
        return self._open

    def open(self) -> StreamState:
        """A new stream. Raises Full when all are taken."""
        if self._open + len(self._dropped) >= self.streams:
            raise Full(f"all {self.streams} streams of this server are taken; try again later")
        self._open += 1
        return self._batch.open()

    def close(self, state: StreamState) -> None:
        """Gives the stream's place to the next one."""
        self._open -= 1
        self._waiting = [one for one in self._waiting if one.state is not state]
        if any(one is state for one in self._running):
            self._dropped.append(state)
        else:
            self._batch.close(state)

    async def judge(self, state: StreamState, ids: list[int], role: str) -> Result:
        """The verdicts on the stream's next tokens. BadInput where they do not fit the context."""
        if state.length + len(ids) > self.context:
            raise BadInput(
                f"the stream has {state.length + len(ids)} tokens, the guard's context {self.context}"
            )
        whole: Result = {}
        for at in range(0, len(ids), PART):
            one = _Waiting(state, ids[at : at + PART], role)
            self._waiting.append(one)
            if self._work is None or self._work.done():
                self._work = asyncio.create_task(self._steps())
            for name, values in (await one.answer).items():
                whole.setdefault(name, []).extend(values)
        return whole

    async def _steps(self) -> None:
        """Runs steps until nothing waits: all short texts at once, then the long one that came first."""
        while self._waiting:
            short = [one for one in self._waiting if len(one.ids) <= SHORT]
            long = [one for one in self._waiting if len(one.ids) > SHORT][:1]
            for together in filter(None, (short, long)):
                await self._step([one for one in together if any(one is other for other in self._waiting)])

    async def _step(self, together: list[_Waiting]) -> None:
        if not together:
            return
        self._waiting = [one for one in self._waiting if one not in together]
        self._running = [one.state for one in together]
        entries = [(one.state, one.ids, one.role) for one in together]
        began = time.perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._batch.step, entries
            )
        except Exception as problem:  # told to whoever waits for it
            for one in together:
                if not one.answer.done():
                    one.answer.set_exception(problem)
            return
        finally:
            self._running = []
            for state in self._dropped:
                self._batch.close(state)
            self._dropped.clear()
        self.on_step(time.perf_counter() - began, sum(len(one.ids) for one in together), len(together))
        for one, result in zip(together, results, strict=True):
            if not one.answer.done():
                one.answer.set_result(result)
