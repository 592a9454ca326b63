"""Loose and strict readings: what the ratio of safe to violating training rows does, and whether two readings pay.

    python benchmarks/readings.py --bench DIR [--json FILE] [--plots DIR]

Sets: ToxicChat's human-labelled part, and our gold prompts. A third of the groups is the test set, a sixth the
validation set. `label.controversial` sweeps its ratios there and chooses loose and strict as the mill does (keep 0.9).
The model is the mill's: a linear classifier on MiniLM vectors. Then, on the test rows:

    curve     a model per ratio on all training rows: precision, recall and F1 of the safe and of the violating class
    binary    one model on all training rows as they come: what there is without readings
    loose, strict   the models of the two chosen ratios
    best      the better of the two by validation F1, so that choosing costs nothing of the honesty; the report's "best
              of strict and loose" is chosen on the test set itself and stands beside it ("best on test")

and, on the whole gold set, the three-way vote of cross-annotation against the severities: how often a row on which the
readings differ is one that is labelled Controversial.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from label_sets import LabelSet, arguments, claim, environment, gold_prompts, load

from label.compare import difference
from label.controversial import (
    CONTROVERSIAL,
    RATIOS,
    Ratios,
    choose_ratios,
    cross_annotate,
    sample_by_ratio,
    sweep,
)
from label.folds import fold_of
from label.scores import score
from ray_jobs.controversial import binary
from ray_jobs.relabel import linear_probabilities

KEEP = 0.9


def split(data: LabelSet, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train, validation, test) rows, whole groups."""
    part = fold_of(data.groups, 6, seed, "readings")
    return np.flatnonzero(part > 2), np.flatnonzero(part == 2), np.flatnonzero(part < 2)


def flags_at(data: LabelSet, train: np.ndarray, test: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """[test] flags of a model whose training rows are thinned to the ratio (0: as they come)."""
    rows = train
    if ratio:
        ids = [str(row) for row in train]
        rows = train[sample_by_ratio(ids, data.violating[train], ratio, seed)]
    return binary(linear_probabilities(data.vectors, 2))(rows, data.violating[rows], test) >= 0.5


def point(truth: np.ndarray, flagged: np.ndarray, groups: list[str]) -> dict[str, float]:
    """Both classes' precision, recall and F1, and the share flagged."""
    violating, safe = score(truth, flagged, groups, 200), score(~truth, ~flagged, groups, 200)
    return {
        "flagged": float(flagged.mean()),
        **{
            f"{name}_violating": getattr(violating, name)
            for name in ("precision", "recall", "f1", "low", "high")
        },
        **{f"{name}_safe": getattr(safe, name) for name in ("precision", "recall", "f1")},
    }


def chosen(data: LabelSet, train: np.ndarray, validation: np.ndarray, seed: int) -> Ratios:
    """The mill's choice on the validation rows."""
    rows = np.concatenate([train, validation])
    held = np.arange(len(train), len(rows))
    fit = binary(linear_probabilities(data.vectors[rows], 2))
    ids, groups = [str(row) for row in rows], [data.groups[row] for row in rows]
    return choose_ratios(
        sweep(ids, groups, data.violating[rows].tolist(), held.tolist(), fit, seed=seed), KEEP
    )


def measure(data: LabelSet, seed: int) -> dict[str, Any]:
    """One split of one set."""
    train, validation, test = split(data, seed)
    ratios = chosen(data, train, validation, seed)
    truth, groups = data.violating[test], [data.groups[row] for row in test]
    flags = {f"{ratio:g}": flags_at(data, train, test, ratio, seed) for ratio in RATIOS}
    plain = flags_at(data, train, test, 0, seed)
    told = {ratio: point(truth, said, groups) for ratio, said in flags.items()}
    loose, strict = f"{ratios.loose:g}", f"{ratios.strict:g}"
    on_validation = {f"{p.ratio:g}": p.f1_violating for p in ratios.points}
    best = max((loose, strict), key=lambda ratio: on_validation[ratio])
    gap = difference(truth, flags[best], plain, groups, 500, seed)
    return {
        "set": data.name,
        "seed": seed,
        "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
        "violating": float(data.violating.mean()),
        "loose": ratios.loose,
        "strict": ratios.strict,
        "curve": told,
        "binary": point(truth, plain, groups),
        "best": told[best],
        "best_ratio": float(best),
        "best_on_test": max(told[loose]["f1_violating"], told[strict]["f1_violating"]),
        "best_minus_binary": asdict(gap),
    }


def controversies(data: LabelSet, severities: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Cross-annotation of the whole gold set in its loose labels: do readings differ where people say Controversial?"""
    unsafe = [name == "Unsafe" for name in severities]
    train, validation, _ = split(data, seed)
    ratios = chosen(data, train, validation, seed)
    ids = [str(row) for row in range(len(severities))]
    told = cross_annotate(
        ids, data.groups, unsafe, ratios, binary(linear_probabilities(data.vectors, 2)), seed
    )
    differ = told.vote == CONTROVERSIAL
    people = np.array([name == "Controversial" for name in severities])
    return {
        "seed": seed,
        "differ": float(differ.mean()),
        "controversial": float(people.mean()),
        "controversial_among_differing": float(people[differ].mean()) if differ.any() else None,
        "differing_among_controversial": float(differ[people].mean()),
        "crossed": told.crossed,
    }


def plot(records: list[dict[str, Any]], folder: Path) -> None:
    """Per set: F1 of both classes and the share flagged over the ratio, means over the splits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(record["set"] for record in records):
        here = [record for record in records if record["set"] == name]
        figure, axis = pyplot.subplots(figsize=(6, 3.8))
        for key, words in (("f1_violating", "F1, violating"), ("f1_safe", "F1, safe"), ("precision_violating",
                           "precision, violating"), ("recall_violating", "recall, violating")):  # fmt: skip
            means = [np.mean([record["curve"][f"{ratio:g}"][key] for record in here]) for ratio in RATIOS]
            axis.plot(RATIOS, means, marker="o", label=words)
        plain = np.mean([record["binary"]["f1_violating"] for record in here])
        axis.axhline(plain, color="grey", linestyle=":", label="F1, violating, binary model")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="safe rows per violating row in training", title=name)
        axis.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(folder / f"readings_{name}.png", dpi=120)
        pyplot.close(figure)


def show(records: list[dict[str, Any]]) -> None:
    """Means over the splits of each set."""
    for name in dict.fromkeys(record["set"] for record in records):
        here = [record for record in records if record["set"] == name]
        print(f"{name}: {here[0]['rows']}, {here[0]['violating']:.0%} violating, {len(here)} splits")
        print("  ratio  flagged   P viol   R viol  F1 viol   P safe   R safe  F1 safe")
        keys = ("flagged", "precision_violating", "recall_violating", "f1_violating", "precision_safe", "recall_safe",
                "f1_safe")  # fmt: skip
        lines = [(f"{r:g}", [record["curve"][f"{r:g}"] for record in here]) for r in RATIOS]
        lines += [
            ("binary", [record["binary"] for record in here]),
            ("best", [record["best"] for record in here]),
        ]
        for words, points in lines:
            print(f"  {words:<6}" + "".join(f"{np.mean([p[key] for p in points]):9.3f}" for key in keys))
        print(f"  best on test: F1 viol {np.mean([record['best_on_test'] for record in here]):.3f}")
        print(f"  chosen: loose {[r['loose'] for r in here]}, strict {[r['strict'] for r in here]}")


def claims(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best of strict and loose against the binary model, over splits."""
    held = []
    for name in dict.fromkeys(record["set"] for record in records):
        here = [record for record in records if record["set"] == name]
        gaps = np.array([record["best_minus_binary"]["value"] for record in here])
        spread = f"± {1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5:.3f}" if len(gaps) > 1 else ""
        held.append(claim(f"{name}: F1 of the better reading (by validation) over the binary model", float(gaps.mean()),
                          0.0, spread))  # fmt: skip
        late = [record["best_on_test"] - record["binary"]["f1_violating"] for record in here]
        words = f"{name}: F1 of the better reading, chosen on the test set as the report does, over the binary model"
        held.append(claim(words, float(np.mean(late)), 0.0))
        flagged = [[record["curve"][f"{ratio:g}"]["flagged"] for ratio in RATIOS] for record in here]
        falling = float(np.mean([np.all(np.diff(line) <= 0.01) for line in flagged]))
        held.append(claim(f"{name}: splits in which more safe rows never flag over 1 % more", falling, 0.8))
    return held


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plots", type=Path, help="a folder for the curves")
    options = parser.parse_args()
    gold, severities = gold_prompts()
    sets = [gold, *([load(options.bench, "toxicchat")] if options.bench else [])]
    if not options.bench:
        print("no --bench DIR: only our gold set", file=sys.stderr)
    records = [measure(data, seed) for data in sets for seed in range(options.seeds)]
    found = [controversies(gold, severities, seed) for seed in range(options.seeds)]
    show(records)
    means = {key: float(np.mean([one[key] or 0 for one in found])) for key in found[0] if key != "seed"}
    print(
        f"gold, cross-annotated in the loose labels: readings differ on {means['differ']:.1%} of the rows; of these "
        f"{means['controversial_among_differing']:.1%} are labelled Controversial, of all {means['controversial']:.1%}"
    )
    held = claims(records)
    held.append(claim("gold: share of Controversial where readings differ over its share in all",
                      means["controversial_among_differing"] / means["controversial"], 1.0, "x"))  # fmt: skip
    if options.plots:
        plot(records, options.plots)
    if options.json:
        measured = {"splits": records, "controversies": found}
        told = {"environment": environment(), "measurements": measured, "claims": held}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
