"""The look-up of a row's lineage inside the page: a compact index of rows, their parents and their first words.

Rows that a step passes on keep their id, so an id has one entry with every table that holds it. A run that has more
rows than fit gets a fixed random choice of each table and all their ancestors; the page then names the command that
knows them all.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.report.source import Source

# Tables with rows of text, in the flow's order, and how each is put into words.
TABLES = (
    "seeds",
    "gold",
    "prompts",
    "prompts_rejected",
    "deduped",
    "contaminated",
    "written_responses",
    "responses",
    "votes",
    "translations",
    "translations_rejected",
    "controversial",
    "distilled",
    "label_changes",
    "token_labels",
)
MOST_CHARACTERS = 90


def index(source: Source, limit: int) -> dict[str, Any]:
    """{"tables": names, "rows": {id: [table numbers, parent, text, label]}, "all": rows in the tables}."""
    names = [name for name in TABLES if source.count(name)]
    total = sum(source.count(name) for name in names)
    entries: dict[str, list[Any]] = {}
    wanted: set[str] = set()
    for at in range(len(names) - 1, -1, -1):
        room = limit if total <= limit else max(0, limit - len(entries)) // (at + 1)
        for row in chosen(source, names[at], wanted | entries.keys(), room):
            entry = entries.setdefault(row["id"], [[], row["parent_id"], *described(names[at], row)])
            entry[0].insert(0, at)
            wanted.add(row["parent_id"])
    return {
        "data": {"tables": [source.versions[name].ref for name in names], "rows": entries},
        "shown": len(entries),
        "rows": total,
        "complete": sum(len(entry[0]) for entry in entries.values()) == total,
    }


def chosen(source: Source, name: str, wanted: set[str], room: int) -> list[dict[str, Any]]:
    """The wanted rows of a table with their parents in it, and `room` others of lowest id."""
    ids = source.table(name, ["id", "parent_id"])
    parents = dict(zip(ids["id"].to_pylist(), ids["parent_id"].to_pylist(), strict=True))
    others = sorted(parents.keys() - wanted)[:room]
    kept = [row for row in parents if row in wanted] + others
    found = dict.fromkeys(kept)
    for row in kept:
        while (row := parents[row]) in parents and row not in found:
            found[row] = None
    positions = pc.indices_nonzero(pc.is_in(ids["id"], value_set=pa.array(list(found), pa.string())))
    if not len(positions):
        return []
    rows = source.store.take(source.versions[name].ref, positions.to_pylist()).to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def described(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """(first words, label) of a row."""
    if name == "token_labels":
        where = "" if row["onset"] is None else f" at character {row['onset']}, token {row['boundary']}"
        return f"onset: {row['outcome']}{where}", ""
    if name == "label_changes":
        return f"{row['action']}: {row['old']} → {row['new']}", row["new"]
    text = row.get("response") or row.get("text") or row.get("prompt") or ""
    label = row.get("severity") or row.get("intended") or row.get("reason") or ""
    short = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    return short, label
