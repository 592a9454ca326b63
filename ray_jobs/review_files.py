"""Human labels as JSON Lines, for people who use another tool: rows to be labelled out, labels in and out.

One line per sample and person: `id` (the sample's), `seen` (the version it is read in), `severity`, `categories`,
`refusal`, `unusable`, `reviewer`, `at`. Rows to be labelled carry their texts and what the machine thinks as well, and
an empty severity for the person to fill in; other keys are ignored on the way back. What was exported and comes back
unchanged makes nothing new.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ray_jobs import human_labels
from ray_jobs.files import check_writable, read_table, write_table
from ray_jobs.human_labels import Said
from ray_jobs.review import GUESS, SHOWN
from ray_jobs.review_choice import Choice
from ray_jobs.review_rows import chosen, reviewable
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput
from synth.policy import Policy

SAMPLE = ["id", "group_id", "side", "leaf", "language"]


def export_labels(store: Store, path: str) -> int:
    """Write what people said so far; returns the number of lines. BadInput where nobody has labelled yet."""
    check_writable(path)
    kept = [name for name in human_labels.COLUMNS if name not in ("id", "parent_id", "group_id")]
    rows = [
        {"id": row["parent_id"], **{name: row[name] for name in kept}} for row in human_labels.read(store)
    ]
    if not rows:
        raise BadInput(f"{store.root} has no human labels yet")
    write_table(pa.Table.from_pylist(rows), path)
    return len(rows)


def export_rows(store: Store, ref: str, choice: Choice, reviewer: str, path: str) -> int:
    """Write rows to be labelled; returns the number of lines."""
    check_writable(path)
    version = reviewable(store, ref)
    blank = {"severity": "", "categories": list[str](), "refusal": None, "unusable": False, "at": ""}
    rows = [
        {name: row[name] for name in SHOWN}
        | {f"machine_{name}": row[name] for name in GUESS}
        | blank
        | {"reviewer": reviewer, "seen": version.ref}
        for row in chosen(store, version, choice, reviewer)
    ]
    if not rows:
        raise BadInput(f"{version.ref} has no row for the order {choice.order!r} {choice.query}".strip())
    write_table(pa.Table.from_pylist(rows), path)
    return len(rows)


def import_labels(
    store: Store, policy: Policy, path: str, table: str = "", reviewer: str = ""
) -> tuple[TableVersion, int, int]:
    """Read labelled lines into a new version: (version, labels added, lines without a label).

    table, reviewer: for lines that do not say where their row stands or who labelled it. BadInput names the first line
    that cannot be used, and then nothing is saved.
    """
    lines = read_table(path).to_pylist()
    told: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if not line.get("id"):
            raise BadInput(f"{path}, row {number}: no id")
        if line.get("severity") or line.get("unusable"):
            ref = line.get("seen") or table
            if not ref:
                raise BadInput(f"{path}, row {number}: it does not say which table it is from; give --table")
            told[ref].append((number, line))
    rows, seen = [], {}
    for ref, labelled in told.items():
        version = reviewable(store, ref)
        seen[version.name] = version.ref
        samples = {row["id"]: row for row in store.read(version.ref, columns=SAMPLE).to_pylist()}
        rows += [_row(policy, samples, version, line, f"{path}, row {at}", reviewer) for at, line in labelled]
    before = {row["id"] for row in human_labels.read(store)}
    added = len({row["id"] for row in rows} - before)
    return human_labels.save(store, rows, seen), added, len(lines) - len(rows)


def _row(
    policy: Policy,
    samples: Mapping[str, Mapping[str, Any]],
    version: TableVersion,
    line: Mapping[str, Any],
    where: str,
    reviewer: str,
) -> dict[str, Any]:
    sample = samples.get(line["id"])
    if sample is None:
        raise BadInput(f"{where}: {version.ref} has no row with the id {line['id']}")
    categories, refusal = line.get("categories") or [], line.get("refusal")
    if not isinstance(categories, list) or not isinstance(refusal, bool | None):
        raise BadInput(f"{where}: categories is a list of names, and refusal is true, false or null")
    said = Said(line.get("severity") or "", tuple(categories), refusal, bool(line.get("unusable")))
    at = line.get("at") or datetime.now(UTC).isoformat(timespec="microseconds")
    try:
        return human_labels.label_row(policy, sample, said, line.get("reviewer") or reviewer, at, version.ref)
    except BadInput as problem:
        raise BadInput(f"{where}: {problem}") from None
