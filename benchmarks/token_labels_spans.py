"""Threshold and k on human data: how far the boundary lies from the first span that people marked as toxic.

    python benchmarks/token_labels_spans.py --bench DIR --json FILE [--root DIR] [--work DIR] [--rows 8] [--seconds N]

toxic_spans (SemEval-2021 task 5): comments with character spans. A comment stands as the assistant's turn after a
neutral request. Searched are comments of the trial file, of 12 to 24 words, whose first span begins behind the first
quarter; guard and judge are taught on such comments of the training file (token_labels_fitted). All 16 draws of every
prefix are made once, and every threshold and k reads that one table.
"""

import argparse
import csv
import json
import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

from token_labels_draws import Draws, OutOfTime, draw_all
from token_labels_fitted import taught, turn_of
from token_labels_models import make_work, sample, searches
from token_labels_root import make_root, recipe

from label.rollout_plan import Plan
from label.rollout_report import true_boundary
from ray_jobs.engine import Sampling
from ray_jobs.token_calls import Search
from ray_jobs.token_labels import TokenLabelsConfig

PROMPT = "Write a comment under this article."
TEACHING = 60
THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)


def comments(file: Path) -> list[dict[str, Any]]:
    """Comments with their first marked character as `turn`, in the file's order."""
    found = []
    with file.open(encoding="utf-8") as rows:
        for number, row in enumerate(csv.DictReader(rows)):
            marked, text = json.loads(row["spans"]), row["text"]
            if marked and 12 <= len(text.split()) <= 24 and marked[0] > len(text) / 4:
                one = {"id": f"{file.stem} {number}", "prompt": PROMPT, "response": text, "turn": marked[0]}
                found.append(sample(one))
    return found


def sweep(tables: list[tuple[Search, list[list[bool]], list[bool]]]) -> list[dict[str, Any]]:
    """One line per threshold and k: boundaries found, and their distance in tokens from the marked span."""
    lines = []
    for k in (4, 8, 16):
        for threshold in THRESHOLDS:
            plan, distances = Plan(k=k, threshold=threshold), []
            for search, violating, judge in tables:
                boundary = true_boundary(violating, judge, plan)
                if boundary >= 0:
                    distances.append(boundary - turn_of(search))
            lines.append(
                {
                    "k": k,
                    "threshold": threshold,
                    "needed": plan.needed,
                    "rows": len(tables),
                    "found": len(distances),
                    "median_distance": median(distances) if distances else None,
                    "median_absolute": median(map(abs, distances)) if distances else None,
                    "distances": distances,
                }
            )
    return lines


def measure(options: argparse.Namespace, draws: Draws) -> list[dict[str, Any]]:
    """The sweep over one table of 16 draws per prefix."""
    folder = options.bench / "toxic_spans"
    config = TokenLabelsConfig(
        plan=Plan(k=16, mode="paper"), sampling=Sampling(max_tokens=12, temperature=0.8)
    )
    work, _ = make_work(recipe(), options.root or make_root(str(options.work / "root")), config)
    taught(work, searches(work, comments(folder / "tsd_train.csv")[:TEACHING]), options.work)
    made = searches(work, comments(folder / "tsd_trial.csv")[: options.rows])
    missing = [search for search in made if search.row["id"] not in draws.judge]
    if missing:
        draws.read_judge(work, missing)
    draw_all(work, made, draws, "toxic_spans")
    return sweep([(search, *draws.outcomes(search, 16)) for search in made])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=Path, required=True, help="the folder that holds toxic_spans")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--root", help="a root with a gen_guard and voters; default: one is made in --work")
    parser.add_argument("--work", type=Path, default=Path("build/token_labels_spans"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    draws = Draws(options.work / "draws.json", time.monotonic() + options.seconds)
    try:
        lines = measure(options, draws)
    except OutOfTime:
        print(f"stopped after {options.seconds:.0f} s; {len(draws.draws)} draws are in {options.work}")
        return
    for line in lines:
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    found = max(line["found"] for line in lines)
    claims = [
        {"name": "comments with a boundary at some threshold", "value": found, "unit": "rows",
         "goal": f">= {options.rows / 2:g}", "holds": found >= options.rows / 2},
    ]  # fmt: skip
    environment = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    if options.json:
        told = {"environment": environment, "measurements": lines, "claims": claims}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
