"""What goes into a model and what comes out: the same for every engine, so that no job knows which one
answers.

Four calls, all list in and list out, of equal length, with a `Failure` in the place of a row that failed:

- `generate` samples one text per prompt; k samples are k rows with k seeds;
- `score` gives probabilities over stated continuations, without decoding or parsing;
- `score_tokens` gives a verdict per token of a conversation (streaming guards);
- `embed` gives one vector per text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Prompt = str | list[Message]  # a text is continued as it is; messages go through the model's chat template

ENGINES = ("local", "vllm", "openai")
KINDS = ("instruct", "base", "reasoning", "embedder", "head", "gen_guard", "stream_guard", "reward")


@dataclass(frozen=True)
class Model:
    """A model that plays a role: which engine runs it, what it is called, what kind of model it is.

    `options` say how it runs (device, dtype, threads, slots, concurrency, url …) and are no part of its
    identity, with one exception: ("layer", n), the hidden layer that `embed` reads from a causal model.
    """

    engine: str
    name: str
    kind: str
    revision: str = ""
    options: tuple[tuple[str, str | int | float | bool], ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"model {self.name!r}: engine {self.engine!r} is none of {', '.join(ENGINES)}")
        if self.kind not in KINDS:
            raise ValueError(f"model {self.name!r}: kind {self.kind!r} is none of {', '.join(KINDS)}")

    def option(self, name: str, default: str | int | float | bool) -> str | int | float | bool:
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0 sets no limit; a stop string ends a text, cut off.

    At most one of these holds a text to a structure: `choice` (one of these texts), `regex` (all of it matches),
    `schema` (a JSON schema, as text). A text that came out otherwise is a failed row.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 50
    stop: tuple[str, ...] = ()
    choice: tuple[str, ...] = ()
    regex: str = ""
    schema: str = ""

    def __post_init__(self) -> None:
        if bool(self.choice) + bool(self.regex) + bool(self.schema) > 1:
            raise ValueError(
                "a text is held to a choice, a regular expression or a JSON schema, not to several"
            )


@dataclass(frozen=True)
class Completion:
    """A sampled text. finish_reason: "stop" (end mark or stop string) or "length". `cached`: it was paid for before."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Scores:
    """Probabilities over the stated continuations, in their order.

    A language model's and a softmax head's sum to 1; a head of independent (sigmoid) classes gives each its
    own. `approximate` says that an endpoint showed only its top log-probabilities.
    """

    probabilities: tuple[float, ...]
    approximate: bool
    prompt_tokens: int
    cached: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class TokenScores:
    """A streaming guard's verdicts on one conversation.

    risk [T, R] and category [T, C] for the T tokens of the last assistant turn, `offsets` [T, 2] their
    character spans in it; query_risk [Rq] and query_category [Cq] at the end of the last user turn.
    """

    offsets: np.ndarray
    risk: np.ndarray
    category: np.ndarray
    query_risk: np.ndarray
    query_category: np.ndarray
    prompt_tokens: int


@dataclass(frozen=True)
class Vector:
    """What an engine answers to `embed`: values [D] float32 and the tokens read; a client hands on the
    values."""

    values: np.ndarray
    prompt_tokens: int


@dataclass(frozen=True)
class Failure:
    """A row that failed: the reason in one sentence, and what came back, if anything did."""

    reason: str
    raw: str = ""


class RowFailed(Exception):
    """Raised inside an engine: this row has no answer, the others may have one."""

    def __init__(self, reason: str, raw: str = "") -> None:
        super().__init__(reason)
        self.failure = Failure(reason, raw)


class EngineDied(RuntimeError):
    """The process behind an engine is gone. The step fails at once, and its next run resumes."""


class Engine(Protocol):
    """What a client of every engine can do. A call that its kind of model cannot answer raises TypeError."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]: ...

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]: ...

    def score_tokens(self, conversations: Sequence[list[Message]]) -> list[TokenScores | Failure]: ...

    def embed(self, texts: Sequence[Prompt]) -> list[np.ndarray | Failure]: ...
