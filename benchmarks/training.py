"""Training speed of both guards against the plain Hugging Face Trainer: same model, rows, steps and processes.

    python benchmarks/training.py [--json FILE] [--examples 48] [--tasks gen-short gen-full stream] [--layers all 4]

The peer does what a plain SFT script does: every batch padded to its longest sample, logits (or head outputs) at
every position, no packing, torch DDP over two gloo processes. Ours packs rows as prefix trees, asks for outputs where
something is labelled, and runs frozen layers once. Both get the same examples in the same steps with the same
optimizer, schedule and clipping, so their loss curves must agree; time is from the first step to the last, features
included, model loading not. Rows: the policy's gold set under its short or full moderation template.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers

from label.verdict import Verdict, moderation_prompt, render_verdict
from ray_jobs.engine.weights import SMOLLM2, locate
from synth.policy import load_gold, load_policy
from train.batches import PackedBatches
from train.data import IGNORE, Encoded, GenExample, StreamExample
from train.fit import fit, rate
from train.fit_config import GenConfig, StreamConfig
from train.gen import GenTask
from train.labels import PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES
from train.loss import sample_means, token_loss
from train.stream_task import StreamTask
from train.trunk import Features, freeze_below

WORKERS, EPOCHS = 2, 2
TEMPLATES = {"gen-short": "moderation_short", "gen-full": "moderation_full"}


def rows(task: str, count: int) -> list[dict[str, Any]]:
    """The first `count` gold rows as examples of a task."""
    policy = load_policy("safety")
    names = {category.id: category.name for category in policy.categories}
    made = []
    for row in load_gold(policy):
        turns = [*row.history, {"role": "user", "content": row.prompt}]
        common = {"id": row.id, "group_id": row.group_id}
        if task == "stream":
            category = names[row.categories[0]] if row.categories else None
            side = "query" if row.side == "prompt" else "response"
            labels: dict[str, Any] = {f"{side}_risk": row.severity, f"{side}_category": category}
            if side == "response":
                labels |= {
                    "response": row.response,
                    "onset": None if row.severity == "Safe" else (row.turn or 0),
                }
            made.append({**common, "prompt": row.prompt, **labels})
        else:
            if row.side == "response":
                turns.append({"role": "assistant", "content": row.response})
            verdict = Verdict(row.severity, row.categories, row.refusal if row.side == "response" else None)
            prompt = moderation_prompt(policy, row.side, turns, TEMPLATES[task])
            made.append({**common, "prompt": prompt, "answer": render_verdict(verdict, policy, row.side)})
    order = np.random.default_rng(0).permutation(len(made))[:count]
    return [made[i] for i in order]


def prepare(spec: dict[str, Any]) -> tuple[Any, PackedBatches, list[Encoded]]:
    """The task, its batches and its samples."""
    torch.set_num_threads(1)
    layers = None if spec["layers"] == "all" else int(spec["layers"])
    settings: dict[str, Any] = {
        "backbone": spec["backbone"],
        "epochs": EPOCHS,
        "lr": 1e-4,
        "batch_tokens": 1024,
        "row_length": 512,
        "train_layers": layers,
        "zero_stage": 1,
        "eval_share": 0.0,
    }
    if spec["task"] == "stream":
        classes = {
            "response_categories": PUBLISHED_CATEGORIES,
            "query_categories": PUBLISHED_QUERY_CATEGORIES,
        }
        task: Any = StreamTask(StreamConfig(**settings, **classes))
        examples: list[Any] = [StreamExample(**row) for row in spec["rows"]]
    else:
        task = GenTask(GenConfig(**settings))
        examples = [GenExample(**row) for row in spec["rows"]]
    samples, kept = task.encode(examples)
    groups, labels = [examples[i].group_id for i in kept], [task.label(examples[i]) for i in kept]
    return task, PackedBatches(samples, groups, labels, task.mass, task.config), samples


def ours(spec: dict[str, Any], rank: int) -> dict[str, Any]:
    """Our training loop on this rank."""
    task, batches, samples = prepare(spec)
    module = task.build()
    dist.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    if task.lower is not None:
        features = Features(Path(spec["folder"]) / "features.f32", samples, task.lower.config.hidden_size)
        if rank == 0:
            features.create()
        dist.barrier()
        features.fill(task.lower.eval(), rank, WORKERS)
        dist.barrier()
        batches.use(features)
    result = fit(lambda: module, batches, task.loss, task.config, Path(spec["folder"]) / "resume")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "losses": [entry["loss"] for entry in result.history]}


class Padded(torch.utils.data.Dataset):
    """What each rank gets in each step, in the order accelerate deals it: step 0 rank 0, step 0 rank 1, step 1 …"""

    def __init__(self, batches: PackedBatches) -> None:
        self.items = []
        for epoch in range(EPOCHS):
            for step in batches.steps(epoch):
                norm = batches.norm(step)
                for rank in range(WORKERS):
                    indices = [i for row in step[rank::WORKERS] for i in row]
                    self.items.append(([batches.samples[i] for i in indices], norm))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[list[Encoded], float]:
        return self.items[index]


def pad(items: list[tuple[list[Encoded], float]]) -> dict[str, torch.Tensor]:
    """One rank's samples of a step, padded to the longest."""
    samples, norm = items[0]
    width = max((len(sample) for sample in samples), default=1)
    count = max(1, len(samples))
    out = {"input_ids": torch.zeros(count, width, dtype=torch.long)}
    out["attention_mask"] = torch.zeros(count, width, dtype=torch.long)
    out["attention_mask"][:, 0] = 1
    names = list(samples[0].targets) if samples else ["labels"]
    for name in names:
        out[name] = torch.full((count, width), IGNORE, dtype=torch.long)
    for b, sample in enumerate(samples):
        out["input_ids"][b, : len(sample)] = torch.from_numpy(sample.ids)
        out["attention_mask"][b, : len(sample)] = 1
        for name in names:
            out[name][b, : len(sample)] = torch.from_numpy(sample.targets[name])
    return {**out, "norm": torch.tensor(norm)}


def plain_gen_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Full logits, cross-entropy of every position."""
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return flat * WORKERS / batch["norm"]


def plain_stream_loss(model: Any, batch: dict[str, torch.Tensor], safe: list[int]) -> torch.Tensor:
    """All four heads at every position, masked afterwards."""
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    segment = torch.arange(len(batch["input_ids"]))[:, None].expand_as(batch["risk"])
    total = torch.zeros(())
    for branch, risk, category in (
        (0, out.query_risk_level_logits, out.query_category_logits),
        (1, out.risk_level_logits, out.category_logits),
    ):
        here = batch["branch"] == branch
        losses = token_loss(risk[here], category[here], batch["risk"][here], batch["category"][here], safe)
        total = total + sample_means(losses, segment[here], torch.ones_like(losses))
    touched = sum(logits.sum() * 0.0 for logits in out.to_tuple())
    return (total + touched) * WORKERS / batch["norm"]


def peer(spec: dict[str, Any], rank: int) -> dict[str, Any]:
    """The plain Trainer on this rank."""
    task, batches, _ = prepare(spec)
    model = task.whole()
    backbone = model.model if spec["task"] == "stream" else model.get_decoder()
    if task.config.train_layers is not None and spec["task"] != "stream":
        model.requires_grad_(False)
    freeze_below(backbone, task.config.train_layers)
    data = Padded(batches)
    steps = len(data) // WORKERS
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task.config.lr, weight_decay=task.config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(min(step, steps - 1), steps, task.config) / task.config.lr
    )
    losses: list[float] = []

    class Plain(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = (
                plain_stream_loss(model, inputs, task.safe)
                if "risk" in inputs
                else plain_gen_loss(model, inputs)
            )
            shared = loss.detach() / WORKERS
            dist.all_reduce(shared)
            losses.append(shared.item())
            return loss

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(data)

    arguments = transformers.TrainingArguments(
        output_dir=spec["folder"],
        per_device_train_batch_size=1,
        max_steps=steps,
        max_grad_norm=task.config.max_grad_norm,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    trainer = Plain(
        model=model, args=arguments, train_dataset=data, data_collator=pad, optimizers=(optimizer, schedule)
    )
    dist.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "losses": losses,
    }


def worker(spec_file: str, rank: int) -> None:
    """One process of one training."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORKERS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=spec["port"],
        DS_ACCELERATOR="cpu",
    )
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    result = ours(spec, rank) if spec["system"] == "ours" else peer(spec, rank)
    (Path(spec["folder"]) / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")


def free_port() -> str:
    """A port nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Both processes of one training; seconds are the slower rank's, CPU seconds their sum."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps({**spec, "folder": folder, "port": free_port()}), encoding="utf-8")
        command = [sys.executable, __file__, "--worker", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(WORKERS)]
        if [process.wait() for process in processes] != [0] * WORKERS:
            raise RuntimeError(f"{spec['system']} on {spec['task']} failed")
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    return {
        "seconds": max(each["seconds"] for each in ranks),
        "cpu_seconds": sum(each["cpu_seconds"] for each in ranks),
        "losses": ranks[0]["losses"],
    }


def compare(
    task: str, layers: str, count: int, backbone: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measurements and claims for one task."""
    base = {"task": task, "layers": layers, "rows": rows(task, count), "backbone": backbone}
    samples = prepare(base)[2]
    tokens = EPOCHS * sum(len(sample) for sample in samples)
    found = {system: measure({**base, "system": system}) for system in ("plain Trainer", "ours")}
    name = f"{task}, {layers} layers trained"
    measurements = []
    for system, each in found.items():
        speed = tokens / each["seconds"]
        measurements.append(
            {"task": name, "system": system, "tokens": tokens, "tokens_per_second": speed, **each}
        )
        curve = f"{each['losses'][0]:.3f} -> {each['losses'][-1]:.3f}"
        print(
            f"{name:<32}{system:<14}{speed:>8.0f} tokens/s {each['cpu_seconds']:>8.1f} CPU s   loss {curve}"
        )
    plain, mine = found["plain Trainer"], found["ours"]
    worst = float(
        np.max(np.abs(np.array(plain["losses"]) - np.array(mine["losses"])) / np.array(plain["losses"]))
    )
    speedup, saved = plain["seconds"] / mine["seconds"], plain["cpu_seconds"] / mine["cpu_seconds"]
    claims = [
        {
            "name": f"{name}: speed over the plain Trainer",
            "value": round(speedup, 2),
            "unit": "x",
            "goal": 2.0,
        },
        {"name": f"{name}: the same in CPU time", "value": round(saved, 2), "unit": "x", "goal": 2.0},
        {
            "name": f"{name}: largest difference of the loss curves",
            "value": worst,
            "unit": "relative",
            "goal": 0.02,
        },
    ]
    for claim in claims:
        under = claim["unit"] == "relative"
        claim["holds"] = claim["value"] <= claim["goal"] if under else claim["value"] >= claim["goal"]
        print(
            f"  {claim['name']}: {claim['value']:.4g} {claim['unit']} (goal {claim['goal']}) {claim['holds']}"
        )
    return measurements, claims


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write {environment, measurements, claims} here")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--tasks", nargs="+", default=["gen-short", "gen-full", "stream"])
    parser.add_argument("--layers", nargs="+", default=["all", "4"])
    options = parser.parse_args()
    measurements: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for task in options.tasks:
        for layers in options.layers:
            more, said = compare(task, layers, options.examples, locate(SMOLLM2))
            measurements, claims = measurements + more, claims + said
    environment = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": WORKERS,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": SMOLLM2,
        "settings": asdict(GenConfig("", epochs=EPOCHS, batch_tokens=1024)),
    }
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(
                {"environment": environment, "measurements": measurements, "claims": claims}, out, indent=2
            )


if __name__ == "__main__":
    main()
