"""One conversation under moderation while its last answer is being written.

The prompt is judged at the end of the user's turn, the answer token by token: `push` takes the next piece of text,
tokenizes it as the guard would have (train.text_stream), takes back what the piece changed, and judges the new tokens.
A token that is final stays; the last few may change with the next piece, and then their verdicts do too. After `end`
the verdicts are those of the whole text at once, however it was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.serve.batch import Judge
from synth.errors import BadInput
from train.data import chat_ids, special_id, text_ids
from train.stream_verdict import Debounce, Rule, flags
from train.text_stream import TextStream, encodable

FIELDS = ("risk_level", "risk_prob", "category", "category_prob")
ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]
Verdict = dict[str, Any]


@dataclass(frozen=True)
class Update:
    """Tokens from index `first` on are these (earlier ones stand); the first `final` of all will not change."""

    first: int
    final: int
    tokens: list[Verdict]


class Session:
    """A stream of `judge`; call `close` when done with it, whatever happened."""

    def __init__(self, judge: Judge, tokenizer: Any, rule: Rule, messages: Sequence[Message]) -> None:
        self.judge, self.tokenizer, self.rule = judge, tokenizer, rule
        self.messages = check(messages)
        self.text = TextStream(tokenizer)
        self.debounce = Debounce(rule.run)
        self.verdicts: list[Verdict] = []
        self.query: Verdict = {}
        self.state = judge.open()
        self._closed = False

    async def open(self) -> Verdict:
        """The verdict on the last user turn."""
        newline = text_ids(self.tokenizer, "\n")
        ids = chat_ids(self.tokenizer, self.messages)[: -len(newline)]
        result = await self.judge.judge(self.state, ids, "user")
        flagged = flags({name: values[-1:] for name, values in result.items()}, self._maps, self.rule)[0]
        self.query = {name: result[name][-1] for name in FIELDS} | {"flagged": flagged}
        head = [
            *newline,
            special_id(self.tokenizer, "<|im_start|>"),
            *text_ids(self.tokenizer, "assistant\n"),
        ]
        await self.judge.judge(self.state, head, "assistant")
        return self.query

    async def push(self, piece: str) -> Update:
        """Judges the next piece of the answer."""
        return await self._judged(self.text.push(piece))

    async def end(self) -> Update:
        """The answer is complete."""
        return await self._judged(self.text.end())

    def again(self) -> Session:
        """Begins another text in the place of the one before, after the same prompt."""
        self.state.roll_back(len(self.verdicts))
        self.text, self.debounce, self.verdicts = TextStream(self.tokenizer), Debounce(self.rule.run), []
        return self

    @property
    def onset(self) -> int | None:
        """The token from which the answer is flagged."""
        return self.debounce.onset

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.judge.close(self.state)

    @property
    def _maps(self) -> Any:
        return self.judge.guard.config.maps

    async def _judged(self, back: int) -> Update:
        """Forgets `back` tokens, judges the new ones."""
        self.state.roll_back(back)
        self.debounce.roll_back(back)
        first = len(self.verdicts) - back
        del self.verdicts[first:]
        new = self.text.ids[first:]
        if new:
            result = await self.judge.judge(self.state, new, "assistant")
            single = flags(result, self._maps, self.rule)
            self.debounce.push(single)
            places = self.text.offsets[first:]
            for i, violates in enumerate(single):
                start, end = places[i]
                place = {"token": first + i, "start": start, "end": end, "violates": violates}
                self.verdicts.append(place | {name: result[name][i] for name in FIELDS})
        return self._update(first)

    def _update(self, first: int) -> Update:
        """What changed: with the new tokens the last old one comes again where it lost its text to one of them."""
        while (
            0 < first < len(self.verdicts) and self.text.offsets[first - 1][1] > self.text.offsets[first][0]
        ):
            first -= 1
        pieces = self.text.pieces(first)
        onset = self.onset
        tokens = [
            verdict | {"text": piece, "flagged": onset is not None and verdict["token"] >= onset}
            for verdict, piece in zip(self.verdicts[first:], pieces, strict=True)
        ]
        return Update(first, self.text.final, tokens)


def check(messages: Any) -> list[dict[str, str]]:
    """The conversation up to the answer. BadInput unless it is messages of text that end with the user's."""
    if not isinstance(messages, list) or not messages:
        raise BadInput("messages must be a list of at least one message")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise BadInput(f"message {number}: its role is {role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise BadInput(f"message {number}: its content is not text")
    if messages[0]["role"] == "assistant":
        raise BadInput("a stream begins with the user's turn, not the assistant's")
    if messages[-1]["role"] != "user":
        raise BadInput("the last message must be the user's")
    return [{"role": message["role"], "content": encodable(message["content"])} for message in messages]
