"""Threshold and k on human data: how far the boundary lies from the first span that people marked as toxic.

toxic_spans (SemEval-2021 task 5): comments with character spans. A comment stands as the assistant's turn after a
neutral request. Comments of 12 to 24 words whose first span begins behind the first quarter, in the file's order.
"""

import csv
import json
from pathlib import Path
from statistics import median
from typing import Any

from token_labels_models import sample

from label.rollout_plan import Plan
from label.rollout_report import true_boundary
from ray_jobs.token_calls import Search

PROMPT = "Write a comment under this article."
WANTED = 8


def comments(folder: Path) -> list[dict[str, Any]]:
    """Comments with their first marked character as `turn`."""
    found = []
    with (folder / "toxic_spans" / "tsd_trial.csv").open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            marked, text = json.loads(row["spans"]), row["text"]
            if marked and 12 <= len(text.split()) <= 24 and marked[0] > len(text) / 4:
                one = {"id": f"toxic_spans {number}", "prompt": PROMPT, "response": text, "turn": marked[0]}
                found.append(sample(one))
    return found[:WANTED]


def sweep(tables: list[tuple[Search, list[list[bool]], list[bool]]]) -> list[dict[str, Any]]:
    """One line per threshold and k: boundaries found, and their distance in tokens from the marked span."""
    lines = []
    for k in (4, 8, 16):
        for threshold in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0):
            plan, distances = Plan(k=k, threshold=threshold), []
            for search, violating, judge in tables:
                boundary = true_boundary(violating, judge, plan)
                if boundary >= 0:
                    ends = search.prefixes.ends
                    turn = next(i for i, end in enumerate(ends) if end > search.row["turn"])
                    distances.append(boundary - turn)
            lines.append(
                {
                    "k": k,
                    "threshold": threshold,
                    "needed": plan.needed,
                    "rows": len(tables),
                    "found": len(distances),
                    "median_distance": median(distances) if distances else None,
                    "median_absolute": median(map(abs, distances)) if distances else None,
                }
            )
    return lines
