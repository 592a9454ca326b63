"""One labelled text of a benchmark, and how a field of a file becomes one: a wrong value is one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.errors import BadInput
from synth.ids import stable_hash

NEVER, STRICT, ALWAYS = "never", "strict", "always"
HARM = {"harmful": ALWAYS, "unharmful": NEVER, "unsafe": ALWAYS, "safe": NEVER}
REFUSAL = {"refusal": True, "compliance": False}
UNLABELLED = "the text carries no label"
_FLAGS = {
    "1": True,
    "0": False,
    "true": True,
    "false": False,
    "1.0": True,
    "0.0": False,
    "yes": True,
    "no": False,
}


@dataclass(frozen=True)
class EvalRow:
    """A text to be judged, and what people said of it.

    `violates` says in which readings the text violates: "always", only in the "strict" one (a Controversial label),
    "never", or None where nobody said. `category` is the benchmark's own wording. `onset` are character spans
    [start, end) of `response` that people marked; it turns where the first begins. `group` joins what belongs together.
    """

    side: str
    prompt: str
    violates: str | None
    group: str
    response: str = ""
    history: tuple[Mapping[str, str], ...] = ()
    severity: str = ""
    category: str = ""
    refusal: bool | None = None
    language: str = "en"
    onset: tuple[tuple[int, int], ...] = ()

    def violating(self, reading: str) -> bool:
        """Whether the text violates in the reading "strict" or "loose"."""
        return self.violates == ALWAYS or (self.violates == STRICT and reading == "strict")

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The turns up to the text under judgement."""
        turns = [*map(dict, self.history), {"role": "user", "content": self.prompt}]
        return turns if self.side == "prompt" else [*turns, {"role": "assistant", "content": self.response}]


def group_of(text: str) -> str:
    """The group of all rows that share a prompt."""
    return stable_hash("evaluation", text)


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row holds anything under the name."""
    return row.get(name) not in (None, "", "None", "null")


def text(row: Mapping[str, Any], where: str, *names: str) -> str:
    """The text under the first of `names` that the row has. BadInput without one."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise BadInput(
            f"{where}: no column {' or '.join(map(repr, names))}; it has {', '.join(map(str, row))}"
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise BadInput(f"{where}: column {name!r} holds no text")
    return row[name]


def flag(row: Mapping[str, Any], where: str, name: str) -> bool:
    """A yes or no: a bool, 0 or 1, or such a word."""
    value = row.get(name)
    told = _FLAGS.get(str(value).strip().casefold())
    if told is None:
        raise BadInput(f"{where}: column {name!r} holds {value!r}, not 0 or 1")
    return told


def word(row: Mapping[str, Any], where: str, name: str, meanings: Mapping[str, Any]) -> Any:
    """What the word under `name` means; None where there is none."""
    if not has(row, name):
        return None
    key = str(row[name]).strip().casefold()
    if key not in meanings:
        raise BadInput(f"{where}: column {name!r} holds {row[name]!r}; known are {', '.join(meanings)}")
    return meanings[key]


def need(row: Mapping[str, Any], where: str, *names: str) -> None:
    """BadInput unless the row has every one of the columns."""
    for name in names:
        if name not in row:
            raise BadInput(f"{where}: no column {name!r}; it has {', '.join(map(str, row))}")


def named(flags: Mapping[str, Any] | None) -> str:
    """The names that are set in a {name: bool} field, joined."""
    return ", ".join(name for name, value in (flags or {}).items() if value)


def spans(offsets: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Character offsets as runs [start, end)."""
    runs: list[list[int]] = []
    for offset in sorted(set(offsets)):
        if runs and runs[-1][1] == offset:
            runs[-1][1] = offset + 1
        else:
            runs.append([offset, offset + 1])
    return tuple((start, end) for start, end in runs)
