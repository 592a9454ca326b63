"""Both guards trained by the mill on human-labelled sets, beside simple baselines on the same rows.

    python benchmarks/guard_quality.py --bench DIR [--json FILE] [--sets prompts responses chinese onset] [--full]

    prompts    ToxicChat: prompts of real users                        F1 of the violating class
    responses  GPTFuzz: answers to attacks, grouped by their question  F1
    chinese    COLD: Chinese posts, read by an English backbone        F1
    onset      SemEval toxic spans: posts with marked characters       first flagged token against the first span

A quarter of the groups is the test set, the rest is trained on. Guards: SmolLM2-135M, its top layers trained (the
frozen ones run once), by ray_jobs.train_stream and train_gen as in any recipe, judged as `guardmill evaluate` judges
them; no threshold is fitted for anyone. With `--full` all rows, all layers and longer texts, in this one process and on
its GPU, if it has one (no Ray). The severities of the policy stand for the labels, Controversial is not taught.
Baselines (benchmarks/guard_baselines.py): balanced logistic regressions on TF-IDF and on MiniLM sentence vectors; for
onsets a lexicon and a sentence classifier. Intervals: bootstraps over whole groups. What the guards said of each test
row is kept in the folder (`KIND.told.json`), so a rerun goes on where it was, and a GPU's answers can be compared on
another machine: `--only guards` stops before the baselines.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from guard_answers import SETS, Options, Told, split, told
from guard_baselines import BASELINES, lexicon_onsets, sentence_onsets
from label_sets import arguments, claim, environment

from label.compare import average_precision, difference, mcnemar, onset_distance, onsets, token_span
from label.scores import score
from synth.policy import load_policy


def classified(name: str, answers: dict[str, list[Told]], data: Any) -> dict[str, Any]:
    """F1 and AUPRC of every system on the test rows, and each guard against each baseline.

    A row that a guard could not read counts as one that it passed.
    """
    trained, test = data
    truth = np.array([row.violating("strict") for row in test])
    groups = [row.group for row in test]
    scores = {guard: np.array([one.violating or 0.0 for one in said]) for guard, said in answers.items()}
    scores |= {baseline: fit(trained, test, name == "chinese") for baseline, fit in BASELINES.items()}
    records, pairs = [], []
    for system, said in scores.items():
        f1 = score(truth, said >= 0.5, groups)
        area = average_precision(truth, said, groups)
        records.append({"set": name, "system": system, **asdict(f1), "auprc": asdict(area)})
    for guard in answers:
        for baseline in BASELINES:
            both = scores[guard] >= 0.5, scores[baseline] >= 0.5
            gap, test_p = difference(truth, *both, groups), mcnemar(truth, *both)
            pairs.append({"set": name, "guard": guard, "baseline": baseline, **asdict(gap), "p": test_p.p})
    return {"records": records, "pairs": pairs}


def turned(answers: list[Told], data: Any) -> dict[str, Any]:
    """Where each system first flags, in the streaming guard's tokens, against the first marked span.

    The streaming guard is sure at the second of two flagged tokens; the first of the two is where it says the turn was.
    """
    trained, test = data
    pairs = [(row, one) for row, one in zip(test, answers, strict=True) if one.offsets is not None]
    kept, offsets = [row for row, _ in pairs], [np.array(one.offsets).reshape(-1, 2) for _, one in pairs]
    spans = [token_span(tokens, row.onset[0]) for row, tokens in zip(kept, offsets, strict=True)]
    found = {
        "stream, debounced": [one.onset for _, one in pairs],
        "stream, located": [None if one.onset is None else one.onset - 1 for _, one in pairs],
        "lexicon": _tokens(lexicon_onsets(trained, kept), offsets),
        "sentences": _tokens(sentence_onsets(trained, kept), offsets),
    }
    records = []
    for system, flagged in found.items():
        distances = [
            onset_distance(at, span) for at, span in zip(flagged, spans, strict=True) if span is not None
        ]
        groups = [row.group for row, span in zip(kept, spans, strict=True) if span is not None]
        records.append({"set": "onset", "system": system, **asdict(onsets(distances, groups))})
    return {"records": records, "pairs": [], "left_out": len(test) - len(kept)}


def _tokens(characters: list[int | None], offsets: list[np.ndarray]) -> list[int | None]:
    """The tokens in which characters lie."""
    return [
        None if at is None else int(np.searchsorted(tokens[:, 1], at, side="right"))
        for at, tokens in zip(characters, offsets, strict=True)
    ]


def measure(name: str, options: Options) -> dict[str, Any] | None:
    """One set's records, None where only the guards were asked for."""
    folder, plan, policy = options.folder / name, options.plan(name), load_policy("safety")
    folder.mkdir(parents=True, exist_ok=True)
    data = split(options.bench, plan)
    print(f"{name}: {len(data[0])} rows to train on, {len(data[1])} to test on", file=sys.stderr, flush=True)
    answers = {kind: told(kind, name, data, options, folder, policy) for kind in plan.guards}
    if options.only == "guards":
        return None
    found = turned(answers["stream"], data) if name == "onset" else classified(name, answers, data)
    training = {
        kind: json.loads((folder / f"{kind}.told.json").read_text())["training"] for kind in plan.guards
    }
    return {**found, "trained_on": len(data[0]), "training": training}


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
        guard = hits.pop("stream, located")
        hits.pop("stream, debounced")
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
    parser.add_argument(
        "--full", action="store_true", help="all rows and layers, in this process, on its GPU"
    )
    parser.add_argument("--only", choices=("guards",), help="stop before the baselines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/bench/guard_quality"))
    asked = parser.parse_args()
    if asked.bench is None:
        print("no --bench DIR: nothing measured", file=sys.stderr)
        return
    layers = None if asked.full else asked.layers
    options = Options(asked.bench, asked.folder, layers, asked.full, asked.only or "", asked.seed)
    measured, held = {}, []
    for name in asked.sets:
        found = measure(name, options)
        if found is None:
            continue
        measured[name] = found
        show(found)
        held += claims(name, found)
    if asked.json:
        result = {"environment": environment(), "measurements": measured, "claims": held}
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
