"""Engines that answer row by row, each when it is ready: an endpoint, vLLM. Their list calls, made of single
rows.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar

from ray_jobs.engine.calls import Completion, Failure, Prompt, RowFailed, Sampling, Scores


class RowEngine(ABC):
    """`generate` and `score` over `generate_row` and `score_row`, which raise RowFailed; all rows run at once, the
    engine behind bounds them."""

    rows_per_call: ClassVar = {"generate": 1, "score": 1}
    progress: Callable[[], None]

    @abstractmethod
    async def generate_row(self, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        """One sampled text."""

    @abstractmethod
    async def score_row(self, prompt: Prompt, continuations: tuple[str, ...]) -> Scores:
        """Probabilities over the continuations."""

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One sampled text per prompt and seed."""
        rows = zip(prompts, seeds, strict=True)
        return await gather(self.answered(self.generate_row(prompt, sampling, seed)) for prompt, seed in rows)

    async def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """Probabilities over each prompt's continuations."""
        rows = zip(prompts, continuations, strict=True)
        return await gather(self.answered(self.score_row(prompt, texts)) for prompt, texts in rows)

    async def answered(self, row: Awaitable[Any]) -> Any:
        """A row's answer, or its Failure."""
        try:
            return await row
        except RowFailed as failed:
            return failed.failure
        finally:
            self.progress()


async def gather(rows: Iterable[Awaitable[Any]]) -> list[Any]:
    """Every row's answer, in order. What ends the whole call (a refused key …) cancels the rest."""

    async def one(row: Awaitable[Any]) -> Any:
        return await row

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(row)) for row in rows]
    except BaseExceptionGroup as ended:
        raise ended.exceptions[0] from None
    return [task.result() for task in tasks]


def held(text: str, sampling: Sampling) -> str:
    """The text itself when it keeps to the structure that was asked for; RowFailed otherwise."""
    if sampling.choice and text not in sampling.choice:
        raise RowFailed("the text is none of the stated choices", text)
    if sampling.regex and not re.fullmatch(sampling.regex, text, re.DOTALL):
        raise RowFailed("the text does not match the regular expression", text)
    if sampling.schema:
        try:
            json.loads(text)
        except ValueError:
            raise RowFailed("the text is not the JSON that was asked for", text) from None
    return text
