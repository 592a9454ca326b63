"""One named Ray actor per set of weights: loaded once, shared by all roles and tasks that use it.

Calls are plain and small for the caller; the actor gathers what arrives within some milliseconds (and all
that came while the last batch ran) into one batch per kind of call, so that the device stays full. The model
works in a thread of its own, so that the actor can always answer how far it is: a client that waits sees a
dead process at once and a stalled one after the option `stall_s` (600 s), and raises EngineDied. Nothing is
restarted or retried here: the step fails, and its next run resumes from its finished units.

What was asked and answered before comes from the request cache (requests.py), if the run has one; of the same
request made twice at once the second waits for the first. An engine that answers row by row gets its rows one
at a time (or `rows_per_call`), so that each is kept as soon as it is answered.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ray_jobs.engine import replicas
from ray_jobs.engine.calls import EngineDied, Failure, Model
from ray_jobs.engine.requests import METHODS, RequestCache
from ray_jobs.engine.rows import gather
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
        self.known: RequestCache | None = None
        self.asking: dict[str, asyncio.Future[Any]] = {}
        self.queue: deque[Request] = deque()
        self.arrived = asyncio.Event()
        self.ticks = 0
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.loading = asyncio.Lock()
        self.worker: asyncio.Task[None] | None = None

    async def load(self, model: Model, requests: tuple[str, int] | None = None) -> str:
        """Load the weights once. `requests`: the request cache's root and its limit in bytes. Returns "" or, when the
        model cannot be loaded, the reason in one sentence."""
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
            if self.known is None and requests and model.option("cache", True):
                self.known = await asyncio.to_thread(RequestCache, requests[0], model, requests[1])
        return ""

    async def call(
        self, model: Model, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...]
    ) -> list[Any]:
        """Answer one caller's rows: from the cache, or computed together with whatever else is waiting."""
        if model not in self.engines and (reason := await self.load(model)):
            raise BadInput(reason)
        rows = list(zip(*columns, strict=True))
        size = getattr(self.engines[model], "rows_per_call", {}).get(method, max(1, len(rows)))
        if self.known is None or method not in METHODS or not model.option("cache", True):
            parts = [rows[at : at + size] for at in range(0, len(rows), size)]
            found = await gather(self._answer(model, method, part, extra) for part in parts)
            return [answer for part in found for answer in part]
        cache = self.known
        keys = [cache.key(method, row, extra) for row in rows]
        known = dict(zip(keys, await gather(cache.get(key) for key in keys), strict=True))
        own: dict[str, tuple[Any, ...]] = {}
        for key, row in zip(keys, rows, strict=True):
            if known[key] is None and key not in self.asking:
                self.asking[key], own[key] = asyncio.get_running_loop().create_future(), row
        asked = {key: self.asking[key] for key, answer in known.items() if answer is None}
        todo = list(own.items())
        await gather(self._ask(cache, model, method, dict(todo[at : at + size]), extra)
                     for at in range(0, len(todo), size))  # fmt: skip
        return [known[key] or _paid_once(await asked[key], own.pop(key, None)) for key in keys]

    async def _ask(
        self,
        cache: RequestCache,
        model: Model,
        method: str,
        rows: dict[str, tuple[Any, ...]],
        extra: tuple[Any, ...],
    ) -> None:
        """Have rows answered, keep what was answered, and tell all who asked the same."""
        try:
            answers = await self._answer(model, method, list(rows.values()), extra)
            found = dict(zip(rows, answers, strict=True))
            await gather(cache.put(key, a) for key, a in found.items() if not isinstance(a, Failure))
            for key, answer in found.items():
                self.asking.pop(key).set_result(answer)
        finally:
            for key in rows:
                if (given_up := self.asking.pop(key, None)) is not None:
                    given_up.set_exception(
                        EngineDied("the same request, made by another caller, was given up")
                    )
                    given_up.exception()  # nobody may have waited

    async def _answer(
        self, model: Model, method: str, rows: Sequence[tuple[Any, ...]], extra: tuple[Any, ...]
    ) -> list[Any]:
        """The engine's answers to rows: at once where it bounds its own concurrency, else with the next batch."""
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        answer_now = getattr(self.engines[model], method)
        if inspect.iscoroutinefunction(answer_now):
            return await answer_now(columns[0], *extra, *columns[1:])
        request = Request(model, method, columns, extra, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        self.arrived.set()
        return await request.answer

    async def progress(self) -> int:
        """A number that grows while the model works."""
        return self.ticks

    async def close(self) -> None:
        """End what engines run beside this process."""
        for engine in {id(e): e for e in self.engines.values() if hasattr(e, "close")}.values():
            await engine.close()

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


def _paid_once(answer: Any, own: Any) -> Any:
    """The answer; to all but the first who asked for it, one that cost nothing."""
    return answer if own is not None or isinstance(answer, Failure) else replace(answer, cached=True)


def build(model: Model, progress: Callable[[], None], shared: Any = None) -> Any:
    """The engine behind an actor, by the model's `engine`; `shared` has the same weights loaded already."""
    if replicas.spread(model):
        return replicas.Replicas(model, progress, shared, start)
    if model.engine == "vllm":
        from ray_jobs.engine.vllm import VLLMModel

        return VLLMModel(model, progress, shared)
    if model.engine == "openai":
        from ray_jobs.engine.openai import OpenAIModel

        return OpenAIModel(model, progress, shared)
    from ray_jobs.engine.local import LocalModel

    return LocalModel(model, progress, shared)


def start(model: Model, **options: Any) -> Any:
    """A Ray actor for the model. Never restarted, its calls never retried."""
    import ray

    fixed = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 1000}
    return ray.remote(ModelActor).options(**fixed, num_gpus=gpus(model), **options).remote()


def gpus(model: Model) -> float:
    """GPUs the actor asks for: the option `gpus`, or a fifth of one for a local model where the cluster has any; an
    actor that routes to replicas needs none."""
    import ray

    if replicas.spread(model):
        return 0.0
    if model.engine == "vllm":
        return float(model.option("gpus", 1 if ray.cluster_resources().get("GPU", 0) > 0 else 0))
    available = ray.cluster_resources().get("GPU", 0) > 0
    return float(model.option("gpus", 0.2 if available and model.engine == "local" else 0))
