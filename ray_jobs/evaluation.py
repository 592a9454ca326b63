"""evaluation: both guards on gold rows that no step has seen, beside their shuffled-label controls and two baselines
trained on the same rows (majority; TF-IDF with logistic regression).

One row per system, side and reading, with counts and intervals; every single prediction is in `predictions`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from label.scores import score, token_severity, violations
from label.verdict import moderation_prompt, severity_answers
from ray_jobs.engine import Failure
from ray_jobs.step import Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.stream_guard import label_maps
from ray_jobs.voters import conversation, item_text
from synth.ids import row_id
from synth.policy import READINGS, Policy

EVALUATION = table_schema(
    [
        pa.field("system", pa.string()),
        pa.field("side", pa.string()),
        pa.field("reading", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("violating", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("precision", "recall", "f1", "low", "high", "macro_f1")),
    ]
)
PREDICTIONS = table_schema(
    [
        pa.field("system", pa.string()),
        pa.field("side", pa.string()),
        pa.field("truth", pa.string()),
        pa.field("severity", pa.string()),
        pa.field("probabilities", pa.list_(pa.float64())),
    ]
)
SYSTEMS = ("gen_guard", "gen_guard_control", "stream_guard", "stream_guard_control")


@dataclass(frozen=True)
class EvaluationConfig:
    """`template`: the moderation template that the generative guard was trained on."""

    template: str = "moderation_short"


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return [policy.slice_labels(), policy.slice_templates("moderation_short")]


def step(config: EvaluationConfig) -> Step:
    tables = {"evaluation": EVALUATION, "predictions": PREDICTIONS}
    roles = tuple(f"{system}?" for system in SYSTEMS)
    return Step("evaluation", run, config, tables, sides=("gold", "distilled"), roles=roles, reads=reads)


def run(work: Work) -> Output:
    """Predict with every system, then score each side in both readings."""
    rows = [row for row in work.read("gold").to_pylist() if row["split"] == "test"]
    training = work.read("distilled").to_pylist()
    output = Output({"evaluation": [], "predictions": []})
    guards = [system for system in SYSTEMS if system in work.engines.roles]
    told: dict[str, dict[str, list[float]]] = {}
    for start in range(0, len(guards), 2):  # two at a time: loading all of them at once would cost memory
        pair = guards[start : start + 2]
        work.engines.open(*pair)
        for system in pair:
            ask = ask_gen if system.startswith("gen") else ask_stream
            told[system] = ask(work, system, rows, output.failed)
        work.engines.shutdown([])
    told["tfidf"] = tfidf(work.policy, training, rows)
    told["majority"] = majority(work.policy, training, rows)
    for system, answers in told.items():
        output.tables["predictions"] += prediction_rows(work, system, rows, answers)  # type: ignore[operator]
        output.tables["evaluation"] += score_rows(work, system, rows, answers)  # type: ignore[operator]
    return output


def ask_gen(
    work: Work, system: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> dict[str, list[float]]:
    """Probabilities over the severities by row id, from one score call each."""
    policy = work.policy
    prompts: list[Any] = []
    for row in rows:
        turns = conversation(row["side"], row["prompt"], row["history"], row["response"], row["thinking"])
        text = moderation_prompt(policy, row["side"], turns, work.config.template)
        prompts.append([{"role": "user", "content": text}])
    labels = severity_answers(policy)
    answers = work.engines.get(system).score(prompts, [labels] * len(prompts))
    told = {}
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, Failure):
            failed.append(Failed(row["id"], row["group_id"], f"{system}: {answer.reason}", answer.raw))
        else:
            told[row["id"]] = list(answer.probabilities)
    return told


def ask_stream(
    work: Work, system: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> dict[str, list[float]]:
    """A prompt's verdict at the end of the user turn; a response's by its tokens, debounced, as certainty."""
    policy = work.policy
    names, order = list(policy.severity_names), label_maps(policy)["risks"]
    turns = [conversation(row["side"], row["prompt"], row["history"], row["response"]) for row in rows]
    answers = work.engines.get(system).score_tokens(turns)
    told = {}
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, Failure):
            failed.append(Failed(row["id"], row["group_id"], f"{system}: {answer.reason}", answer.raw))
        elif row["side"] == "prompt":
            told[row["id"]] = [float(answer.query_risk[order.index(name)]) for name in names]
        else:
            severity = token_severity(policy, order, answer.risk)
            told[row["id"]] = [float(name == severity) for name in names]
    return told


def tfidf(
    policy: Policy, training: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """TF-IDF of word pairs and balanced logistic regression, one model per side."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    names, told = list(policy.severity_names), {}
    for side in policy.sides:
        seen, asked = by_side(training, side), by_side(rows, side)
        if len({row["severity"] for row in seen}) < 2 or not asked:
            continue
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        X = features.fit_transform([text_of(row) for row in seen])
        model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000)
        model.fit(X, [row["severity"] for row in seen])
        for row, told_row in zip(
            asked, model.predict_proba(features.transform(map(text_of, asked))), strict=True
        ):
            known = dict(zip(model.classes_, told_row, strict=True))
            told[row["id"]] = [float(known.get(name, 0.0)) for name in names]
    return told


def majority(
    policy: Policy, training: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """Always the most frequent severity of the side's training rows."""
    told = {}
    for side in policy.sides:
        counts = [
            sum(row["severity"] == name for row in by_side(training, side)) for name in policy.severity_names
        ]
        top = int(np.argmax(counts))
        for row in by_side(rows, side):
            told[row["id"]] = [float(i == top) for i in range(len(counts))]
    return told


def by_side(rows: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["side"] == side]


def text_of(row: dict[str, Any]) -> str:
    return item_text(row["side"], row["prompt"], row["history"], row["response"])


def prediction_rows(
    work: Work, system: str, rows: list[dict[str, Any]], told: dict[str, list[float]]
) -> list[dict[str, Any]]:
    names = work.policy.severity_names
    return [
        {
            "id": row_id(row["id"], "prediction", system),
            "parent_id": row["id"],
            "group_id": row["group_id"],
            "system": system,
            "side": row["side"],
            "truth": row["severity"],
            "severity": names[int(np.argmax(told[row["id"]]))],
            "probabilities": told[row["id"]],
        }
        for row in rows
        if row["id"] in told
    ]


def score_rows(
    work: Work, system: str, rows: list[dict[str, Any]], told: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Scores per side and reading. What counts is the most probable severity."""
    policy, scored = work.policy, []
    for side in policy.sides:
        here = [row for row in by_side(rows, side) if row["id"] in told]
        said = [policy.severity_names[int(np.argmax(told[row["id"]]))] for row in here]
        groups = [row["group_id"] for row in here]
        for reading in READINGS:
            truth = violations(policy, [row["severity"] for row in here], reading)
            result = score(truth, violations(policy, said, reading), groups, seed=work.seed)
            common = {
                "id": row_id(work.identity, system, [side, reading]),
                "parent_id": "",
                "group_id": work.identity,
            }
            scored.append(common | {"system": system, "side": side, "reading": reading} | asdict(result))
    return scored


if __name__ == "__main__":
    from ray_jobs.job import main

    main("evaluation")
