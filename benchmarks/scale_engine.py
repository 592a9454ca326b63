"""A scripted engine for benchmarks/scale.py: every role answers from a hash of what it is asked, after a fixed time.

It stands where `ray_jobs.engine.Engines` stands, in the driver and in Ray's tasks. It knows no policy: it writes common
words in a random order, votes by a hash of the question, translates into other common words of Spanish, and embeds by
one of 4,096 fixed vectors. No real model is this fast; what remains is ours.
"""

import time
import zlib
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from ray_jobs.engine.calls import Completion, Scores

DIMENSIONS = 64


@cache
def words(language: str, count: int = 4000) -> list[str]:
    from wordfreq import top_n_list

    return [word for word in top_n_list(language, 2 * count) if len(word) > 3 and word.isalpha()][:count]


@cache
def vectors() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(4096, DIMENSIONS)).astype(np.float32)


class Scripted:
    """The four calls of one role. `seconds` is how long one row takes; rows of a call take their sum."""

    def __init__(self, model: Any, seconds: float) -> None:
        self.model, self.seconds = model, seconds
        self.usage: Counter[str] = Counter()

    def generate(self, prompts: Any, sampling: Any, seeds: Any) -> list[Any]:
        self._take(len(prompts))
        foreign = self.model.name == "translator"
        return [self._written(seed, "es" if foreign else "en") for seed in seeds]

    def score(self, prompts: Any, continuations: Any) -> list[Any]:
        self._take(len(prompts))
        found = []
        for prompt, labels in zip(prompts, continuations, strict=True):
            at = zlib.crc32(text_of(prompt).encode()) % len(labels)
            rest = 0.1 / max(1, len(labels) - 1)
            found.append(Scores(tuple(0.9 if i == at else rest for i in range(len(labels))), False, 10))
        return found

    def embed(self, texts: Any) -> list[Any]:
        self._take(len(texts))
        return [vectors()[zlib.crc32(text.encode()) % 4096] for text in texts]

    def _written(self, seed: int, language: str) -> Completion:
        known = words(language)
        picked = [known[(seed >> (12 * i)) % len(known)] for i in range(5)]
        more = zlib.crc32(str(seed).encode())
        picked += [known[(more >> shift) % len(known)] for shift in (0, 5, 11, 17)]
        return Completion(" ".join(picked) + ".", "stop", 10, 9)

    def _take(self, rows: int) -> None:
        self.usage.update(calls=rows, prompt_tokens=10 * rows, completion_tokens=9 * rows)
        time.sleep(self.seconds * rows)


def text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


class ScriptedEngines:
    """Every role scripted. `seconds` per row of a call."""

    seconds = 0.0

    def __init__(self, roles: Any, **_told: Any) -> None:
        self.roles, self.clients, self.per_row = dict(roles), dict[str, Scripted](), self.seconds

    def get(self, role: str) -> Scripted:
        return self.clients.setdefault(role, Scripted(self.roles[role], self.per_row))

    def open(self, *roles: str) -> None:
        """Nothing is loaded."""

    def take_usage(self) -> dict[str, dict[str, int]]:
        used = {role: dict(client.usage) for role, client in self.clients.items()}
        for client in self.clients.values():
            client.usage.clear()
        return used

    def shutdown(self, keep: Any = ()) -> None:
        """Nothing is held."""


def script(seconds: float) -> None:
    """From here on, steps of this process and of its Ray tasks ask scripted engines."""
    import ray_jobs.engine

    ScriptedEngines.seconds = seconds
    ray_jobs.engine.Engines = ScriptedEngines  # type: ignore[misc, assignment]
    ray_jobs.engine.fingerprint = lambda model: model.name
    ray_jobs.engine.actor_name = lambda model: model.name
