"""The gold set of a policy: JSON Lines, one hand-labelled row a line, checked against its policy."""

import json
from pathlib import Path

from synth.errors import BadInput
from synth.ids import stable_hash
from synth.policy_schema import Node, read_text, shown
from synth.policy_types import SIDES, GoldRow, Message, Policy

_KEYS = ("side", "prompt", "severity", "categories", "language", "reason")
_EXTRAS = ("refusal", "history", "response", "thinking", "turn", "group")
_ROLES = ("system", "user", "assistant")


def load_gold(policy: Policy, path: str | Path | None = None) -> tuple[GoldRow, ...]:
    """The gold rows from `path`, or from the file that the policy names beside itself, in the file's order.

    `group_id` is the row's "group", or a hash of its prompt. Raises BadInput naming file, line and field for
    a row that the policy cannot hold, and for a row that stands twice.
    """
    source = Path(path) if path is not None else Path(policy.source).parent / policy.gold
    rows: dict[str, GoldRow] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(source).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{shown(source)}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{where}: not readable as JSON: {getattr(error, 'msg', 'nested too deeply')}"
            ) from error
        row = _row(Node(where, "", value), policy)
        if row.id in rows:
            raise BadInput(f"{where}: the same row as line {lines[row.id]}")
        rows[row.id], lines[row.id] = row, number
    if not rows:
        raise BadInput(f"{shown(source)}: no row in the gold set")
    return tuple(rows.values())


def _row(node: Node, policy: Policy) -> GoldRow:
    entry = node.mapping(_KEYS, _EXTRAS)
    side = entry["side"].one_of(SIDES, "side")
    if side not in policy.sides:
        entry["side"].fail(f"the policy has no side '{side}'")
    prompt = entry["prompt"].raw_text()
    response, thinking = _response(entry, node, side)
    history = _history(entry.get("history"))
    return GoldRow(
        id=stable_hash("gold", side, prompt, list(history), response, thinking),
        group_id=entry["group"].text() if "group" in entry else stable_hash(prompt),
        side=side,
        prompt=prompt,
        history=history,
        response=response,
        thinking=thinking,
        severity=entry["severity"].one_of(policy.severity_names, "severity"),
        categories=_categories(entry, policy, side),
        refusal=_refusal(entry, node, policy, side),
        language=entry["language"].language(entry["language"].text()),
        reason=entry["reason"].text(),
        turn=_turn(entry.get("turn"), response),
    )


def _response(entry: dict[str, Node], node: Node, side: str) -> tuple[str, str]:
    """The response and the thinking text of a row, empty where the prompt is judged."""
    given = {
        key: entry[key].raw_text()
        for key in ("response", "thinking")
        if key in entry and entry[key].value != ""
    }
    if side == "response" and "response" not in given:
        node.fail("the key 'response' is missing")
    if side == "prompt" and given:
        entry[next(iter(given))].fail("a row of the side 'prompt' has none")
    return given.get("response", ""), given.get("thinking", "")


def _history(node: Node | None) -> tuple[Message, ...]:
    if node is None or node.value == []:
        return ()
    messages = []
    for item in node.items():
        turn = item.mapping(("role", "content"))
        messages.append({"role": turn["role"].one_of(_ROLES, "role"), "content": turn["content"].raw_text()})
    return tuple(messages)


def _categories(entry: dict[str, Node], policy: Policy, side: str) -> tuple[str, ...]:
    """Known on this side, none twice; none for the mildest severity, at least one for every other."""
    node, severity = entry["categories"], entry["severity"].value
    known = tuple(category.id for category in policy.categories_of(side))
    found = tuple(item.one_of(known, "category") for item in node.items()) if node.value != [] else ()
    if len(set(found)) != len(found):
        node.fail("a category stands twice")
    if severity == policy.mildest and found:
        node.fail(f"a row labelled '{severity}' carries no category")
    if severity != policy.mildest and not found:
        node.fail(f"a row labelled '{severity}' carries at least one category")
    return found


def _refusal(entry: dict[str, Node], node: Node, policy: Policy, side: str) -> bool | None:
    value = entry["refusal"].value if "refusal" in entry else None
    if side == "response" and policy.refusal:
        if not isinstance(value, bool):
            (entry.get("refusal") or node).fail("a response needs 'refusal': true or false")
        return bool(value)
    if value is not None:
        entry["refusal"].fail(
            "must be null here: refusals are labelled on responses only, where the policy says so"
        )
    return None


def _turn(node: Node | None, response: str) -> int | None:
    if node is None or node.value is None:
        return None
    if isinstance(node.value, bool) or not isinstance(node.value, int) or not 0 <= node.value < len(response):
        node.fail(f"must be a character of the response: 0 to {len(response) - 1}")
    return int(node.value)
