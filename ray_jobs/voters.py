"""voters: fitted heads that can vote where no instruct model is at hand.

For each kind of features (sentence embeddings, those of an encoder that was trained on the same rows, a language
model's hidden states, character n-grams) one head answers severity, every category and refusal, on both sides. It is
fitted on the `fit` part of the gold set and on the written rows (seeds, pairs, sketches). The ballots that the
combination is fitted on are out-of-fold: each gold row is answered by a head that saw none of its group. So is each
written row, for `guardmill policy lint --root`; but by "tuned", whose encoder was taught the written rows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from label.verdict import render_conversation
from label.vote import refuse_leaked
from ray_jobs.head_features import FEATURE_ROLES, Features, features_of
from ray_jobs.step import Output, Step, Work
from ray_jobs.step.artifacts import CHECKPOINT, checkpoint_row
from ray_jobs.store import table_schema
from synth.errors import BadInput
from synth.ids import row_id, stable_hash
from synth.policy import Policy
from train.encoder import EncoderConfig

if TYPE_CHECKING:
    from ray_jobs.engine.head import Head
    from ray_jobs.engine.head import Output as HeadOutput

# One voter's answer on one row: probabilities over the severities, per category of the row's side, and of refusal
# (null where not asked). Nulls in `severity` are an abstention; `raw` is what a model said.
BALLOT = table_schema(
    [
        pa.field("voter", pa.string()),
        pa.field("side", pa.string()),
        pa.field("severity", pa.list_(pa.float64())),
        pa.field("category", pa.list_(pa.float64())),
        pa.field("refusal", pa.float64()),
        pa.field("raw", pa.string()),
    ]
)


@dataclass(frozen=True)
class VotersConfig:
    """`features` of the heads to fit, one voter each; `folds` for the out-of-fold ballots; `written` bounds the written
    rows that are fitted on beside the gold rows (0: all). `encoder`: how "tuned" trains."""

    features: tuple[str, ...] = ("embed", "hidden", "char_ngrams")
    folds: int = 5
    written: int = 0
    encoder: EncoderConfig = EncoderConfig()


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return policy.slice_labels()


def step(config: VotersConfig) -> Step:
    if unknown := [name for name in config.features if name not in FEATURE_ROLES]:
        raise BadInput(f"voters.features knows {', '.join(FEATURE_ROLES)}, not {unknown[0]!r}")
    roles = tuple(dict.fromkeys(FEATURE_ROLES[name] for name in config.features if FEATURE_ROLES[name]))
    tables = {"voters": CHECKPOINT, "head_ballots": BALLOT}
    return Step(
        "voters", run, config, tables, sides=("gold", "seeds", "written_responses"), roles=roles, reads=reads
    )


@dataclass(frozen=True)
class Item:
    """A text to be judged. `categories` are ids; None labels are unknown."""

    id: str
    group_id: str
    side: str
    text: str
    severity: str = ""
    categories: tuple[str, ...] = ()
    refusal: bool | None = None


def item_text(side: str, prompt: str, history: Sequence[dict[str, str]], response: str) -> str:
    """What a head reads: the prompt itself when it stands alone, else the conversation."""
    if side == "prompt" and not history:
        return prompt
    return render_conversation(conversation(side, prompt, history, response))


def conversation(
    side: str, prompt: str, history: Sequence[dict[str, str]], response: str, thinking: str = ""
) -> list[dict[str, str]]:
    """The turns up to the text under judgement; thinking text stands before the answer."""
    turns = [*history, {"role": "user", "content": prompt}]
    if side == "response":
        answer = f"<think>{thinking}</think>\n{response}" if thinking else response
        turns.append({"role": "assistant", "content": answer})
    return turns


def gold_items(rows: list[dict[str, Any]]) -> list[Item]:
    return [
        Item(
            row["id"],
            row["group_id"],
            row["side"],
            item_text(row["side"], row["prompt"], row["history"], row["response"]),
            row["severity"],
            tuple(row["categories"]),
            row["refusal"],
        )
        for row in rows
    ]


def written_items(prompts: list[dict[str, Any]], responses: list[dict[str, Any]], mildest: str) -> list[Item]:
    """Seeds, pairs, sketches and labelled imports as labelled items."""
    items = []
    for side, rows in (("prompt", prompts), ("response", responses)):
        for row in (row for row in rows if row["human"]):
            prompt, answer = (row["text"], "") if side == "prompt" else (row["prompt"], row["text"])
            categories = (row["category"],) if row["human"] != mildest and row["category"] else ()
            text = item_text(side, prompt, row["history"], answer)
            items.append(
                Item(row["id"], row["group_id"], side, text, row["human"], categories, row.get("refusal"))
            )
    return items


def questions(policy: Policy) -> list[HeadOutput]:
    """What a head answers. Labels carry side and question, so that one head serves both sides."""
    from ray_jobs.engine.head import Output as HeadOutput

    outputs = []
    for side in policy.sides:
        severity = tuple(f"{side}/severity/{name}" for name in policy.severity_names)
        outputs.append(HeadOutput(f"{side}.severity", severity))
        for category in side_categories(policy, side):
            name = f"{side}/category/{category}"
            outputs.append(HeadOutput(f"{side}.category.{category}", (f"{name}/no", name)))
    if policy.refusal:
        outputs.append(HeadOutput("response.refusal", ("response/refusal/no", "response/refusal")))
    return outputs


def side_categories(policy: Policy, side: str) -> list[str]:
    return [category.id for category in policy.categories if side in category.sides]


def targets(policy: Policy, items: list[Item]) -> dict[str, np.ndarray]:
    """Label indices per head output, -1 where an item has no answer to the question."""
    names = list(policy.severity_names)
    found: dict[str, np.ndarray] = {}
    for side in policy.sides:
        here = [item.side == side for item in items]
        found[f"{side}.severity"] = _indices(here, [names.index(item.severity) for item in items])
        for category in side_categories(policy, side):
            named = [int(category in item.categories) for item in items]
            found[f"{side}.category.{category}"] = _indices(here, named)
    if policy.refusal:
        told = [item.side == "response" and item.refusal is not None for item in items]
        found["response.refusal"] = _indices(told, [int(bool(item.refusal)) for item in items])
    return found


def _indices(known: list[bool], values: list[int]) -> np.ndarray:
    return np.array([value if there else -1 for there, value in zip(known, values, strict=True)])


def run(work: Work) -> Output:
    """Fit one head per kind of features; out-of-fold ballots of the gold rows beside them. BadInput when a labelled
    seed or import is also a gold row."""
    every = work.read("gold").to_pylist()
    gold = gold_items([row for row in every if row["split"] == "fit"])
    if not gold:
        return Output({"voters": []})
    written = written_items(
        work.read("seeds").to_pylist(), work.read("written_responses").to_pylist(), work.policy.mildest
    )
    texts = [(item.side, plain(item.text)) for item in gold_items(every)]
    refuse_leaked(
        [row["id"] for row in every],
        texts,
        {(item.side, plain(item.text)) for item in written},
        work.policy.gold,
    )
    if work.config.written:
        order = sorted(written, key=lambda item: stable_hash(work.seed, item.id))
        written = order[: work.config.written]
    ballots: list[dict[str, Any]] = []
    checkpoints: list[dict[str, Any]] = []
    items = [*gold, *written]
    labels = targets(work.policy, items)
    unseen = {item.group_id for item in gold}
    teaches = np.array([item.group_id not in unseen for item in items])
    for kind in work.config.features:
        read = features_of(work, kind, [item.text for item in items], labels, teaches)
        answered = len(gold) if read.changed else len(items)
        ballots += out_of_fold(work, kind, items, labels, read.vectors, answered)
        checkpoints.append(fit_and_store(work, kind, labels, read))
    return Output({"voters": checkpoints, "head_ballots": ballots})


def plain(text: str) -> str:
    """A text as leakage compares it: case and white space aside."""
    return " ".join(text.casefold().split())


def out_of_fold(
    work: Work,
    kind: str,
    items: list[Item],
    labels: dict[str, np.ndarray],
    vectors: np.ndarray,
    answered: int,
) -> list[dict[str, Any]]:
    """The first `answered` items' answers by a head that saw none of their group."""
    fold_of, rows = np.array([fold(item.group_id, work.config.folds) for item in items]), []
    for number in sorted(set(fold_of[:answered])):
        seen, held = fold_of != number, np.flatnonzero(fold_of[:answered] == number)
        known = {name: values[seen] for name, values in labels.items()}
        answers = fitted(work, kind, known, vectors[seen]).predict(vectors[held])
        rows += [ballot(work.policy, items[i], kind, answers, at) for at, i in enumerate(held)]
    return rows


def fitted(work: Work, kind: str, labels: dict[str, np.ndarray], vectors: np.ndarray) -> Head:
    """A head that answers every question that one of the rows has an answer to."""
    from ray_jobs.engine import fingerprint, head

    outputs = [output for output in questions(work.policy) if (labels[output.name] >= 0).any()]
    base = work.engines.roles[role] if (role := FEATURE_ROLES[kind]) else None
    return head.fit(vectors, outputs, labels, kind, base, fingerprint(base) if base else "")


def fold(group_id: str, folds: int) -> int:
    return int(stable_hash("voters", group_id)[:8], 16) % folds


def ballot(policy: Policy, item: Item, voter: str, answers: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    """A head's answers on one item as a ballot row."""
    asks_refusal = policy.refusal and item.side == "response" and "response.refusal" in answers
    return {
        "id": row_id(item.id, "ballot", voter),
        "parent_id": item.id,
        "group_id": item.group_id,
        "voter": voter,
        "side": item.side,
        "severity": answers[f"{item.side}.severity"][at].astype(float).tolist(),
        "category": [
            float(answers[f"{item.side}.category.{category}"][at, 1])
            for category in side_categories(policy, item.side)
        ],
        "refusal": float(answers["response.refusal"][at, 1]) if asks_refusal else None,
        "raw": "",
    }


def fit_and_store(work: Work, kind: str, labels: dict[str, np.ndarray], read: Features) -> dict[str, Any]:
    """The head fitted on everything, stored as a checkpoint named by its features."""
    from safetensors.torch import save_file

    from ray_jobs.engine import head

    rows = len(next(iter(labels.values())))
    made = fitted(work, kind, labels, read.vectors)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / kind
        head.save(made, target)
        if read.changed:
            save_file(read.changed, target / head.TUNED)
        data = json.dumps({name: version.ref for name, version in work.versions.items()})
        metrics = json.dumps({"rows": rows})
        return checkpoint_row(work.store, "voters", work.identity, kind, "head", target, metrics, data)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("voters")
