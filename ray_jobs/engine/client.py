"""What a step holds in its hand: the calls of one role, from the driver or any Ray task."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_jobs.engine import head as heads
from ray_jobs.engine.calls import (
    Completion,
    EngineDied,
    Failure,
    Message,
    Model,
    Prompt,
    Sampling,
    Scores,
    TokenScores,
)
from ray_jobs.engine.tokens import plain

_COUNTING = threading.Lock()
COUNTED = ("calls", "cached", "prompt_tokens", "completion_tokens")
LOOK_EVERY = 30.0  # seconds between two looks at whether a model that has not answered still moves


class Client:
    """The calls of one role to the actor of its model (it travels by pickling).

    Each call blocks until all its rows are answered. Raises EngineDied when the actor is gone or stalled.
    `usage` counts calls (rows) and tokens of this object; rows from the request cache are `cached`, no calls.
    """

    def __init__(self, handle: Any, model: Model) -> None:
        self.handle, self.model = handle, model
        self.usage = dict.fromkeys(COUNTED, 0)

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
        answers = self._call("embed", (list(texts),))
        return [answer if isinstance(answer, Failure) else answer.values for answer in answers]

    def _call(self, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...] = ()) -> list[Any]:
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"{method}: lists of different lengths, {[len(column) for column in columns]}")
        if not columns[0]:
            return []
        answers = wait(self.handle, self.handle.call.remote(self.model, method, columns, extra), self.model)
        self._count(answers)
        return answers

    def take_usage(self) -> dict[str, int]:
        """What was counted since the last time it was taken."""
        with _COUNTING:
            taken, self.usage = self.usage, dict.fromkeys(self.usage, 0)
        return taken

    def _count(self, answers: Sequence[Any]) -> None:
        with _COUNTING:
            paid = [answer for answer in answers if not getattr(answer, "cached", False)]
            self.usage["calls"] += len(paid)
            self.usage["cached"] += len(answers) - len(paid)
            for name in ("prompt_tokens", "completion_tokens"):
                self.usage[name] += sum(getattr(answer, name, 0) for answer in paid)


class HeadClient(Client):
    """A fitted head: the vectors come from its base model's actor (none for character n-grams), the linear
    part (some MB of numpy) runs with the caller. It scores; other calls raise TypeError."""

    def __init__(self, head: heads.Head, base: Client | None, model: Model) -> None:
        super().__init__(None, model)
        self.head, self.base = head, base

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """The head's probabilities of the labels named as continuations. BadInput for a label it does not
        have."""
        if len(prompts) != len(continuations):
            raise ValueError(
                f"score: {len(prompts)} prompts, but {len(continuations)} lists of continuations"
            )
        if not prompts:
            return []
        columns = [self.head.columns(labels) for labels in continuations]
        vectors, tokens = self._vectors(prompts)
        good = [i for i, vector in enumerate(vectors) if not isinstance(vector, Failure)]
        results: list[Scores | Failure] = [Failure("not scored")] * len(prompts)
        answers = self.head.predict(np.stack([vectors[i] for i in good])) if good else {}
        for row, i in enumerate(good):
            found = tuple(float(answers[name][row, at]) for name, at in columns[i])
            results[i] = Scores(found, False, tokens[i])
        for i, vector in enumerate(vectors):
            if isinstance(vector, Failure):
                results[i] = vector
        self._count(results)
        return results

    def _vectors(self, prompts: Sequence[Prompt]) -> tuple[list[Any], list[int]]:
        """Vectors (or failures), and the tokens read for each."""
        if self.base is not None:
            answers = self.base._call("embed", (list(prompts),))
            tokens = [getattr(answer, "prompt_tokens", 0) for answer in answers]
            return [a if isinstance(a, Failure) else a.values for a in answers], tokens
        return list(heads.ngram_vectors([plain(prompt) for prompt in prompts])), [0] * len(prompts)

    def _call(self, method: str, columns: tuple[list[Any], ...], extra: tuple[Any, ...] = ()) -> list[Any]:
        raise TypeError(f"model {self.model.name!r} is a fitted head: it scores, it cannot {method}")


def wait(handle: Any, answer: Any, model: Model, loading: bool = False) -> Any:
    """The answer of an actor, or EngineDied when it is dead or has made no step for `stall_s` seconds (600).

    While it loads, which makes no steps and may wait for a node with GPUs, `load_s` (600; on vLLM 3600) counts. What
    the model itself raised (BadInput, TypeError …) is raised here.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError

    stall = float(model.option("stall_s", 600))
    if loading:
        stall = float(model.option("load_s", 3600 if model.engine == "vllm" else 600))
    last_ticks, last_change = -1, time.monotonic()
    while True:
        try:
            return ray.get(answer, timeout=min(LOOK_EVERY, stall))
        except GetTimeoutError:
            pass
        except gone() as error:
            raise EngineDied(f"the process of model {model.name!r} died: {_first_line(error)}") from error
        except RayTaskError as error:
            raise error.cause from error
        try:
            ticks = ray.get(handle.progress.remote(), timeout=stall)
        except (GetTimeoutError, *gone()) as error:
            raise EngineDied(f"the process of model {model.name!r} no longer answers") from error
        if ticks != last_ticks:
            last_ticks, last_change = ticks, time.monotonic()
        elif time.monotonic() - last_change > stall:
            what = "is not loaded after" if loading else "made no step for"
            raise EngineDied(f"model {model.name!r} {what} {stall:.0f} s")


def gone() -> tuple[type[Exception], type[Exception]]:
    """What Ray raises for an actor whose process ended: one that was killed for its memory has a class of its own."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
