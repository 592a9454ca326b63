"""The rows of the training benchmark and the plain Trainer's side of it."""

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers

from label.verdict import Verdict, moderation_prompt, render_verdict
from synth.policy import load_gold, load_policy
from train.batches import PackedBatches
from train.data import IGNORE, Encoded, GenExample, StreamExample
from train.fit import rate
from train.fit_config import GenConfig, StreamConfig
from train.gen import GenTask
from train.labels import PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES
from train.loss import sample_means, token_loss
from train.stream_task import StreamTask
from train.trunk import freeze_below

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
        "batch_tokens": WORKERS * spec["row_length"],
        "row_length": spec["row_length"],
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


# Samples, the names of their targets, what the loss is divided by.
Item = tuple[list[Encoded], tuple[str, ...], float]


class Padded(torch.utils.data.Dataset):
    """What each rank gets in each step, in the order accelerate deals it: step 0 rank 0, step 0 rank 1, step 1 …"""

    def __init__(self, batches: PackedBatches) -> None:
        self.items = []
        names = tuple(batches.samples[0].targets)
        for epoch in range(EPOCHS):
            for step in batches.steps(epoch):
                norm = batches.norm(step)
                for rank in range(WORKERS):
                    indices = [i for row in step[rank::WORKERS] for i in row]
                    self.items.append(([batches.samples[i] for i in indices], names, norm))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def pad(items: list[Item]) -> dict[str, torch.Tensor]:
    """One rank's samples of a step, padded to the longest; a rank without any gets one position without a target."""
    samples, names, norm = items[0]
    width = max((len(sample) for sample in samples), default=1)
    count = max(1, len(samples))
    out = {"input_ids": torch.zeros(count, width, dtype=torch.long)}
    out["attention_mask"] = torch.zeros(count, width, dtype=torch.long)
    out["attention_mask"][:, 0] = 1
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
