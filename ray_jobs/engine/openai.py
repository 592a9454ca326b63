"""The openai engine: any endpoint that speaks the OpenAI protocol (chat/completions, completions,
embeddings).

Messages go to chat/completions, a text to completions (base models). `score` asks for one token and its top
log-probabilities: a continuation gets the probability of the tokens that begin it (a token that begins
several is split between them), one that none of them begins at most half of the smallest probability shown.
What all continuations begin with ("Safety: ") is left to the model to write, and the place behind it is read;
a model that begins otherwise is read at its first token, as if they had no common beginning. That is an
approximation, and marked so; a row where no token fits any continuation fails. Thinking text that an endpoint
keeps apart comes back as a <think> block in front of the answer.

A choice or a regular expression travels as a JSON schema of one field, which is what the protocol knows; the
answer is taken out of it and checked. An endpoint that answers in the name of another model ends the run: see
`served_as`.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ray_jobs.engine.calls import Completion, Failure, Model, Prompt, RowFailed, Sampling, Scores, Vector
from ray_jobs.engine.endpoint import Endpoint
from ray_jobs.engine.rows import RowEngine, gather, held
from ray_jobs.engine.tokens import plain, shared_start
from synth.errors import BadInput

TOP_LOGPROBS = 20  # the most that the protocol allows in a chat
TEXTS_PER_CALL = 64


class OpenAIModel(RowEngine):
    """A model behind an endpoint; other uses of the same one share its pace. Options: see Endpoint; `top_k`
    (False): send Sampling.top_k, which is no part of the protocol but known to vLLM and others; `served_as`: the
    name under which the endpoint answers, where it is not the model's."""

    def __init__(
        self, model: Model, progress: Callable[[], None] = lambda: None, shared: "OpenAIModel | None" = None
    ) -> None:
        self.model, self.progress = model, progress
        self.endpoint: Endpoint = shared.endpoint if shared else Endpoint(model)

    async def embed(self, texts: Sequence[Prompt]) -> list[Vector | Failure]:
        """One vector per text; messages are read as their contents, line by line."""
        read = [plain(text) for text in texts]
        parts = [read[at : at + TEXTS_PER_CALL] for at in range(0, len(read), TEXTS_PER_CALL)]
        answers = await gather(self._embed(part) for part in parts)
        return [answer for part in answers for answer in part]

    async def score_tokens(self, conversations: Sequence[Any]) -> list[Any]:
        """The protocol has no verdict per token."""
        raise TypeError(f"model {self.model.name!r} is behind an endpoint: it cannot score tokens")

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
        self._check_name(answer.get("model"))
        return answer, choices[0]

    def _check_name(self, name: Any) -> None:
        """BadInput when the endpoint answers as another model. Dated and prefixed forms of one name are the same."""
        wanted = str(self.model.option("served_as", self.model.name))
        ours, theirs = (str(n).casefold().rpartition("/")[2] for n in (wanted, name or wanted))
        if not (ours.startswith(theirs) or theirs.startswith(ours)):
            raise BadInput(
                f"the endpoint answers as model {self.endpoint.clean(str(name))!r}, not as {wanted!r}; if that is the "
                "right one, say so with the option served_as"
            )

    async def generate_row(self, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        body: dict[str, Any] = {
            "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "seed": seed,
        }  # fmt: skip
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.top_k and self.model.option("top_k", False):
            body["top_k"] = sampling.top_k
        if schema := wanted_schema(sampling):
            named = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        answer, choice = await self._post(prompt, body)
        text, finish = _text(choice), choice.get("finish_reason") or "stop"
        if text is None:
            raise RowFailed("the endpoint's answer holds no text", self.endpoint.clean(str(answer)))
        if finish == "content_filter":
            raise RowFailed("the endpoint's content filter ended the text", self.endpoint.clean(text))
        read, written = _usage(answer)
        text = held(taken_out(text, sampling), sampling)
        return Completion(text, "length" if finish == "length" else "stop", read, written)

    async def score_row(self, prompt: Prompt, continuations: tuple[str, ...]) -> Scores:
        count = int(self.model.option("top_logprobs", TOP_LOGPROBS))
        start = shared_start(continuations)
        chat = {"logprobs": True, "top_logprobs": count}
        body = {
            "max_tokens": 1 + len(start),
            "temperature": 0.0,
            **({"logprobs": count} if isinstance(prompt, str) else chat),
        }
        answer, choice = await self._post(prompt, body)
        shown = shown_after(start, _positions(choice))
        probabilities = spread(shown, [text.removeprefix(start) for text in continuations])
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


def shown_after(start: str, positions: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """Token -> probability at the position behind `start`, if the text begins with it, else at the first one; empty
    when no position shows any. positions: the token that was written, and those that were likely."""
    written = ""
    for token, shown in positions:
        if written.strip() == start.strip():
            return shown
        written += token
        if not start.strip().startswith(written.strip()):
            break
    return positions[0][1] if positions else {}


def _positions(choice: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Every position's token and likely tokens with their probabilities, from either shape of answer."""
    logs = choice.get("logprobs") or {}
    if content := logs.get("content"):
        told = [
            (
                entry.get("token", ""),
                [(top["token"], top["logprob"]) for top in entry.get("top_logprobs") or []],
            )
            for entry in content
        ]
    else:
        tops = logs.get("top_logprobs") or []
        tokens = logs.get("tokens") or [""] * len(tops)
        told = [(token, list((top or {}).items())) for token, top in zip(tokens, tops, strict=False)]
    positions = []
    for token, entries in told:
        found: dict[str, float] = {}
        for shown, log in entries:
            found[shown] = found.get(shown, 0.0) + math.exp(min(0.0, log))
        positions.append((token, found))
    return positions


def wanted_schema(sampling: Sampling) -> dict[str, Any] | None:
    """The JSON schema that holds a text to its structure; None where none is asked for."""
    if sampling.schema:
        return json.loads(sampling.schema)
    if not sampling.choice and not sampling.regex:
        return None
    field: dict[str, Any] = {"type": "string"}
    field |= {"enum": list(sampling.choice)} if sampling.choice else {"pattern": f"^({sampling.regex})$"}
    return {
        "type": "object",
        "properties": {"answer": field},
        "required": ["answer"],
        "additionalProperties": False,
    }


def taken_out(text: str, sampling: Sampling) -> str:
    """The text itself of a choice or a match, out of the JSON in which it travels."""
    if not sampling.choice and not sampling.regex:
        return text
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError):
        return text


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
