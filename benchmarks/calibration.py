"""Are combined labels as sure as they say, on human-labelled sets; and how fast are a million rows combined?

    python benchmarks/calibration.py --bench DIR [--json FILE] [--plots DIR]

Voters are linear heads, fitted by 5 folds of whole groups on a quarter of a set: on MiniLM vectors (balanced, or not),
on TF-IDF of words, of character n-grams, and one on MiniLM that saw a tenth of the rows. `label.vote` fits the
combination and its calibration on their out-of-fold ballots there. It is judged on the other three quarters (over 1,000
rows), by heads and a combination that saw none of them: expected calibration error over 15 bins of equal mass, plug-in
and debiased, with percentile intervals over groups; and beside it the uncalibrated majority.

Speed: a stacked combination of 5 voters and 3 severities over 1,000,000 rows, with categories (9) and refusal, in
shares of 100,000 rows as the job's units come.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from label_sets import LabelSet, arguments, claim, environment, load
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from label.calibration import calibration_error, reliability
from label.combiners import Majority
from label.folds import fold_of, splits
from label.vote import (
    Ballots,
    Combiner,
    Gold,
    combine,
    combine_categories,
    combine_refusal,
    fit_combiner,
    violating_f1,
)

SETS = ("toxicchat", "gptfuzz")
SEVERITIES = ("Safe", "Unsafe")
FLAGS = np.array([False, True])
ROWS, SHARE = 1_000_000, 100_000


def features(data: LabelSet) -> dict[str, tuple[Any, dict[str, Any], float]]:
    """Voter -> its matrix [n, D], the arguments of its regression, and the share of the fitting rows that it sees."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(data.texts)
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, sublinear_tf=True)
    vectors = (data.vectors - data.vectors.mean(axis=0)) / (data.vectors.std(axis=0) + 1e-6)
    return {
        "embed": (vectors, {"C": 0.03}, 1.0),
        "embed, balanced": (vectors, {"C": 0.03, "class_weight": "balanced"}, 1.0),
        "words": (csr_matrix(words), {"C": 10.0, "class_weight": "balanced"}, 1.0),
        "characters": (csr_matrix(grams.fit_transform(data.texts)), {"C": 10.0, "class_weight": "balanced"}, 1.0),
        "embed, few rows": (vectors, {"C": 0.03}, 0.1),
    }  # fmt: skip


def ballots(data: LabelSet, fit: np.ndarray, held: np.ndarray, seed: int) -> tuple[Ballots, Ballots]:
    """Out-of-fold ballots of the rows `fit`, and of the rows `held` by heads fitted on all of `fit`."""
    told: list[tuple[np.ndarray, np.ndarray]] = []
    named = features(data)
    folds = list(splits(fold_of([data.groups[row] for row in fit], 5, seed, "calibration")))
    rng = np.random.default_rng(seed)
    for matrix, settings, share in named.values():
        seen = rng.random(len(fit)) < share
        own = np.zeros((len(fit), 2))
        for train, test in folds:
            own[test] = answers(data, matrix, settings, fit[train[seen[train]]], fit[test])
        told.append((own, answers(data, matrix, settings, fit[seen], held)))
    return tuple(
        Ballots(tuple(named), SEVERITIES, np.stack([one[at] for one in told], axis=1)) for at in (0, 1)
    )  # type: ignore[return-value]


def answers(
    data: LabelSet, matrix: Any, settings: dict[str, Any], rows: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """[m, 2] probabilities by a regression on `rows`."""
    model = LogisticRegression(max_iter=500, **settings).fit(matrix[rows], data.violating[rows])
    return model.predict_proba(matrix[asked])


def judged(data: LabelSet, seed: int) -> dict[str, Any]:
    """One split: calibration and F1 of the combination and of the majority on the held rows."""
    quarter = fold_of(data.groups, 4, seed, "calibration split") == 0
    fit, held = np.flatnonzero(quarter), np.flatnonzero(~quarter)
    own, asked = ballots(data, fit, held, seed)
    ids, groups = tuple(str(row) for row in fit), tuple(data.groups[row] for row in fit)
    combiner = fit_combiner(
        own, Gold(ids, groups, data.violating[fit].astype(np.int64)), FLAGS.tolist(), seed=seed
    )
    labels, confidence, _ = combine(combiner, asked)
    truth = data.violating[held].astype(np.int64)
    majority = Majority().posterior(asked.severity)
    right = labels == truth
    return {
        "set": data.name,
        "seed": seed,
        "fitted_on": len(fit),
        "rows": len(held),
        "combiner": combiner.report["chosen"],
        "calibration": combiner.calibration.kind,
        **calibration_error(confidence, right),
        "interval": interval(confidence, right, [data.groups[row] for row in held], seed),
        "f1": violating_f1(truth, labels, FLAGS),
        "majority": calibration_error(majority.max(axis=1), majority.argmax(axis=1) == truth),
        "voters_f1": {
            voter: violating_f1(truth, asked.severity[:, at].argmax(axis=1), FLAGS)
            for at, voter in enumerate(asked.voters)
        },
        "majority_f1": violating_f1(truth, majority.argmax(axis=1), FLAGS),
        "reliability": reliability(confidence, right),
    }


def interval(confidence: np.ndarray, right: np.ndarray, groups: list[str], seed: int) -> list[float]:
    """95 % of the debiased error over 200 draws of whole groups."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), 200)
    drawn = (np.repeat(np.arange(len(right)), draw[index]) for draw in draws)
    errors = [calibration_error(confidence[rows], right[rows])["debiased"] for rows in drawn]
    return [float(value) for value in np.percentile(errors, [2.5, 97.5])]


def seconds_for_a_million() -> dict[str, Any]:
    """A stacked combination with categories and refusal over ROWS rows, SHARE at a time; making them is not counted."""
    rng, names = np.random.default_rng(0), ("Safe", "Controversial", "Unsafe")
    voters = tuple(f"voter-{at}" for at in range(5))
    labels = rng.integers(0, 3, 600)
    own = some_ballots(rng, voters, names, labels)
    gold = Gold(tuple(map(str, range(600))), tuple(map(str, range(600))), labels)
    combiner: Combiner = fit_combiner(own, gold, [False, True, True])
    spent = 0.0
    for _ in range(ROWS // SHARE):
        told = some_ballots(rng, voters, names, rng.integers(0, 3, SHARE))
        start = time.perf_counter()
        found, _, _ = combine(combiner, told)
        combine_categories(combiner, told, found)
        combine_refusal(combiner, told)
        spent += time.perf_counter() - start
    return {"combiner": combiner.report["chosen"], "rows": ROWS, "voters": 5, "seconds": spent}


def some_ballots(
    rng: np.random.Generator, voters: tuple[str, ...], names: tuple[str, ...], labels: np.ndarray
) -> Ballots:
    """Voters that lean to the labels, one of them silent on a tenth of the rows."""
    shape = (len(labels), len(voters))
    leaning = 1.5 * (np.arange(3) == labels[:, None])[:, None, :]
    severity = np.exp(rng.normal(size=(*shape, 3)) + leaning)
    severity /= severity.sum(axis=2, keepdims=True)
    severity[rng.random(len(labels)) < 0.1, 0] = np.nan
    return Ballots(voters, names, severity, rng.random((*shape, 9)), rng.random(shape))


def plot(records: list[dict[str, Any]], folder: Path) -> None:
    """Reliability, one line per set and split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axis = pyplot.subplots(figsize=(4.5, 4.5))
    axis.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    for record in records:
        points = record["reliability"]
        axis.plot([p["confidence"] for p in points], [p["accuracy"] for p in points], marker=".",
                  label=f"{record['set']} {record['seed']}")  # fmt: skip
    axis.set(xlabel="confidence", ylabel="share of right labels")
    axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "reliability.png", dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--plots", type=Path, help="a folder for the reliability plot")
    options = parser.parse_args()
    speed = seconds_for_a_million()
    held = [claim("a million rows of five voters combined", speed["seconds"], 60, "s", under=True)]
    records = []
    for name in options.sets if options.bench else ():
        data = load(options.bench, name)
        here = [judged(data, seed) for seed in range(options.seeds)]
        records += here
        for one in here:
            low, high = one["interval"]
            print(
                f"{name} seed {one['seed']}: {one['rows']} rows, {one['combiner']}, {one['calibration']}: "
                f"ECE {one['ece']:.3f}, debiased {one['debiased']:.3f} [{low:.3f}, {high:.3f}], F1 {one['f1']:.3f}; "
                f"majority: ECE {one['majority']['ece']:.3f}, F1 {one['majority_f1']:.3f}; "
                f"best single voter: F1 {max(one['voters_f1'].values()):.3f}"
            )
        worst = max(one["debiased"] for one in here)
        held.append(
            claim(f"{name}: debiased calibration error, worst of {len(here)} splits", worst, 0.05, under=True)
        )
    if not options.bench:
        print("no --bench DIR: calibration is not measured", file=sys.stderr)
    if options.plots and records:
        plot(records, options.plots)
    if options.json:
        told = {
            "environment": environment(),
            "measurements": {"speed": speed, "sets": records},
            "claims": held,
        }
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
