"""Both guards trained by the mill on human-labelled sets, beside simple baselines on the same rows.

    python benchmarks/guard_quality.py --bench DIR [--json FILE] [--sets prompts responses chinese onset]

    prompts    ToxicChat: prompts of real users                        F1 of the violating class
    responses  GPTFuzz: answers to attacks, grouped by their question  F1
    chinese    COLD: Chinese posts, read by an English backbone        F1
    onset      SemEval toxic spans: posts with marked characters       first flagged token against the first span

A quarter of the groups is the test set, the rest is trained on. Guards: SmolLM2-135M, its top layers trained (the
frozen ones run once), by ray_jobs.train_stream and train_gen as in any recipe, judged as `guardmill evaluate` judges
them; no threshold is fitted for anyone. The severities of the policy stand for the labels, Controversial is not taught.
Baselines (benchmarks/guard_baselines.py): balanced logistic regressions on TF-IDF and on MiniLM sentence vectors; for
onsets a lexicon and a sentence classifier. Intervals: bootstraps over whole groups. A set's trainings and figures are
kept in the folder, and a rerun goes on where it was.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from guard_baselines import BASELINES, lexicon_onsets, sentence_onsets
from label_sets import arguments, claim, environment

from label.compare import average_precision, difference, mcnemar, onset_distance, onsets, token_span
from label.folds import fold_of
from label.scores import score
from ray_jobs.engine.weights import SMOLLM2, locate
from ray_jobs.eval_formats import EvalRow, read_file
from ray_jobs.file_guards import Checkpoint, Judgement, judge
from ray_jobs.file_scores import sampled
from ray_jobs.file_training import examples
from ray_jobs.stream_guard import label_maps
from synth.policy import Policy, load_policy

TEMPLATE = "moderation_short"


@dataclass(frozen=True)
class Plan:
    """A set's file, how many of its rows are used (None: all), and how its guards are trained."""

    file: str
    format: str
    guards: tuple[str, ...]
    rows: int | None = None
    epochs: int = 4
    lr: float = 2e-4
    max_length: int = 256


SETS = {
    "prompts": Plan("toxicchat_human/toxic_chat_train.json", "toxic-chat", ("stream", "gen")),
    "responses": Plan("gptfuzz_labeled/train.csv", "gptfuzz", ("stream", "gen"), rows=2000, epochs=3),
    "chinese": Plan("cold_zh/dev.csv", "cold", ("stream",), rows=2000, epochs=3),
    "onset": Plan("toxic_spans/tsd_train.csv", "toxic-spans", ("stream",), rows=3000, epochs=3),
}


def split(bench: Path, plan: Plan) -> tuple[list[EvalRow], list[EvalRow]]:
    """Rows to train on and to test on, by group."""
    rows = [
        row
        for row in read_file(str(bench / plan.file), plan.format).rows
        if row.violates is not None and (plan.format != "toxic-spans" or row.onset)
    ]
    rows = sampled(rows, plan.rows, seed=0)
    test = fold_of([row.group for row in rows], 4, 0, "guard quality") == 0
    return [r for r, t in zip(rows, test, strict=True) if not t], [
        r for r, t in zip(rows, test, strict=True) if t
    ]


def train(kind: str, rows: list[EvalRow], plan: Plan, layers: int, folder: Path, policy: Policy) -> str:
    """The folder of a trained guard; one that is there already is taken."""
    from ray_jobs.train_gen import train_gen
    from ray_jobs.train_stream import train_stream
    from train.fit_config import GenConfig, StreamConfig

    common: dict[str, Any] = {
        "backbone": str(locate(SMOLLM2)), "epochs": plan.epochs, "lr": plan.lr, "train_layers": layers,
        "batch_tokens": 1024, "max_length": plan.max_length, "class_balance": "sqrt", "patience": plan.epochs,
        "seed": 0,
    }  # fmt: skip
    config = (
        GenConfig(**common) if kind == "gen" else StreamConfig(**common, **label_maps(policy), inner_size=256)
    )
    trainer: Any = train_gen if kind == "gen" else train_stream
    provenance = {"policy_id": policy.id, "policy": policy.hash, "template": TEMPLATE}
    made = trainer(
        examples(kind, rows, policy, TEMPLATE), config, folder / kind, provenance=provenance, control=False
    )
    return str(made.path)


def classified(name: str, plan: Plan, folders: dict[str, str], data: Any, policy: Policy) -> dict[str, Any]:
    """F1 and AUPRC of every system on the test rows, and each guard against each baseline."""
    trained, test = data
    truth = np.array([row.violating("strict") for row in test])
    groups = [row.group for row in test]
    scores: dict[str, np.ndarray] = {}
    for guard, folder in folders.items():
        told = judge(Checkpoint(folder, guard, policy, TEMPLATE), test)
        scores[guard] = np.array([_probability(one) for one in told])
    for baseline, fit in BASELINES.items():
        scores[baseline] = fit(trained, test, name == "chinese")
    records, pairs = [], []
    for system, said in scores.items():
        f1 = score(truth, said >= 0.5, groups)
        area = average_precision(truth, said, groups)
        records.append({"set": name, "system": system, **asdict(f1), "auprc": asdict(area)})
    for guard in folders:
        for baseline in BASELINES:
            both = scores[guard] >= 0.5, scores[baseline] >= 0.5
            gap, test_p = difference(truth, *both, groups), mcnemar(truth, *both)
            pairs.append({"set": name, "guard": guard, "baseline": baseline, **asdict(gap), "p": test_p.p})
    return {"records": records, "pairs": pairs, "trained_on": len(trained)}


def _probability(told: Any) -> float:
    """How surely a row violates; a row that the guard could not read counts as one that it passed."""
    return told.violating["strict"] if isinstance(told, Judgement) else 0.0


def turned(folder: str, data: Any, policy: Policy) -> dict[str, Any]:
    """Where each system first flags, in the streaming guard's tokens, against the first marked span."""
    trained, test = data
    judged = judge(Checkpoint(folder, "stream", policy, TEMPLATE), test)
    told: list[Judgement] = [one for one in judged if isinstance(one, Judgement)]
    kept = [row for row, one in zip(test, judged, strict=True) if isinstance(one, Judgement)]
    spans = [token_span(one.offsets, row.onset[0]) for row, one in zip(kept, told, strict=True)]
    found = {
        "stream, debounced": [one.onset["strict"] if one.onset else None for one in told],
        "lexicon": _tokens(lexicon_onsets(trained, kept), told),
        "sentences": _tokens(sentence_onsets(trained, kept), told),
    }
    records = []
    for system, flagged in found.items():
        distances = [
            onset_distance(at, span) for at, span in zip(flagged, spans, strict=True) if span is not None
        ]
        groups = [row.group for row, span in zip(kept, spans, strict=True) if span is not None]
        records.append({"set": "onset", "system": system, **asdict(onsets(distances, groups))})
    return {"records": records, "pairs": [], "trained_on": len(trained), "left_out": len(test) - len(kept)}


def _tokens(characters: list[int | None], told: list[Judgement]) -> list[int | None]:
    """The tokens in which characters lie."""
    return [
        None
        if at is None or one.offsets is None
        else int(np.searchsorted(one.offsets[:, 1], at, side="right"))
        for at, one in zip(characters, told, strict=True)
    ]


def measure(name: str, bench: Path, folder: Path, layers: int) -> dict[str, Any]:
    """One set's records, from its file if it was measured before."""
    kept, plan, policy = folder / "figures.json", SETS[name], load_policy("safety")
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    data = split(bench, plan)
    print(f"{name}: {len(data[0])} rows to train on, {len(data[1])} to test on", file=sys.stderr)
    folders = {kind: train(kind, data[0], plan, layers, folder, policy) for kind in plan.guards}
    found = (
        turned(folders["stream"], data, policy)
        if name == "onset"
        else classified(name, plan, folders, data, policy)
    )
    told = {kind: json.loads((Path(at) / "guardmill.json").read_text()) for kind, at in folders.items()}
    found["training"] = {kind: {"config": each["config"], **each["metrics"]} for kind, each in told.items()}
    kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def show(found: dict[str, Any]) -> None:
    for one in found["records"]:
        if "f1" in one:
            area = one["auprc"]["value"]
            print(
                f"{one['set']:<10} {one['system']:<18} F1 {one['f1']:.3f} [{one['low']:.3f}, {one['high']:.3f}]  "
                f"precision {one['precision']:.3f}  recall {one['recall']:.3f}  AUPRC {area:.3f}"
            )
        else:
            bins = "  ".join(f"{bin} {count}" for bin, count in one["bins"].items())
            hit = one["hit"]
            told = f"hit {hit['value']:.3f} [{hit['low']:.3f}, {hit['high']:.3f}]"
            print(f"{one['set']:<10} {one['system']:<18} {told}  {bins}")


def claims(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The better guard of a set ahead of each baseline."""
    if name == "onset":
        hits = {one["system"]: one["hit"]["value"] for one in found["records"]}
        guard = hits.pop("stream, debounced")
        return [claim(f"onset hit: stream over {other}", guard - hit, 0.0) for other, hit in hits.items()]
    best = {}
    for pair in found["pairs"]:
        known = best.get(pair["baseline"])
        best[pair["baseline"]] = pair if known is None or pair["value"] > known["value"] else known
    return [
        claim(
            f"{name}: F1 of {pair['guard']} over {baseline}",
            pair["value"],
            0.0,
            f"[{pair['low']:.3f}, {pair['high']:.3f}]",
        )
        for baseline, pair in best.items()
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--layers", type=int, default=12, help="of the backbone's 30 that are trained")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/guard_quality"))
    options = parser.parse_args()
    if options.bench is None:
        print("no --bench DIR: nothing measured", file=sys.stderr)
        return
    measured, held = {}, []
    for name in options.sets:
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        measured[name] = measure(name, options.bench, folder, options.layers)
        show(measured[name])
        held += claims(name, measured[name])
    if options.json:
        told = {"environment": environment(), "measurements": measured, "claims": held}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
