"""The openai engine: any endpoint that speaks the OpenAI protocol (chat/completions, completions,
embeddings).

Messages go to chat/completions, a text to completions (base models). `score` asks for one token and its top
log-probabilities: a continuation gets the probability of the tokens that begin it (a token that begins
several is split between them), one that none of them begins at most half of the smallest probability shown.
That is an approximation, and marked so; a row where no token fits any continuation fails. Thinking text that
an endpoint keeps apart comes back as a <think> block in front of the answer.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from ray_jobs.engine.calls import Completion, Failure, Model, Prompt, Sampling, Scores, Vector
from ray_jobs.engine.endpoint import Endpoint, RowFailed

TOP_LOGPROBS = 20  # the most that the protocol allows in a chat
TEXTS_PER_CALL = 64


class OpenAIModel:
    """A model behind an endpoint; other uses of the same one share its pace. Options: see Endpoint; `top_k`
    (False): send Sampling.top_k, which is no part of the protocol but known to vLLM and others."""

    def __init__(
        self, model: Model, progress: Callable[[], None] = lambda: None, shared: "OpenAIModel | None" = None
    ) -> None:
        self.model, self.progress = model, progress
        self.endpoint: Endpoint = shared.endpoint if shared else Endpoint(model)

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One sampled text per prompt and seed."""
        return await self._all(
            self._generate(p, sampling, seed) for p, seed in zip(prompts, seeds, strict=True)
        )

    async def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """Approximate probabilities over each prompt's continuations."""
        return await self._all(self._score(p, texts) for p, texts in zip(prompts, continuations, strict=True))

    async def embed(self, texts: Sequence[Prompt]) -> list[Vector | Failure]:
        """One vector per text; messages are read as their contents, line by line."""
        plain = [t if isinstance(t, str) else "\n".join(turn["content"] for turn in t) for t in texts]
        parts = [plain[at : at + TEXTS_PER_CALL] for at in range(0, len(plain), TEXTS_PER_CALL)]
        answers = await self._all(self._embed(part) for part in parts)
        return [answer for part in answers for answer in part]

    async def score_tokens(self, conversations: Sequence[Any]) -> list[Any]:
        """The protocol has no verdict per token."""
        raise TypeError(f"model {self.model.name!r} is behind an endpoint: it cannot score tokens")

    async def _all(self, rows: Any) -> list[Any]:
        """Every row's answer, in order. What ends the whole call (a refused key …) cancels the rest."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._row(row)) for row in rows]
        except BaseExceptionGroup as ended:
            raise ended.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _row(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except RowFailed as failed:
            return failed.failure
        finally:
            self.progress()

    async def _post(self, prompt: Prompt, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer to a prompt, and its first choice."""
        body = {"model": self.model.name, **body}
        if isinstance(prompt, str):
            answer = await self.endpoint.post("completions", {**body, "prompt": prompt})
        elif self.model.kind == "base":
            raise RowFailed("a model without a chat template was given messages instead of a text")
        else:
            answer = await self.endpoint.post("chat/completions", {**body, "messages": prompt})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise RowFailed("the endpoint's answer has no choices", self.endpoint.clean(str(answer)))
        return answer, choices[0]

    async def _generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        body: dict[str, Any] = {
            "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "seed": seed,
        }  # fmt: skip
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.top_k and self.model.option("top_k", False):
            body["top_k"] = sampling.top_k
        answer, choice = await self._post(prompt, body)
        text, finish = _text(choice), choice.get("finish_reason") or "stop"
        if text is None:
            raise RowFailed("the endpoint's answer holds no text", self.endpoint.clean(str(answer)))
        if finish == "content_filter":
            raise RowFailed("the endpoint's content filter ended the text", self.endpoint.clean(text))
        read, written = _usage(answer)
        return Completion(text, "length" if finish == "length" else "stop", read, written)

    async def _score(self, prompt: Prompt, continuations: tuple[str, ...]) -> Scores:
        count = int(self.model.option("top_logprobs", TOP_LOGPROBS))
        chat = {"logprobs": True, "top_logprobs": count}
        body = {
            "max_tokens": 1,
            "temperature": 0.0,
            **({"logprobs": count} if isinstance(prompt, str) else chat),
        }
        answer, choice = await self._post(prompt, body)
        shown = _top_tokens(choice)
        probabilities = spread(shown, continuations)
        if probabilities is None:
            raise RowFailed(
                "no continuation is among the most likely tokens", self.endpoint.clean(str(shown))
            )
        return Scores(probabilities, True, _usage(answer)[0])

    async def _embed(self, texts: list[str]) -> list[Vector | Failure]:
        """One call for all texts; if that is refused, each alone, so that one bad row costs only itself."""
        body = {"model": self.model.name, "input": texts, "encoding_format": "float"}
        try:
            answer = await self.endpoint.post("embeddings", body)
            vectors = [np.array(row["embedding"], np.float32) for row in sorted(answer["data"], key=_index)]
            if len(vectors) != len(texts):
                raise RowFailed(f"the endpoint answered {len(vectors)} vectors for {len(texts)} texts")
        except (KeyError, TypeError, ValueError) as error:
            return [Failure(f"the endpoint's vectors are unreadable ({error})")] * len(texts)
        except RowFailed as failed:
            if len(texts) == 1:
                return [failed.failure]
            return [answer for text in texts for answer in await self._embed([text])]
        finally:
            self.progress()
        read, size = _usage(answer)[0], sum(map(len, texts)) or 1
        return [Vector(v, round(read * len(text) / size)) for v, text in zip(vectors, texts, strict=True)]


def spread(shown: dict[str, float], continuations: Sequence[str]) -> tuple[float, ...] | None:
    """Probabilities over the continuations from those of single tokens, summing to 1; None where nothing
    fits.

    A token fits a continuation that begins with it, or that it begins with (white space in front aside).
    """
    mass = [0.0] * len(continuations)
    for token, probability in shown.items():
        word = token.lstrip()
        fitting = [
            i for i, text in enumerate(continuations)
            if word and (text.lstrip().startswith(word) or word.startswith(text.strip()))
        ]  # fmt: skip
        for i in fitting:
            mass[i] += probability / len(fitting)
    if not any(mass):
        return None
    unseen = min(min(shown.values()), max(0.0, 1.0 - sum(shown.values()))) / 2
    mass = [value or unseen for value in mass]
    return tuple(value / sum(mass) for value in mass)


def _top_tokens(choice: dict[str, Any]) -> dict[str, float]:
    """Token -> probability at the first position, from either shape of answer; empty when there is none."""
    logs = choice.get("logprobs") or {}
    if logs.get("content"):
        entries = [
            (entry["token"], entry["logprob"]) for entry in logs["content"][0].get("top_logprobs") or []
        ]
    else:
        entries = list((logs.get("top_logprobs") or [{}])[0].items())
    found: dict[str, float] = {}
    for token, log in entries:
        found[token] = found.get(token, 0.0) + math.exp(min(0.0, log))
    return found


def _text(choice: dict[str, Any]) -> str | None:
    """A choice's text, its thinking in front; None where it holds neither."""
    message = choice.get("message")
    if not isinstance(message, dict):
        text = choice.get("text")
        return text if isinstance(text, str) else None
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    if isinstance(thinking, str) and thinking:
        return f"<think>{thinking}</think>\n{content or ''}"
    return content if isinstance(content, str) else None


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    usage = answer.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _index(row: dict[str, Any]) -> int:
    return int(row["index"])
