"""One named Ray actor per set of weights: loaded once, shared by all roles and tasks that use it.

Calls are plain and small for the caller; the actor gathers what arrives within some milliseconds (and all
that came while the last batch ran) into one batch per kind of call, so that the device stays full. The model
works in a thread of its own, so that the actor can always answer how far it is: a client that waits sees a
dead process at once and a stalled one after the option `stall_s` (600 s), and raises EngineDied. Nothing is
restarted or retried here: the step fails, and its next run resumes from its finished units.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray_jobs.engine.calls import Model
from synth.errors import BadInput

GATHER_SECONDS = 0.005
BATCH_ROWS = 4096  # rows of one batch; an engine cuts them further by what its device holds


@dataclass
class Request:
    """One caller's rows: `columns` are parallel lists, `extra` (with model and method) must agree in a
    batch."""

    model: Model
    method: str
    columns: tuple[list[Any], ...]
    extra: tuple[Any, ...]
    answer: "asyncio.Future[list[Any]]"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.model, self.method, self.extra


class ModelActor:
    """Runs in a Ray worker; its methods are asynchronous and interleave while the model computes."""

    def __init__(self) -> None:
        self.engines: dict[Model, Any] = {}
        self.queue: deque[Request] = deque()
        self.arrived = asyncio.Event()
        self.ticks = 0
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.loading = asyncio.Lock()
        self.worker: asyncio.Task[None] | None = None

    async def load(self, model: Model) -> str:
        """Load the weights once. Returns "" or, when they cannot be loaded, the reason in one sentence."""
        async with self.loading:
            if model not in self.engines:
                shared = next(iter(self.engines.values()), None)
                loop = asyncio.get_running_loop()
                try:
                    self.engines[model] = await loop.run_in_executor(
                        self.pool, build, model, self._tick, shared
                    )
                except BadInput as error:
                    return str(error)
            if self.worker is None:
                self.worker = asyncio.create_task(self._work())
        return ""

    async def call(
        self, model: Model, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...]
    ) -> list[Any]:
        """Answer one caller's rows, computed together with whatever else is waiting."""
        if model not in self.engines and (reason := await self.load(model)):
            raise BadInput(reason)
        answer_now = getattr(self.engines[model], method)
        if inspect.iscoroutinefunction(
            answer_now
        ):  # it bounds its own concurrency: no batch has to end first
            return await answer_now(columns[0], *extra, *columns[1:])
        request = Request(model, method, columns, extra, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        self.arrived.set()
        return await request.answer

    async def progress(self) -> int:
        """A number that grows while the model works."""
        return self.ticks

    def _tick(self) -> None:
        self.ticks += 1

    async def _work(self) -> None:
        while True:
            await self.arrived.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self.arrived.clear()
            while self.queue:
                await self._run(self._take())

    def _take(self) -> list[Request]:
        """The oldest request and all that can share its batch."""
        first, rows = self.queue[0], 0
        batch: list[Request] = []
        rest: deque[Request] = deque()
        for request in self.queue:
            if request.key == first.key and (not batch or rows + len(request.columns[0]) <= BATCH_ROWS):
                batch.append(request)
                rows += len(request.columns[0])
            else:
                rest.append(request)
        self.queue = rest
        return batch

    async def _run(self, batch: list[Request]) -> None:
        """Run one batch; what it raises goes to every caller in it."""
        columns = [
            [value for request in batch for value in request.columns[c]] for c in range(len(batch[0].columns))
        ]
        method = getattr(self.engines[batch[0].model], batch[0].method)
        arguments = (columns[0], *batch[0].extra, *columns[1:])
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.pool, lambda: method(*arguments))
        except BaseException as error:
            for request in batch:
                request.answer.set_exception(error)
            return
        finally:
            self._tick()
        at = 0
        for request in batch:
            request.answer.set_result(results[at : at + len(request.columns[0])])
            at += len(request.columns[0])


def build(model: Model, progress: Callable[[], None], shared: Any = None) -> Any:
    """The engine behind an actor, by the model's `engine`; `shared` has the same weights loaded already."""
    if model.engine == "local":
        from ray_jobs.engine.local import LocalModel

        return LocalModel(model, progress, shared)
    if model.engine == "openai":
        from ray_jobs.engine.openai import OpenAIModel

        return OpenAIModel(model, progress, shared)
    raise BadInput(f"model {model.name!r}: the engine {model.engine!r} is not available here")
