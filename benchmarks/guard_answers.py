"""The guards of the quality benchmark: their sets, their trainings, and what they say of the test rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from label.folds import fold_of
from ray_jobs.engine.weights import SMOLLM2, locate
from ray_jobs.eval_formats import EvalRow, read_file
from ray_jobs.file_guards import Checkpoint, Judgement, judge
from ray_jobs.file_scores import sampled
from ray_jobs.file_training import examples
from ray_jobs.stream_guard import label_maps
from synth.policy import Policy

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
    batch_tokens: int = 1024


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; `layers` None trains all of them."""

    bench: Path
    folder: Path
    layers: int | None
    full: bool
    only: str
    seed: int

    def plan(self, name: str) -> Plan:
        """A set's plan, at full size where that is asked for."""
        plan = SETS[name]
        return (
            replace(plan, rows=None, lr=1e-4, epochs=4, max_length=1024, batch_tokens=4096)
            if self.full
            else plan
        )


SETS = {
    "prompts": Plan("toxicchat_human/toxic_chat_train.json", "toxic-chat", ("stream", "gen")),
    "responses": Plan("gptfuzz_labeled/train.csv", "gptfuzz", ("stream", "gen"), rows=2000, epochs=2),
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


def train(kind: str, rows: list[EvalRow], plan: Plan, options: Options, folder: Path, policy: Policy) -> str:
    """The folder of a trained guard; one that is there already is taken."""
    from train.fit_config import GenConfig, StreamConfig

    common: dict[str, Any] = {
        "backbone": str(locate(SMOLLM2)), "epochs": plan.epochs, "lr": plan.lr, "train_layers": options.layers,
        "batch_tokens": plan.batch_tokens, "max_length": plan.max_length, "class_balance": "sqrt",
        "patience": plan.epochs, "seed": options.seed, "bf16": options.full and on_gpu(),
        "matmul": "highest" if on_gpu() else "medium",
    }  # fmt: skip
    config = (
        GenConfig(**common)
        if kind == "gen"
        else StreamConfig(**common, **label_maps(policy), inner_size=256, fit_shift=True)
    )
    provenance = {"policy_id": policy.id, "policy": policy.hash, "template": TEMPLATE}
    made = examples(kind, rows, policy, TEMPLATE)
    if options.full:
        return alone(kind, made, config, folder / kind, provenance)
    from ray_jobs.train_gen import train_gen
    from ray_jobs.train_stream import train_stream

    trainer: Any = train_gen if kind == "gen" else train_stream
    return str(trainer(made, config, folder / kind, provenance=provenance, control=False).path)


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def alone(kind: str, made: list[Any], config: Any, folder: Path, provenance: dict[str, Any]) -> str:
    """The same training in this process."""
    import torch.distributed as dist
    from gpu_training import alone as process_group

    from ray_jobs.train_common import read_rows
    from train.data import GenExample, StreamExample
    from train.gen import GenTask
    from train.stream_task import StreamTask
    from train.variants import train_variants

    if not dist.is_initialized():
        process_group()
    task: Any = GenTask(config) if kind == "gen" else StreamTask(config)
    rows = read_rows(made, GenExample if kind == "gen" else StreamExample)
    train_variants(task, {"guard": rows}, folder, provenance)
    return str(folder / "guard")


@dataclass(frozen=True)
class Told:
    """What a guard said of one test row: how surely it violates (None: it could not read it); of a response also the
    first flagged token and the tokens' characters."""

    violating: float | None
    onset: int | None = None
    offsets: list[list[int]] | None = None


def told(kind: str, name: str, data: Any, options: Options, folder: Path, policy: Policy) -> list[Told]:
    """A guard's answers on the test rows, from its file if they were given before."""
    kept = folder / f"{kind}.told.json"
    if not kept.is_file():
        trained, test = data
        at = train(kind, trained, options.plan(name), options, folder, policy)
        answers = [_told(one, name == "onset") for one in judge(Checkpoint(at, kind, policy, TEMPLATE), test)]
        about = json.loads((Path(at) / "guardmill.json").read_text())
        record = {
            "training": {"config": about["config"], **about["metrics"]},
            "told": [asdict(a) for a in answers],
        }
        kept.write_text(json.dumps(record), encoding="utf-8")
    return [Told(**one) for one in json.loads(kept.read_text(encoding="utf-8"))["told"]]


def _told(one: Any, by_token: bool) -> Told:
    if not isinstance(one, Judgement):
        return Told(None)
    if not by_token or one.offsets is None or one.onset is None:
        return Told(one.violating["strict"])
    return Told(one.violating["strict"], one.onset["strict"], one.offsets.tolist())
