"""One named Ray actor per distinct model: loaded once, shared by all roles and tasks that use it.
 Calls are plain and small for the caller; the actor gathers what arrives within some milliseconds (and all
that came while the last batch ran) into one batch per kind of call, so that the device stays full. The
model works in a thread of its own, so that the actor can always answer how far it is: a client that waits
sees a dead process at once and a stalled one after the option `stall_s` (600 s), and raises EngineDied.
Nothing is restarted or retried here: the step fails, and its next run resumes from its finished units.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_jobs.engine.calls import Completion, Failure, Message, Model, Prompt, Sampling, Scores, TokenScores

GATHER_SECONDS = 0.005
BATCH_ROWS = 4096  # rows of one batch; an engine cuts them further by what its device holds


@dataclass
class Request:
    """One caller's rows: `columns` are parallel lists, `extra` what must be equal to share a batch."""

    method: str
    columns: tuple[list[Any], ...]
    extra: tuple[Any, ...]
    client: str
    answer: "asyncio.Future[list[Any]]"


class ModelActor:
    """Runs in a Ray worker; all methods are asynchronous and interleave while the model computes."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.engine: Any = None
        self.queue: deque[Request] = deque()
        self.arrived = asyncio.Event()
        self.ticks = 0
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.usage_of: dict[str, dict[str, int]] = {}
        self.loading = asyncio.Lock()
        self.worker: asyncio.Task[None] | None = None

    async def load(self) -> str:
        """Load the model once. Returns "" or, when it cannot be loaded, the reason in one sentence."""
        from synth.errors import BadInput

        async with self.loading:
            if self.engine is None:
                try:
                    loop = asyncio.get_running_loop()
                    self.engine = await loop.run_in_executor(self.pool, build, self.model, self._tick)
                except BadInput as error:
                    return str(error)
                self.worker = asyncio.create_task(self._work())
        return ""

    async def call(
        self, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...], client: str
    ) -> list[Any]:
        """Answer one caller's rows, computed together with whatever else is waiting."""
        request = Request(method, columns, extra, client, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        self.arrived.set()
        return await request.answer

    async def progress(self) -> int:
        """A number that grows while the model works."""
        return self.ticks

    async def usage(self, client: str) -> dict[str, int]:
        """Calls (rows) and tokens of one client, wherever its copies called from."""
        return dict(self.usage_of.get(client, _no_usage()))

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
        first, batch, rows = self.queue[0], [], 0
        rest: deque[Request] = deque()
        for request in self.queue:
            same = (request.method, request.extra) == (first.method, first.extra)
            if same and (not batch or rows + len(request.columns[0]) <= BATCH_ROWS):
                batch.append(request)
                rows += len(request.columns[0])
            else:
                rest.append(request)
        self.queue = rest
        return batch

    async def _run(self, batch: list[Request]) -> None:
        """Run one batch; an exception goes to every caller in it."""
        columns = [
            sum((list(request.columns[c]) for request in batch), []) for c in range(len(batch[0].columns))
        ]
        method = getattr(self.engine, batch[0].method)
        # The second argument of `generate` is the sampling, shared by the batch.
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
            part = results[at : at + len(request.columns[0])]
            at += len(part)
            self._count(request.client, part)
            request.answer.set_result(part)

    def _count(self, client: str, results: Sequence[Any]) -> None:
        usage = self.usage_of.setdefault(client, _no_usage())
        usage["calls"] += len(results)
        for result in results:
            usage["prompt_tokens"] += getattr(result, "prompt_tokens", 0)
            usage["completion_tokens"] += getattr(result, "completion_tokens", 0)


def _no_usage() -> dict[str, int]:
    return {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}


def build(model: Model, progress: Callable[[], None]) -> Any:
    """The engine behind an actor, by the model's `engine`."""
    if model.engine == "local":
        from ray_jobs.engine.local import LocalModel

        return LocalModel(model, progress)
    from synth.errors import BadInput

    raise BadInput(f"model {model.name!r}: the engine {model.engine!r} is not available here")


class Client:
    """The calls of one role, from the driver or any Ray task (it travels by pickling).

    Each call blocks until all its rows are answered. Raises EngineDied when the actor is gone or stalled.
    """

    def __init__(self, handle: Any, model: Model, label: str) -> None:
        self.handle, self.model, self.label = handle, model, label

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One sampled text per prompt and seed."""
        return self._call("generate", (list(prompts), [int(seed) for seed in seeds]), (sampling,))

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """Probabilities over each prompt's own continuations."""
        return self._call("score", (list(prompts), [tuple(texts) for texts in continuations]))

    def score_tokens(self, conversations: Sequence[list[Message]]) -> list[TokenScores | Failure]:
        """Verdicts per token of each conversation's last assistant turn."""
        return self._call("score_tokens", (list(conversations),))

    def embed(self, texts: Sequence[Prompt]) -> list[np.ndarray | Failure]:
        """One float32 vector per text."""
        return self._call("embed", (list(texts),))

    @property
    def usage(self) -> dict[str, int]:
        """calls (rows), prompt_tokens and completion_tokens of this role so far, from all processes."""
        return wait(self.handle, self.handle.usage.remote(self.label), self.model)

    def _call(self, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...] = ()) -> list[Any]:
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"{method}: lists of different lengths, {[len(column) for column in columns]}")
        if not columns[0]:
            return []
        return wait(self.handle, self.handle.call.remote(method, columns, extra, self.label), self.model)


def wait(handle: Any, answer: Any, model: Model) -> Any:
    """The answer of an actor, or EngineDied when it is dead or has made no step for `stall_s` seconds."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    from ray_jobs.engine.calls import EngineDied

    stall = float(model.option("stall_s", 600))
    last_ticks, last_change = -1, time.monotonic()
    while True:
        try:
            return ray.get(answer, timeout=min(30.0, stall))
        except GetTimeoutError:
            pass
        except RayActorError as error:
            raise EngineDied(f"the process of model {model.name!r} died: {_first_line(error)}") from error
        except RayTaskError as error:
            raise error.cause from error
        try:
            ticks = ray.get(handle.progress.remote(), timeout=stall)
        except (GetTimeoutError, RayActorError) as error:
            raise EngineDied(f"the process of model {model.name!r} no longer answers") from error
        if ticks != last_ticks:
            last_ticks, last_change = ticks, time.monotonic()
        elif time.monotonic() - last_change > stall:
            raise EngineDied(f"model {model.name!r} made no step for {stall:.0f} s")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
