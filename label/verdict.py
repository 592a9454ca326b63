"""The moderation instruction and its answer, written and read for any policy (METHOD.md §6).

The answer is exactly these lines, the last one only for responses of a policy that labels refusal:

    Safety: Unsafe
    Categories: Violent, PII
    Refusal: No

Its first key is the policy's `answer_key`; severities and categories stand under their names (no comma in
them). Reading is strict where a mistake would change a label (a missing, contradictory or unknown line
makes the whole answer unreadable, which is an abstention and never a guess) and lenient where it cannot
(letter case, blank lines, a leading think block). The instruction is a template of the policy: task,
policy text, categories, refusal (responses only), conversation, output format, in that order, so that
everything before the conversation is a shared prefix.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synth.errors import BadInput
from synth.fence import fence
from synth.policy import Policy
from synth.templates import render

NO_CATEGORY = "None"
_THINK = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_ROLE_TITLES = {"system": "SYSTEM", "user": "USER", "assistant": "ASSISTANT"}


@dataclass(frozen=True)
class Verdict:
    """One text's label: a severity name, category ids (none for the mildest severity), refusal or unknown."""

    severity: str
    categories: tuple[str, ...] = ()
    refusal: bool | None = None


def has_refusal_line(policy: Policy, side: str) -> bool:
    """Whether answers about this side carry a refusal line."""
    return policy.refusal and side == "response"


def severity_answers(policy: Policy) -> tuple[str, ...]:
    """The first line of an answer for each severity, in the policy's order: what `score` weighs."""
    return tuple(f"{policy.answer_key}: {name}" for name in policy.severity_names)


def _side_categories(policy: Policy, side: str) -> dict[str, str]:
    if side not in policy.sides:
        raise BadInput(f"{policy.source}: the policy has no side '{side}' (it has {', '.join(policy.sides)})")
    return {category.id: category.name for category in policy.categories if side in category.sides}


def render_verdict(verdict: Verdict, policy: Policy, side: str) -> str:
    """The answer text. BadInput for a severity or category that the side lacks, or a missing refusal."""
    names = _side_categories(policy, side)
    if verdict.severity not in policy.severity_names:
        raise BadInput(f"{policy.source}: unknown severity '{verdict.severity}'")
    unknown = [category for category in verdict.categories if category not in names]
    if unknown:
        raise BadInput(f"{policy.source}: no category '{unknown[0]}' for a {side}")
    listed = ", ".join(names[category] for category in verdict.categories) or NO_CATEGORY
    lines = [f"{policy.answer_key}: {verdict.severity}", f"Categories: {listed}"]
    if has_refusal_line(policy, side):
        if verdict.refusal is None:
            raise BadInput(f"{policy.source}: a {side} verdict needs refusal true or false")
        lines.append(f"Refusal: {'Yes' if verdict.refusal else 'No'}")
    return "\n".join(lines)


def parse_verdict(text: str, policy: Policy, side: str) -> Verdict | None:
    """The verdict in a model's answer, or None when it cannot be read without guessing."""
    fields = _answer_lines(_THINK.sub("", text, count=1), policy.answer_key)
    if fields is None:
        return None
    severities = {name.casefold(): name for name in policy.severity_names}
    severity = severities.get(fields.get(policy.answer_key.casefold(), "").casefold())
    categories = _read_categories(fields.get("categories", ""), _side_categories(policy, side))
    if severity is None or categories is None:
        return None
    if not has_refusal_line(policy, side):
        return Verdict(severity, categories)
    refusal = {"yes": True, "no": False}.get(fields.get("refusal", "").casefold())
    return None if refusal is None else Verdict(severity, categories, refusal)


def _answer_lines(text: str, answer_key: str) -> dict[str, str] | None:
    """The known 'Key: value' lines by lower-case key; None when one stands there with two values."""
    keys = {answer_key.casefold(), "categories", "refusal"}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip().casefold(), value.strip()
        if colon and key in keys and fields.setdefault(key, value) != value:
            return None
    return fields


def _read_categories(listed: str, names: Mapping[str, str]) -> tuple[str, ...] | None:
    """Category ids of a comma-separated list of names, () for 'None', None when any of them is unknown."""
    if listed.casefold() == NO_CATEGORY.casefold():
        return ()
    by_name = {name.casefold(): category for category, name in names.items()}
    found = [by_name.get(" ".join(part.split()).casefold()) for part in listed.split(",")]
    return None if None in found else tuple(dict.fromkeys(filter(None, found)))


def render_conversation(conversation: Sequence[Mapping[str, str]], fenced: bool = False) -> str:
    """The turns as 'USER: …' blocks separated by blank lines. BadInput for an unknown role or no turn.

    `fenced`: for a model that takes instructions, each turn's text between marks that it cannot close.
    """
    if not conversation:
        raise BadInput("a conversation to moderate has no turn")
    for message in conversation:
        if message["role"] not in _ROLE_TITLES:
            raise BadInput(f"a role is one of {', '.join(_ROLE_TITLES)}, not '{message['role']}'")
    titles = [_ROLE_TITLES[message["role"]] for message in conversation]
    texts = [message["content"] for message in conversation]
    if not fenced:
        return "\n\n".join(f"{title}: {text}" for title, text in zip(titles, texts, strict=True))
    note, closed = fence(texts)
    return "\n\n".join([note, *(f"{title}:\n{text}" for title, text in zip(titles, closed, strict=True))])


def moderation_prompt(
    policy: Policy,
    side: str,
    conversation: Sequence[Mapping[str, str]],
    template: str = "moderation_full",
    fenced: bool = False,
) -> str:
    """The instruction that asks for the verdict on the last turn, from a template of the policy.

    `fenced` for instruct models; our guards are trained on the plain form. BadInput for a side, role or
    template the policy lacks.
    """
    _side_categories(policy, side)
    return render(policy, template, side=side, conversation=render_conversation(conversation, fenced))
