"""Plain files: the user says which column is what.

A label is a severity of the policy, or a yes or no (1, true, harmful, unsafe: it violates in both readings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.eval_formats.row import (
    ALWAYS,
    HARM,
    NEVER,
    REFUSAL,
    EvalRow,
    flag,
    group_of,
    has,
    need,
    text,
    word,
)
from synth.errors import BadInput
from synth.policy import Policy


@dataclass(frozen=True)
class Columns:
    """Names of columns; "" for those a file lacks. With `response`, its responses are judged, with "" its prompts, and
    with None its prompts too, unless it has a column of that name. `onset` holds a character offset of the response,
    or a list of [start, end] spans."""

    prompt: str = "prompt"
    response: str | None = None
    label: str = "label"
    category: str = ""
    refusal: str = ""
    language: str = ""
    group: str = ""
    history: str = ""
    onset: str = ""


def plain(row: Mapping[str, Any], where: str, columns: Columns, policy: Policy) -> list[EvalRow] | str:
    """One row of a plain file. BadInput for a column that is not there, or a value that is none."""
    need(row, where, *(name for name in vars(columns).values() if name and name != columns.onset))
    if columns.response is None and has(row, "response"):
        told = "say --response response to take its responses, or --response '' to take its prompts"
        raise BadInput(f"{where}: there is a column 'response': {told}")
    if not has(row, columns.label) and not (columns.refusal and has(row, columns.refusal)):
        return "the text carries no label"
    if columns.response and not has(row, columns.response):
        return "the response is empty"
    prompt = text(row, where, columns.prompt) if columns.prompt else ""
    answer = text(row, where, columns.response) if columns.response else ""
    severity = str(row[columns.label]) if has(row, columns.label) else ""
    return [
        EvalRow(
            "response" if columns.response else "prompt",
            prompt,
            _violates(row, where, columns.label, policy) if severity else None,
            str(row[columns.group]) if columns.group else group_of(prompt or answer),
            answer,
            _history(row.get(columns.history), where, columns.history) if columns.history else (),
            severity if severity in policy.severity_names else "",
            str(row[columns.category] or "") if columns.category else "",
            _refusal(row, where, columns.refusal),
            str(row[columns.language] or "und") if columns.language else "und",
            _onset(row.get(columns.onset), where, columns.onset, len(answer)) if columns.onset else (),
        )
    ]


def _violates(row: Mapping[str, Any], where: str, name: str, policy: Policy) -> str:
    """The readings in which a label violates. The policy's own severities come first."""
    by_name = {severity.name.casefold(): severity.violating for severity in policy.severities}
    said = str(row[name]).strip().casefold()
    if said in by_name:
        return by_name[said]
    if said in HARM:
        return HARM[said]
    try:
        return ALWAYS if flag(row, where, name) else NEVER
    except BadInput:
        known = ", ".join((*policy.severity_names, *HARM, "0", "1"))
        raise BadInput(f"{where}: column {name!r} holds {row[name]!r}; a label is one of {known}") from None


def _refusal(row: Mapping[str, Any], where: str, name: str) -> bool | None:
    if not name or not has(row, name):
        return None
    known = str(row[name]).strip().casefold() in REFUSAL
    return word(row, where, name, REFUSAL) if known else flag(row, where, name)


def _history(value: Any, where: str, name: str) -> tuple[dict[str, str], ...]:
    turns = value or []
    told = isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns)
    if not told or any(not isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
        raise BadInput(f"{where}: column {name!r} holds no list of messages with role and content")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _onset(value: Any, where: str, name: str, length: int) -> tuple[tuple[int, int], ...]:
    if value in (None, "", []):
        return ()
    try:
        marked = (
            [(int(value), int(value) + 1)]
            if not isinstance(value, list)
            else [(int(a), int(b)) for a, b in value]
        )
    except (TypeError, ValueError):
        raise BadInput(f"{where}: column {name!r} holds {value!r}, no offset and no list of spans") from None
    if any(not 0 <= start < end <= length for start, end in marked):
        raise BadInput(f"{where}: column {name!r} marks {value!r}, outside a response of {length} characters")
    return tuple(sorted(marked))
