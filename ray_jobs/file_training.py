"""Labelled texts of files as training examples of either guard (METHOD.md §6), for any policy.

A label that only says whether a text violates stands for a severity of the policy: the mildest, the most severe or,
where the text violates in the strict reading only, the one that does so. A benchmark's own category counts where the
policy has one of that name. What a file does not say is not taught: a generative guard's answer ends with the last line
that is known, and a streaming guard's category stays out of the loss. Of a violating response without a marked onset
the second half is taught: its first words tell nothing, and taught on them a guard flags the beginning of any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from label.verdict import NO_CATEGORY, has_refusal_line, moderation_prompt
from ray_jobs.eval_formats import EvalRow
from ray_jobs.eval_formats.row import ALWAYS, NEVER
from ray_jobs.voters import side_categories
from synth.errors import BadInput
from synth.policy import Policy


def examples(kind: str, rows: Sequence[EvalRow], policy: Policy, template: str = "") -> list[dict[str, Any]]:
    """Examples of a "gen" guard (GenExample, the moderation `template` filled in) or a "stream" one (StreamExample).

    BadInput when the rows carry one label only, or judge a side that the policy lacks.
    """
    labelled = [row for row in rows if row.violates is not None]
    sides = sorted({row.side for row in labelled} - set(policy.sides))
    if sides:
        raise BadInput(f"{policy.source}: the policy {policy.id} has no side {sides[0]!r}")
    said = {severity(policy, row) for row in labelled}
    if kind == "stream" and any(row.onset and row.onset[0][0] > 0 for row in labelled):
        said.add(policy.mildest)  # of the tokens before the onset
    if len(said) < 2:
        told = f"all of the {len(labelled)} labelled rows are {min(said)}" if said else "no row is labelled"
        raise BadInput(f"a guard needs rows of two labels at least, and {told}")
    make = gen_example if kind == "gen" else stream_example
    return [make(policy, row, str(number), template) for number, row in enumerate(labelled)]


def severity(policy: Policy, row: EvalRow) -> str:
    """The row's severity in the policy's words."""
    if row.severity in policy.severity_names:
        return row.severity
    if row.violates == NEVER:
        return policy.mildest
    kinds = ("always", "strict") if row.violates == ALWAYS else ("strict", "always")
    return next(s.name for kind in kinds for s in reversed(policy.severities) if s.violating == kind)


def categories(policy: Policy, row: EvalRow) -> list[str]:
    """The names of the policy's categories that the row's own wording names; none for the mildest severity."""
    if severity(policy, row) == policy.mildest:
        return []
    names = {category.id: category.name for category in policy.categories}
    known = {names[one].casefold(): names[one] for one in side_categories(policy, row.side)}
    return [known[part] for part in (p.strip().casefold() for p in row.category.split(",")) if part in known]


def gen_example(policy: Policy, row: EvalRow, number: str, template: str) -> dict[str, Any]:
    """The moderation instruction and as much of its answer as the row says."""
    said, named = severity(policy, row), categories(policy, row)
    lines = [f"{policy.answer_key}: {said}"]
    if named or said == policy.mildest:
        lines.append(f"Categories: {', '.join(named) or NO_CATEGORY}")
        if has_refusal_line(policy, row.side) and row.refusal is not None:
            lines.append(f"Refusal: {'Yes' if row.refusal else 'No'}")
    return {
        "id": number,
        "group_id": row.group,
        "prompt": moderation_prompt(policy, row.side, row.conversation, template),
        "answer": "\n".join(lines),
        "label": f"{row.side}:{said}",
    }


def stream_example(policy: Policy, row: EvalRow, number: str, _template: str) -> dict[str, Any]:
    """A prompt trains the query branch, a response the response branch."""
    said, named = severity(policy, row), categories(policy, row)
    side = "query" if row.side == "prompt" else "response"
    one: dict[str, Any] = {
        "id": number,
        "group_id": row.group,
        "prompt": row.prompt,
        "history": row.history,
        f"{side}_risk": said,
        f"{side}_category": named[0] if named else None,
    }
    if side == "response":
        flagged = said != policy.mildest
        start = row.onset[0][0] if row.onset and flagged else None
        one |= {"response": row.response, "onset": start, "unmarked": flagged and start is None}
    return one
