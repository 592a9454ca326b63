"""A handful of rows to look at: prompts per strategy, what was turned down and why, responses, token labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

from label.token_labels import ANSWER
from ray_jobs.report.source import Source, quoted

PROMPT = ["text", "history", "language", "leaf", "intended", "keyword", "source"]
LABELLED = ["id", "prompt", "response", "leaf", "severity", "categories"]


def samples(source: Source, count: int) -> dict[str, Any]:
    """`count` rows of each kind; kinds that a flow does not have are empty."""
    return {
        "prompts": prompts(source, count),
        "rejected": by_value(source, "prompts_rejected", "reason", ["text", "leaf", "language", "source"], 2),
        "responses": responses(source, count),
        "translations": source.some("translations", ["prompt", "language", "leaf", "severity"], count),
        "tokens": tokens(source, count),
    }


def prompts(source: Source, count: int) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Prompts per strategy; those that people wrote, the seeds, come last."""
    written = {row["source"] for row in source.rows("seeds", ["source"])}
    groups = by_value(source, "prompts", "source", PROMPT, count)
    return sorted(groups, key=lambda group: group[0] in written)


def by_value(
    source: Source, name: str, column: str, columns: list[str], count: int
) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """(value, rows that have it, some of them) for every value of a column, most frequent first."""
    if name not in source.versions:
        return []
    counts = Counter(source.table(name, [column])[column].to_pylist())
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    return [
        (value, counts[value], source.some(name, columns, count, f"{column} = {quoted(value)}"))
        for value in ordered
    ]


def responses(source: Source, count: int) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Responses per role, with the label that training reads where there is one."""
    columns = ["prompt", "text", "thinking", "language", "leaf", "role", "source"]
    groups = by_value(source, "responses", "role", columns, count)
    shown = [row["id"] for _, _, rows in groups for row in rows]
    labels = labels_of(source, shown)
    return [
        (role or "written", total, [row | {"label": labels.get(row["id"])} for row in rows])
        for role, total, rows in groups
    ]


def labels_of(source: Source, parents: list[str]) -> dict[str, dict[str, Any]]:
    """The labelled sample of each response or prompt, by its id."""
    if not source.samples or not parents:
        return {}
    where = f"parent_id in ({', '.join(map(quoted, parents))})"
    columns = ["parent_id", "severity", "categories", "refusal", "origin", "confidence"]
    return {row["parent_id"]: row for row in source.rows(source.samples, columns, where)}


def tokens(source: Source, count: int) -> list[dict[str, Any]]:
    """Responses cut where they turn: `before` and `after` the onset."""
    if not source.samples:
        return []
    columns = ["parent_id", "onset", "boundary", "outcome"]
    labelled = source.some("token_labels", columns, count, f"onset is not null and part = '{ANSWER}'")
    if not labelled:
        return []
    where = f"id in ({', '.join(quoted(row['parent_id']) for row in labelled)})"
    texts = {row["id"]: row for row in source.rows(source.samples, LABELLED, where)}
    return [cut(row, texts[row["parent_id"]]) for row in labelled if row["parent_id"] in texts]


def cut(label: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    onset = label["onset"]
    words = {"before": sample["response"][:onset], "after": sample["response"][onset:]}
    return sample | label | words
