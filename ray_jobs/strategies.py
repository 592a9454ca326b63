"""Prompts to read, by strategy: what was kept, what was turned down and why, and quotas that were not met."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray_jobs.store import Store
from synth.prompts import STRATEGIES

SHOWN = ("id", "text", "leaf", "language", "intended", "keyword")


def read(store: Store, n: int) -> dict[str, dict[str, Any]]:
    """Per strategy of the newest prompts: counts, reasons by frequency, `n` kept and `n` rejected rows (those of lowest
    id: a fixed random choice; rejected ones reason by reason in turn)."""
    kept = store.read(store.resolve("prompts").ref, [*SHOWN, "source", "history"]).to_pylist()
    lost = store.read(store.resolve("prompts_rejected").ref, [*SHOWN, "source", "reason"]).to_pylist()
    quotas = store.read(store.resolve("prompt_yields").ref).to_pylist()
    found = {}
    for name in STRATEGIES:
        mine = [row for row in quotas if row["source"] == name]
        if mine:
            good, bad = ([row for row in rows if row["source"] == name] for rows in (kept, lost))
            found[name] = _one(mine, good, bad, n)
    return found


def _one(
    quotas: list[dict[str, Any]], kept: list[dict[str, Any]], lost: list[dict[str, Any]], n: int
) -> dict[str, Any]:
    reasons = Counter(row["reason"] for row in lost)
    place: Counter[str] = Counter()
    turns = {}
    for row in sorted(lost, key=lambda row: row["id"]):
        turns[row["id"]] = place[row["reason"]]
        place[row["reason"]] += 1
    unmet = Counter(row["why"] for row in quotas if row["why"] and row["accepted"] < row["wanted"])
    return {
        **{key: sum(row[key] for row in quotas) for key in ("wanted", "asked", "accepted", "tokens")},
        "reasons": dict(reasons.most_common()),
        "unmet": dict(unmet.most_common()),
        "kept": sorted(kept, key=lambda row: row["id"])[:n],
        "turned_down": sorted(lost, key=lambda row: (turns[row["id"]], row["reason"], row["id"]))[:n],
    }
