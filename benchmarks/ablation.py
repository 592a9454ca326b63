"""Did finding controversies and distilling noise pay? The same rows under four labellings, the same guard on each.

    python benchmarks/ablation.py --root ROOT [--json FILE] [--seeds N]

ROOT is a finished run (`guardmill run local`). Its rows (votes and translations, without those that abstained) are
labelled as below; labels that people gave, seeds among them, stand in every arm, as in the mill

    votes            as voted
    controversial    then cross-annotated by a loose and a strict reading (label.controversial)
    distilled        instead relabelled and thinned by a cross-fitted teacher (label.distill)
    both             cross-annotated, then distilled: what the recipe does

and a guard of the same kind is trained on each: a linear three-way classifier on MiniLM vectors, one per side, which is
the mill's local trainer; a fine-tuned guard would take hours here for the same comparison. A seed draws the halves, the
folds and a bootstrap of the training groups, the same draw for all four. Scores are on the run's gold test rows, which
no step has read: F1 strict and loose, macro F1, with intervals over groups; differences are paired within a seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from label_sets import claim, environment, kept, sentences

from label.controversial import CONTROVERSIAL, SAFE, choose_ratios, cross_annotate, sweep
from label.distill import DROP, Rules, distill
from label.scores import score, violations
from ray_jobs.controversial import binary
from ray_jobs.relabel import linear_probabilities
from ray_jobs.store import Store
from ray_jobs.voters import item_text
from synth.policy import READINGS, Policy, load_policy

ARMS = ("votes", "controversial", "distilled", "both")
COLUMNS = ["id", "group_id", "side", "prompt", "history", "response", "severity"]
ROW = [*COLUMNS, "origin", "abstain"]


class Side:
    """One side of a run: training rows, gold rows of either split, and the vectors of all."""

    def __init__(self, policy: Policy, rows: list[dict[str, Any]], gold: list[dict[str, Any]]) -> None:
        self.policy, self.rows = policy, rows
        self.fit = [row for row in gold if row["split"] == "fit"]
        self.test = [row for row in gold if row["split"] == "test"]
        every = [*rows, *self.fit, *self.test]
        texts = [item_text(r["side"], r["prompt"], r["history"], r["response"]) for r in every]
        self.vectors = kept(sentences, tuple(texts))
        self.names = list(policy.severity_names)
        self.given = np.array([self.names.index(row["severity"]) for row in rows])
        self.groups = [row["group_id"] for row in rows]
        self.ids = [row["id"] for row in rows]
        self.human = np.array([row["origin"] == "human" for row in rows])
        self.first_test = len(rows) + len(self.fit)


def sides(root: str, policy: Policy) -> dict[str, Side]:
    """The run's rows by side. Rows that abstained train nothing."""
    store = Store(root)
    rows: list[dict[str, Any]] = []
    for name in ("votes", "translations"):
        if name in store.tables():
            rows += store.read(name, columns=ROW, filter="abstain = false").to_pylist()
    gold = store.read("gold", columns=[*COLUMNS, "split"]).to_pylist()
    found = {}
    for side in policy.sides:
        here = [row for row in rows if row["side"] == side]
        flags = violations(policy, [row["severity"] for row in here], "strict")
        if min(flags.sum(), (~flags).sum()) >= 20:
            found[side] = Side(policy, here, [row for row in gold if row["side"] == side])
        else:
            print(
                f"{side}s: {len(here)} voted rows, {int(flags.sum())} violating: too few to compare",
                file=sys.stderr,
            )
    return found


def cross_annotated(side: Side, seed: int) -> np.ndarray:
    """[n] severities after the three-way vote, by the rules of ray_jobs.controversial."""
    policy, pool = side.policy, [*side.rows, *side.fit]
    flags = violations(policy, [row["severity"] for row in pool], "strict").tolist()
    fit_predict = binary(linear_probabilities(side.vectors, 2))
    ids, groups = [row["id"] for row in pool], [row["group_id"] for row in pool]
    n = len(side.rows)
    ratios = choose_ratios(sweep(ids, groups, flags, range(n, len(pool)), fit_predict, seed=seed))
    vote = cross_annotate(side.ids, side.groups, flags[:n], ratios, fit_predict, seed).vote
    between = max(at for at, level in enumerate(policy.severities) if level.violating == "strict")
    crossed = np.where(vote == CONTROVERSIAL, between, np.where(vote == SAFE, 0, len(side.names) - 1))
    return np.where(side.human, side.given, crossed)


def distilled(side: Side, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels [n], kept [n]) after the cross-fitted teacher."""
    teach = linear_probabilities(side.vectors, len(side.names))
    found = distill(side.ids, side.groups, labels.tolist(), side.human.tolist(), teach, Rules(), seed)
    return found.labels, np.array([action != DROP for action in found.actions])


def labelled(side: Side, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arm -> (labels, rows kept)."""
    every = np.ones(len(side.rows), dtype=bool)
    crossed = cross_annotated(side, seed)
    return {
        "votes": (side.given, every),
        "controversial": (crossed, every),
        "distilled": distilled(side, side.given, seed),
        "both": distilled(side, crossed, seed),
    }


def guard(side: Side, labels: np.ndarray, rows: np.ndarray) -> list[str]:
    """Severities of the test rows by a guard trained on some rows."""
    asked = np.arange(side.first_test, len(side.vectors))
    told = linear_probabilities(side.vectors, len(side.names))(rows, labels[rows], asked)
    return [side.names[at] for at in told.argmax(axis=1)]


def measure(side: Side, name: str, seed: int) -> list[dict[str, Any]]:
    """One record per arm and reading."""
    names, index = np.unique(np.asarray(side.groups), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)))[index]
    truth = [row["severity"] for row in side.test]
    groups = [row["group_id"] for row in side.test]
    records = []
    for arm, (labels, keep) in labelled(side, seed).items():
        rows = np.repeat(np.arange(len(labels)), np.where(keep, drawn, 0))
        said = guard(side, labels, rows)
        for reading in READINGS:
            told = score(*(violations(side.policy, s, reading) for s in (truth, said)), groups, 300)
            figures = {
                key: getattr(told, key) for key in ("f1", "low", "high", "macro_f1", "precision", "recall")
            }
            changed = float((labels != side.given).mean())
            where = {"side": name, "seed": seed, "arm": arm, "reading": reading, "rows": int(keep.sum()),
                     "by_people": int(side.human.sum())}  # fmt: skip
            records.append(where | {"changed": changed} | figures)
    return records


def verdicts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per side, reading and step: the paired difference of macro F1 over seeds, said in words and as a claim."""
    held = []
    for side in dict.fromkeys(record["side"] for record in records):
        for reading in READINGS:
            by = {
                arm: np.array([r["macro_f1"] for r in records
                               if (r["side"], r["reading"], r["arm"]) == (side, reading, arm)])
                for arm in ARMS
            }  # fmt: skip
            for arm in ARMS[1:]:
                gaps = by[arm] - by["votes"]
                spread = 1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5
                word = (
                    "paid" if gaps.mean() > spread else "cost" if -gaps.mean() > spread else "settled nothing"
                )
                told = f"macro F1 {gaps.mean():+.3f} ± {spread:.3f} over {len(gaps)} seeds"
                print(f"{side}s, {reading}: {arm} {word}: {told}")
                name = f"{side}s, {reading}: macro F1 of {arm} over votes only"
                held.append(claim(name, float(gaps.mean()), 0.0, f"± {spread:.3f}"))
    return held


def show(records: list[dict[str, Any]]) -> None:
    """Means over the seeds."""
    print("side      reading labels           rows  changed     F1 interval, seed 0  macro")
    for side in dict.fromkeys(record["side"] for record in records):
        for reading in READINGS:
            for arm in ARMS:
                here = [r for r in records if (r["side"], r["reading"], r["arm"]) == (side, reading, arm)]
                mean = {key: np.mean([r[key] for r in here]) for key in ("rows", "changed", "f1", "macro_f1")}
                span = f"{here[0]['low']:.3f}–{here[0]['high']:.3f}"
                print(f"{side:<9} {reading:<7} {arm:<14} {mean['rows']:6.0f} {mean['changed']:8.1%} {mean['f1']:6.3f} "
                      f"{span:>16} {mean['macro_f1']:6.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", help="a finished run; nothing is measured without")
    parser.add_argument("--policy", default="safety")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write {environment, measurements, claims} here")
    options = parser.parse_args()
    if options.root is None:
        print("no --root of a finished run: nothing measured", file=sys.stderr)
        return
    found = sides(options.root, load_policy(options.policy))
    records = [
        one
        for name, side in found.items()
        for seed in range(options.seeds)
        for one in measure(side, name, seed)
    ]
    show(records)
    held = verdicts(records)
    if options.json:
        told = {
            "environment": environment() | {"seeds": options.seeds},
            "measurements": records,
            "claims": held,
        }
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
