"""Guards that are no checkpoint of ours: a role of a recipe, or a model behind an endpoint, asked in this process.

`RECIPE:ROLE` is what the recipe binds to the role; `openai:MODEL` a model behind `OPENAI_BASE_URL`. They answer the
policy's moderation template, as voters do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_jobs.engine.calls import Failure, Model, Prompt, Sampling
from synth.errors import BadInput


def named(name: str) -> Model | None:
    """The model that a name with a colon stands for; None for a checkpoint's name. BadInput where nothing is bound."""
    first, colon, second = name.partition(":")
    if not colon or "/" in first or second.startswith("//") or Path(name).exists():
        return None
    if first == "openai":
        return Model("openai", second, "instruct")
    from ray_jobs.recipes import ALL

    if first not in ALL:
        raise BadInput(f"{name}: no recipe {first!r}; there are {', '.join(ALL)}, and openai:MODEL")
    roles = ALL[first]().roles
    if second not in roles:
        raise BadInput(f"{name}: the recipe binds no role {second!r}, only {', '.join(sorted(roles))}")
    return usable(name, roles[second])


def usable(name: str, model: Model) -> Model:
    """The model, if it can be asked from here."""
    if model.engine == "vllm":
        raise BadInput(
            f"{name} runs on vllm; serve {model.name} with `vllm serve` and evaluate openai:{model.name}"
        )
    if model.kind in ("embedder", "head", "reward", "base"):
        raise BadInput(
            f"{name} is bound to {model.name}, a model of kind {model.kind}, which answers no template"
        )
    if model.name.startswith("@"):
        table = model.name[1:].partition("/")[0]
        raise BadInput(f"{name} is bound to what a run makes; name its table instead: {table} with --root")
    return model


class Asked:
    """An endpoint's model with the calls of a local one: each waits for all of its rows."""

    def __init__(self, model: Model) -> None:
        from ray_jobs.engine.openai import OpenAIModel

        self.runner = asyncio.Runner()
        self.model = self.runner.run(self._made(OpenAIModel, model))

    async def _made(self, made: Any, model: Model) -> Any:
        return made(model)  # within the loop that its connections will live in

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Any | Failure]:
        return self.runner.run(self.model.score(prompts, continuations))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Any | Failure]:
        return self.runner.run(self.model.generate(prompts, sampling, seeds))

    def close(self) -> None:
        self.runner.run(self.model.endpoint.close())
        self.runner.close()
