"""What a voter of a size that runs on two cores can know of the safety policy's gold prompts.

    python benchmarks/voters.py --root ROOT [--folder DIR] [--json FILE]

The gold rows were written so that words do not give their labels away. A quarter of their groups is the test set. On
the rest, and on the rows that the finished run ROOT was given with a label (seeds), are fitted:

* a logistic head on the vectors of multilingual-e5-small, as the recipe `local` has it, on an eighth, a quarter, a half
  and all of the gold rows; and on MiniLM's;
* the same encoder with its upper layers trained (features "tuned", a few minutes);
* SmolLM2-135M as a generative guard, its top layers trained (some twenty minutes), as `guardmill train gen` makes one
  and as any recipe can bind it as a voter.

Nothing is fitted on the test rows. `surest`: F1 on the 80 % of them that a voter is surest of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from guard_answers import TEMPLATE, Options, Plan, train
from label_sets import claim, environment, kept, multilingual, sentences
from sentence_transformers import SentenceTransformer
from sklearn.metrics import roc_auc_score

from label.folds import fold_of
from label.scores import score
from ray_jobs.engine import head
from ray_jobs.engine.weights import locate
from ray_jobs.eval_formats import EvalRow
from ray_jobs.file_guards import Checkpoint, Judgement, judge
from ray_jobs.store import Store
from synth.policy import Policy, load_gold, load_policy
from train.encoder import EncoderConfig, EncoderTrainer

SHARES = (0.125, 0.25, 0.5, 1.0)
SURE, DRAWS = 0.8, 3


def split(policy: Policy, root: str) -> tuple[list[EvalRow], list[EvalRow], list[EvalRow]]:
    """Gold rows to fit on, written rows, and gold rows to test on."""
    gold = [row for row in load_gold(policy) if row.side == "prompt" and not row.history]
    seen = {row.prompt.casefold() for row in gold}
    written = [
        row
        for row in Store(root).read("seeds").to_pylist()
        if row["human"] and not row["history"] and row["text"].casefold() not in seen
    ]
    rows = [_row(policy, r.prompt, r.severity, r.group_id, r.language) for r in gold]
    test = fold_of([row.group for row in rows], 4, 0, "voter") == 0
    return (
        [row for row, tested in zip(rows, test, strict=True) if not tested],
        [_row(policy, r["text"], r["human"], r["group_id"], r["language"]) for r in written],
        [row for row, tested in zip(rows, test, strict=True) if tested],
    )


def _row(policy: Policy, text: str, severity: str, group: str, language: str) -> EvalRow:
    kinds = {one.name: one.violating for one in policy.severities}
    return EvalRow("prompt", text, kinds[severity], group, severity=severity, language=language)


def truth(rows: list[EvalRow]) -> np.ndarray:
    return np.array([row.violating("strict") for row in rows])


def heads(
    fitted_on: list[EvalRow], written: list[EvalRow], test: list[EvalRow], policy: Policy
) -> dict[str, np.ndarray]:
    """[draws, n] probabilities on the test rows, by what the head was fitted on."""
    texts = tuple(row.prompt for row in [*fitted_on, *written, *test])
    gold, cut = len(fitted_on), len(fitted_on) + len(written)
    labels = severities([*fitted_on, *written], policy)
    e5, told = kept(multilingual, texts), {}
    for added, rest in (("gold", np.arange(0)), ("gold and written", np.arange(gold, cut))):
        for share in SHARES:
            draws = []
            for seed in range(DRAWS):
                chosen = np.random.default_rng(seed).choice(gold, round(share * gold), replace=False)
                taken = np.concatenate([chosen, rest])
                draws.append(by_head(e5[taken], labels[taken], e5[cut:], policy))
            told[f"head on E5, {round(share * gold)} {added}"] = np.stack(draws)
    minilm = kept(sentences, texts)
    told[f"head on MiniLM, {gold} gold and written"] = by_head(minilm[:cut], labels, minilm[cut:], policy)[
        None
    ]
    tuned = trained(texts, labels, policy)
    told[f"head on trained E5, {gold} gold and written"] = by_head(tuned[:cut], labels, tuned[cut:], policy)[
        None
    ]
    return told


def severities(rows: list[EvalRow], policy: Policy) -> np.ndarray:
    return np.array([policy.severity_names.index(row.severity) for row in rows])


def by_head(vectors: np.ndarray, labels: np.ndarray, asked: np.ndarray, policy: Policy) -> np.ndarray:
    """[n] probabilities of violating for the vectors `asked`, by a head on the others."""
    names = policy.severity_names
    fitted = head.fit(vectors, [head.Output("severity", names)], {"severity": labels}, "embed")
    violating = [policy.violates(name, "strict") for name in names]
    return fitted.predict(asked)["severity"][:, violating].sum(axis=1)


def trained(texts: tuple[str, ...], labels: np.ndarray, policy: Policy) -> np.ndarray:
    """[n, D] vectors of E5 after its upper layers were trained on the first texts, which have labels."""
    encoder = SentenceTransformer(locate("multilingual-e5-small"), device="cpu")
    trainer = EncoderTrainer(encoder, texts, EncoderConfig())
    known = np.concatenate([labels, np.full(len(texts) - len(labels), -1)])
    trainer.fit({"severity": known})
    return trainer.vectors()


def guard(rows: list[EvalRow], test: list[EvalRow], policy: Policy, folder: Path, layers: int) -> np.ndarray:
    """[n] probabilities of a guard that is trained on `rows`, if `folder` does not have it yet."""
    options = Options(Path(), folder, layers, full=False, only="", seed=0)
    at = train("gen", rows, Plan("", "", ("gen",), epochs=3), options, folder, policy)
    told = judge(Checkpoint(at, "gen", policy, TEMPLATE), test)
    return np.array([one.violating["strict"] if isinstance(one, Judgement) else 0.5 for one in told])


def measured(system: str, draws: np.ndarray, test: list[EvalRow]) -> list[dict[str, Any]]:
    """AUC, F1 at a half and F1 on the surest rows, means over the draws; of all languages, and of English."""
    found = []
    for language in ("all", "en"):
        chosen = np.array([language in ("all", row.language) for row in test])
        here, labels = draws[:, chosen], truth(test)[chosen]
        groups = [row.group for row, taken in zip(test, chosen, strict=True) if taken]
        sure = [np.argsort(-np.abs(one - 0.5), kind="stable")[: round(SURE * len(one))] for one in here]
        f1 = [score(labels, one >= 0.5, groups) for one in here]
        surest = [
            score(labels[s], one[s] >= 0.5, [groups[i] for i in s]) for one, s in zip(here, sure, strict=True)
        ]
        found.append(
            {"system": system, "language": language, "rows": int(chosen.sum())}
            | {"auc": float(np.mean([roc_auc_score(labels, one) for one in here]))}
            | {f"f1_{part}": float(np.mean([getattr(s, part) for s in f1])) for part in ("f1", "low", "high")}
            | {
                f"surest_{part}": float(np.mean([getattr(s, part) for s in surest]))
                for part in ("f1", "low", "high")
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="a finished run of the safety policy")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/voters"))
    parser.add_argument("--layers", type=int, default=12, help="of the backbone's 30 that are trained")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    policy = load_policy("safety")
    gold, written, test = split(policy, asked.root)
    told = heads(gold, written, test, policy)
    tuned = guard([*gold, *written], test, policy, asked.folder, asked.layers)[None]
    told[f"guard, {len(gold)} gold and written"] = tuned
    learnt = told[f"head on trained E5, {len(gold)} gold and written"]
    told["mean of guard and trained E5"] = (tuned + learnt) / 2
    told["mean of those and head on E5"] = (
        tuned + learnt + told[f"head on E5, {len(gold)} gold and written"][:1]
    ) / 3
    told["every prompt violates"] = np.ones((1, len(test)))
    records = [one for system, draws in told.items() for one in measured(system, draws, test)]
    print(f"{len(gold)} gold rows and {len(written)} written ones to fit on, {len(test)} to test on")
    for one in records:
        print(
            f"{one['system']:<40} {one['language']:<3} {one['rows']:>4} rows  AUC {one['auc']:.3f}  "
            f"F1 {one['f1_f1']:.3f} [{one['f1_low']:.3f}, {one['f1_high']:.3f}]  "
            f"surest {one['surest_f1']:.3f} [{one['surest_low']:.3f}, {one['surest_high']:.3f}]"
        )
    best = max(one["surest_f1"] for one in records if one["language"] == "all")
    held = [claim("F1 on the surest 80 % of gold prompts, best voter", best, 0.9)]
    if asked.json:
        result = {"environment": environment(), "measurements": records, "claims": held}
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
