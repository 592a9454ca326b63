"""The OpenAI chat format through the gate: chunks of an upstream answer in, what may pass out.

Thinking text and answer are judged apart, each by itself after the prompt, as the guard was trained. A stopped choice
ends with `finish_reason: "content_filter"` and a field `guardmill` that says why. What could carry text past the guard
is refused: tool calls, audio, log-probabilities, parts of messages that are not text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ray_jobs.serve.gate import Gate
from ray_jobs.serve.session import Message, Session
from synth.errors import BadInput

THINKING = ("reasoning_content", "reasoning")
TEXTS = (*THINKING, "content", "refusal")
REFUSED = ("tools", "functions", "logprobs", "top_logprobs", "audio", "modalities", "prediction")
UNMODERATED = ("tool_calls", "function_call", "audio")
ABOUT = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage")
Chunk = dict[str, Any]


def conversation(body: Any) -> list[Message]:
    """The messages of a chat request as text. BadInput for a request that could not be moderated whole."""
    if not isinstance(body, dict):
        raise BadInput("the request is no JSON object")
    given = [name for name in REFUSED if body.get(name)]
    if given:
        raise BadInput(f"{given[0]} cannot be used through the guard, which moderates text alone")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadInput("messages must be a list of at least one message")
    return [_message(message, number) for number, message in enumerate(messages)]


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise BadInput(f"message {number} is no JSON object")
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        if not all(isinstance(text, str) for text in texts):
            raise BadInput(f"message {number}: a part is not text, and the guard moderates text alone")
        content = "\n".join(map(str, texts))
    role = message.get("role")
    return {"role": "system" if role == "developer" else str(role), "content": content}  # type: ignore[dict-item]


class Choice:
    """One choice of an answer: its texts are joined for the guard and told apart again for the client."""

    def __init__(self, session: Session) -> None:
        self.gate = Gate(session)
        self.finished = False
        self._spans: list[tuple[int, str]] = []  # ends in the guard's text, and the field each span came in
        self._thinking: bool | None = None

    async def delta(self, delta: Chunk, finish: str | None) -> Chunk | None:
        """The choice's part of the chunk to send, None for none. Text comes out by the field it came in."""
        other = next((name for name in UNMODERATED if delta.get(name)), None)
        if other:
            self.gate.stopped = {
                "side": "response",
                "refused": f"{other} is not moderated, so it does not pass",
            }
            return self._ended({})
        out: Chunk = {"role": delta["role"]} if delta.get("role") else {}
        for field in TEXTS:
            if isinstance(delta.get(field), str) and delta[field] and not self.gate.stopped:
                self._add(out, await self._push(field, delta[field]))
        if finish and not self.gate.stopped:
            self._add(out, self._fields(await self.gate.end()))
        if self.gate.stopped:
            return self._ended(out)
        self.finished = bool(finish)
        return {"delta": out, "finish_reason": finish} if out or finish else None

    def _ended(self, out: Chunk) -> Chunk:
        self.finished = True
        why = {**(self.gate.stopped or {}), "part": "thinking" if self._thinking else "answer"}
        return {"delta": out, "finish_reason": "content_filter", "guardmill": why}

    async def _push(self, field: str, text: str) -> Chunk:
        out: Chunk = {}
        thinking = field in THINKING
        if self._thinking not in (None, thinking):
            self._add(out, self._fields(await self.gate.end()))
            if self.gate.stopped:
                return out
            self.gate, self._spans = Gate(self.gate.session.again()), []
        self._thinking = thinking
        self._add(out, await self._through(field, text))
        return out

    async def _through(self, field: str, text: str) -> Chunk:
        released = await self.gate.push(text)
        self._spans.append((len(self.gate.session.text.text), field))
        return self._fields(released)

    def _fields(self, released: str) -> Chunk:
        """The released text by field."""
        end = self.gate.passed
        start, begin = end - len(released), 0
        out: Chunk = {}
        for stop, field in self._spans:
            a, b = max(begin, start), min(stop, end)
            if a < b:
                out[field] = out.get(field, "") + released[a - start : b - start]
            begin = stop
        self._spans = [span for span in self._spans if span[0] > end]
        return out

    @staticmethod
    def _add(out: Chunk, more: Chunk) -> None:
        for field, text in more.items():
            out[field] = out.get(field, "") + text


class Answer:
    """All choices of one answer. The first session is the one that judged the prompt; `another` opens more."""

    def __init__(self, session: Session, another: Callable[[], Awaitable[Session]], count: int) -> None:
        self.choices = {0: Choice(session)}
        self.another, self.count = another, count

    async def chunk(self, chunk: Chunk, field: str = "delta") -> Chunk | None:
        """The chunk to send in the place of an upstream one (`field`: "message" for an answer in one piece)."""
        about = {name: chunk[name] for name in ABOUT if name in chunk}
        out = []
        for choice in chunk.get("choices") or ():
            number = choice.get("index", 0)
            if number not in self.choices:
                self.choices[number] = Choice(await self.another())
            one = self.choices[number]
            if not one.finished:
                told = await one.delta(choice.get(field) or {}, choice.get("finish_reason"))
                if told is not None:
                    out.append({"index": number, field: told.pop("delta"), **told})
        return about | {"choices": out} if out or not chunk.get("choices") else None

    @property
    def over(self) -> bool:
        """Whether every choice has ended."""
        return len(self.choices) >= self.count and all(choice.finished for choice in self.choices.values())

    @property
    def stops(self) -> list[Chunk]:
        return [choice.gate.stopped for choice in self.choices.values() if choice.gate.stopped]

    async def cut_off(self) -> AsyncIterator[Chunk]:
        """What is left to pass where the upstream ended without ending its choices."""
        for number, choice in self.choices.items():
            if not choice.finished:
                told = await choice.delta({}, "error")
                if told is not None:
                    yield {"object": "chat.completion.chunk", "choices": [{"index": number, **told}]}
