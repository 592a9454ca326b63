"""gen_guard: the generative guard, fine-tuned with DeepSpeed under Ray Train (ray_jobs.train_gen, train.gen).

Beside it the same training on shuffled labels: the control that any figure of the guard has to beat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from label.verdict import Verdict, moderation_prompt, render_verdict
from ray_jobs.step import Output, Step, Work
from ray_jobs.step.artifacts import CHECKPOINT, checkpoint_row
from ray_jobs.voters import conversation
from synth.errors import BadInput
from synth.ids import stable_hash
from synth.policy import Policy

CONTROL = "control"


@dataclass(frozen=True)
class GuardConfig:
    """A guard's training (train.fit.FitConfig says what the fields mean). `rows` bounds the examples (0: all);
    `template` is the policy's moderation template (generative guards only). `class_balance` evens out the classes that
    `balance_by` makes of a row's side, severity, category, language, leaf and source: a rare language counts for more.
    A step's `batch_tokens` are packed into rows of `row_length`, which are dealt over the `workers`: fewer rows than
    workers leave some idle. Workers and devices are no part of a guard's identity."""

    template: str = "moderation_short"
    rows: int = 0
    epochs: int = 3
    lr: float = 3e-4
    batch_tokens: int = 1024
    row_length: int = 512
    max_length: int = 512
    zero_stage: int = 2
    train_layers: int | None = 6
    lora_rank: int = 0
    class_balance: str = "sqrt"
    balance_by: tuple[str, ...] = ("side", "severity")
    eval_share: float = 0.1
    patience: int = 0
    bf16: bool = False
    matmul: str = "highest"
    curves: str = field(default="", metadata={"identity": False})
    workers: int = field(default=2, metadata={"identity": False})
    use_gpu: bool = field(default=False, metadata={"identity": False})

    def training(self) -> dict[str, Any]:
        """The fields that train.fit.FitConfig takes."""
        ours = ("template", "rows", "use_gpu", "balance_by")
        return {name: value for name, value in vars(self).items() if name not in ours}


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    names = [
        name for name in ("moderation_short", "moderation_full", "refusal_policy") if name in policy.templates
    ]
    return [policy.slice_labels(), policy.slice_templates(*names)]


def step(config: GuardConfig) -> Step:
    return Step(
        "gen_guard",
        run,
        config,
        {"gen_guard": CHECKPOINT},
        sides=("distilled",),
        roles=("backbone",),
        reads=reads,
        trains=True,
    )


def run(work: Work) -> Output:
    """Train the guard and its control; their checkpoints are the step's rows."""
    from ray_jobs.train_gen import train_gen
    from train.gen import GenConfig

    rows = chosen(work.read("distilled").to_pylist(), work.config.rows)
    examples = [
        gen_example(work.policy, row, work.config.template) | balanced(row, work.config) for row in rows
    ]
    config = GenConfig(backbone=backbone(work), seed=work.seed, **work.config.training())
    return train(work, "gen_guard", train_gen, examples, config)


def train(work: Work, name: str, trainer: Any, examples: list[dict[str, Any]], config: Any) -> Output:
    """Run a training in its own folder, where a later run finds what this one left, and store what it made."""
    if not examples:
        raise BadInput(f"step {name}: there are no labelled rows to train on")
    folder = Path(work.store.artifact_dir(f"{name}/{work.identity}"))
    data = {name: version.ref for name, version in work.versions.items()}
    provenance = {
        "step": name,
        "identity": work.identity,
        "policy": work.policy.hash,
        "policy_id": work.policy.id,
        "data": data,
        "template": work.config.template,
    }
    result = trainer(
        examples,
        config,
        folder,
        workers=work.config.workers,
        use_gpu=work.config.use_gpu,
        provenance=provenance,
    )
    made = [("guard", result), (CONTROL, result.control)]
    rows = [
        checkpoint_row(
            work.store,
            name,
            work.identity,
            label,
            name,
            each.path,
            json.dumps(each.metrics),
            json.dumps(data),
        )
        for label, each in made
        if each is not None
    ]
    return Output({name: rows})


def backbone(work: Work) -> str:
    """The folder of the backbone's weights."""
    from ray_jobs.engine.weights import locate

    return str(locate(work.engines.roles["backbone"].name))


def chosen(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, whole groups in an order that does not depend on the table's."""
    ordered = sorted(rows, key=lambda row: (stable_hash("train", row["group_id"]), row["id"]))
    return ordered[:limit] if limit else ordered


def gen_example(policy: Policy, row: dict[str, Any], template: str) -> dict[str, Any]:
    """A sample as the moderation instruction and its answer."""
    turns = conversation(row["side"], row["prompt"], row["history"], row["response"], row["thinking"])
    refusal = bool(row["refusal"]) if policy.refusal and row["side"] == "response" else None
    verdict = Verdict(row["severity"], tuple(row["categories"]), refusal)
    return {
        "id": row["id"],
        "group_id": row["group_id"],
        "prompt": moderation_prompt(policy, row["side"], turns, template),
        "answer": render_verdict(verdict, policy, row["side"]),
    }


def balanced(row: dict[str, Any], config: GuardConfig) -> dict[str, Any]:
    """The class of a row for balancing, as a field of its example. BadInput for a field that a row does not have."""
    known = {name: row.get(name) for name in ("side", "severity", "language", "leaf", "source")}
    known["category"] = (row["categories"] or [""])[0]
    wrong = [name for name in config.balance_by if name not in known]
    if wrong:
        raise BadInput(f"balance_by names {wrong[0]!r}; a row has {', '.join(sorted(known))}")
    return {"label": ":".join(str(known[name]) for name in config.balance_by)}


if __name__ == "__main__":
    from ray_jobs.job import main

    main("gen_guard")
