"""Several copies of one model: rows spread over replica actors, more of them started while rows wait.

The model's named actor routes and computes nothing. It starts `min_replicas` at once and one more, up to
`max_replicas`, whenever every replica is full and rows still wait; a replica asks Ray for the model's GPUs,
so a cluster that scales rents a node for it. One that had nothing to do for `idle_s` seconds is ended; the
first `min_replicas` stay. Rows travel in calls of `CHUNK` rows to the replica with the fewest; rows that
follow one another often share a prompt, so its prefix is cached where they go. A replica that dies ends the
call with EngineDied: the step fails and resumes.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ray_jobs.engine.calls import EngineDied, Model
from ray_jobs.engine.client import gone
from synth.errors import BadInput

CHUNK = 32  # 16 calls of 32 rows kept a vLLM engine busier than one of 512
FULL = 8  # calls under way in one replica
LOOK_EVERY = 30.0  # seconds between two looks at whether a replica still moves


@dataclass(eq=False)
class Replica:
    """One copy: its actor, how many calls are under way in it, its last sign of life, and when the last call ended."""

    handle: Any
    busy: int = 0
    ticks: int = -1
    since: float = 0.0


class Replicas:
    """The engine of a routing actor. `start(model)` makes the actor of one replica."""

    rows_per_call: ClassVar = dict.fromkeys(("generate", "score", "score_tokens", "embed"), CHUNK)

    def __init__(
        self,
        model: Model,
        progress: Callable[[], None],
        shared: "Replicas | None",
        start: Callable[[Model], Any],
    ) -> None:
        self.model, self.progress = model, progress
        self.pool: Pool = shared.pool if shared else Pool(single(model), start, int(model.option("min_replicas", 1)),
                                                    int(model.option("max_replicas", 1)),
                                                    float(model.option("idle_s", 120)))  # fmt: skip

    async def generate(self, prompts: Sequence[Any], sampling: Any, seeds: Sequence[int]) -> list[Any]:
        return await self._call("generate", (list(prompts), list(seeds)), (sampling,))

    async def score(self, prompts: Sequence[Any], continuations: Sequence[Any]) -> list[Any]:
        return await self._call("score", (list(prompts), list(continuations)))

    async def score_tokens(self, conversations: Sequence[Any]) -> list[Any]:
        return await self._call("score_tokens", (list(conversations),))

    async def embed(self, texts: Sequence[Any]) -> list[Any]:
        return await self._call("embed", (list(texts),))

    async def _call(
        self, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...] = ()
    ) -> list[Any]:
        from ray.exceptions import RayTaskError

        replica = await self.pool.enter()
        try:
            answer = asyncio.ensure_future(
                replica.handle.call.remote(single(self.model), method, columns, extra)
            )
            while not (await asyncio.wait({answer}, timeout=LOOK_EVERY))[0]:
                if (ticks := await replica.handle.progress.remote()) != replica.ticks:
                    replica.ticks = ticks
                    self.progress()
            return answer.result()
        except RayTaskError as error:
            raise error.cause from error
        except gone() as error:
            raise EngineDied(f"a replica of model {self.model.name!r} died") from error
        finally:
            self.pool.leave(replica)
            self.progress()

    async def close(self) -> None:
        """End all replicas."""
        await self.pool.close()


class Pool:
    """The replicas of one model, and who gets the next free place."""

    def __init__(
        self, model: Model, start: Callable[[Model], Any], least: int, most: int, idle_s: float
    ) -> None:
        import ray

        self.model, self.start, self.least, self.most, self.idle_s = model, start, least, most, idle_s
        self.starting, self.failed = 0, ""
        self.changed = asyncio.Condition()
        self.tasks: set[asyncio.Task[None]] = set()
        self.replicas = [Replica(start(model), since=time.monotonic()) for _ in range(max(1, least))]
        for reason in ray.get([replica.handle.load.remote(model) for replica in self.replicas]):
            if reason:
                raise BadInput(reason)

    async def enter(self) -> Replica:
        """A place in the replica with the fewest calls; waits for one, and asks for one more replica meanwhile."""
        async with self.changed:
            while True:
                if self.failed:
                    raise BadInput(self.failed)
                best = min(self.replicas, key=lambda replica: replica.busy)
                if best.busy < FULL:
                    best.busy += 1
                    return best
                if len(self.replicas) + self.starting < self.most:
                    self.starting += 1
                    self._spawn(self._grow())
                await self.changed.wait()

    def leave(self, replica: Replica) -> None:
        """Give the place back."""
        replica.busy -= 1
        replica.since = time.monotonic()
        self._spawn(self._tell())

    async def _grow(self) -> None:
        """One more replica, for as long as there is work for it."""
        import ray
        from ray.exceptions import RayError

        try:
            handle = self.start(self.model)
            self.failed = await handle.load.remote(self.model)
        except RayError as error:
            self.failed = f"a further replica of model {self.model.name!r} ended while it was loaded: {error}"
        self.starting -= 1
        await self._tell()
        if self.failed:
            return
        replica = Replica(handle, since=time.monotonic())
        self.replicas.append(replica)
        await self._tell()
        while replica.busy or time.monotonic() - replica.since < self.idle_s:
            await asyncio.sleep(self.idle_s / 4)
        self.replicas.remove(replica)
        await replica.handle.close.remote()
        ray.kill(replica.handle)

    async def _tell(self) -> None:
        """Wake those who wait for a place."""
        async with self.changed:
            self.changed.notify_all()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """End every replica, and first what runs beside it."""
        import ray

        closing = [asyncio.ensure_future(replica.handle.close.remote()) for replica in self.replicas]
        await asyncio.gather(*closing, return_exceptions=True)
        for replica in self.replicas:
            ray.kill(replica.handle)


def single(model: Model) -> Model:
    """The model as one replica runs it."""
    kept = tuple(option for option in model.options if option[0] not in ("min_replicas", "max_replicas"))
    return replace(model, options=kept)


def spread(model: Model) -> bool:
    """Whether the model asks for more than one replica."""
    return model.engine != "openai" and int(model.option("max_replicas", 1)) > 1
