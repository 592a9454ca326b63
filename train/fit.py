"""One training loop for every guard: DeepSpeed, ZeRO 0-3, the same numbers on any number of workers.

Each epoch's packed rows are grouped into steps of `batch_tokens` by the seed alone; a step's rows are dealt
over the workers, and losses are sums divided by the whole step's target weight. So gradients, and the loss
curve, do not depend on how many workers share the work (up to the order of float additions), and a resumed
run draws nothing anew: the step number is all its state besides weights and moments. torch's AdamW
(DeepSpeed's own compiles for minutes); linear warm-up, then linear decay to zero; optionally the epoch with
the lowest held-out loss is kept.
"""

import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from train.weave import Batch

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FitConfig:
    """What every training has. `train_layers`: None for all, 0 for none of the backbone, or its top k."""

    backbone: str
    epochs: int = 3
    lr: float = 1e-4
    batch_tokens: int = 4096
    row_length: int = 512
    max_length: int = 1024
    zero_stage: int = 2
    train_layers: int | None = None
    seed: int = 0
    workers: int = 2
    class_balance: str = "none"  # "none", "sqrt" or "full": weight of a class ~ count ** -(0, 1/2, 1)
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    max_grad_norm: float = 1.0
    micro_tokens: int | None = (
        None  # tokens per worker and forward step; None: the whole share of a step at once
    )
    bf16: bool = False
    eval_share: float = 0.1  # of the groups
    patience: int = 0  # epochs without a better held-out loss before stopping; 0: never stop, keep the last
    checkpoint_steps: int = 0  # 0: none
    cache_bytes: int = 8 << 30  # above this, frozen layers run again for every batch


class Batches(Protocol):
    """Training data as the loop wants it: steps by epoch, and the held-out rows."""

    def steps(self, epoch: int) -> Sequence[Sequence[Sequence[int]]]:
        """The epoch's steps, each a list of packed rows; the same on every worker."""

    def held_out(self) -> Sequence[Sequence[int]]:
        """Packed rows of the held-out samples."""

    def load(self, rows: Sequence[Sequence[int]], held_out: bool = False) -> Batch:
        """Tensors of some rows."""

    def norm(self, rows: Sequence[Sequence[int]], held_out: bool = False) -> float:
        """What the summed loss of some rows is divided by."""


@dataclass
class FitResult:
    """Weights by name (rank 0 only), the curve, and the figures of the run."""

    state: State
    history: list[dict[str, float]]
    metrics: dict[str, Any] = field(default_factory=dict)


def fit(
    build: Callable[[], nn.Module],
    batches: Batches,
    loss_fn: Callable[[nn.Module, Batch], torch.Tensor],
    config: FitConfig,
    folder: Path,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> FitResult:
    """Trains what `build` returns; every worker of an initialised process group calls it.

    `loss_fn(module, batch)` returns a sum. `folder` (seen by all workers) holds resumable checkpoints; a run
    that finds one there goes on from it.
    """
    began = time.monotonic()
    rank, world = dist.get_rank(), dist.get_world_size()
    plan = [batches.steps(epoch) for epoch in range(config.epochs)]
    total = sum(len(steps) for steps in plan)
    micros = _micros(plan, config, world)
    module = build()
    engine = _engine(module, config, micros)
    done, history = _resume(engine, folder)
    best: tuple[float, State | None] = (math.inf, None)
    worse = 0
    for epoch, steps in enumerate(plan):
        first = sum(len(p) for p in plan[:epoch])
        for offset, rows in enumerate(steps):
            step = first + offset
            if step < done:
                continue
            loss = _step(engine, batches, rows, loss_fn, _rate(step, total, config), micros)
            history.append({"step": step, "epoch": epoch, "loss": loss, "seconds": time.monotonic() - began})
            if on_step and rank == 0:
                on_step(history[-1])
            if config.checkpoint_steps and (step + 1) % config.checkpoint_steps == 0 and step + 1 < total:
                _save(engine, folder, step + 1, history)
        if (held := evaluate(engine, batches, loss_fn)) is None:
            continue
        if history:
            history[-1]["eval_loss"] = held
        if config.patience and held < best[0]:
            best, worse = (held, full_state(engine, config.zero_stage)), 0
        elif config.patience and (worse := worse + 1) >= config.patience:
            break
    state = best[1] if best[1] is not None else full_state(engine, config.zero_stage)
    result = FitResult(
        state, history, _metrics(engine, history, plan, batches, world, time.monotonic() - began)
    )
    engine.destroy()
    return result


def _micros(plan: Sequence[Sequence[Sequence[Sequence[int]]]], config: FitConfig, world: int) -> int:
    """Forward steps per optimizer step: the same for all, as DeepSpeed counts them."""
    most = max((len(step) for steps in plan for step in steps), default=1)
    if config.micro_tokens is None:
        return 1
    rows_per_micro = max(1, config.micro_tokens // config.row_length)
    return math.ceil(most / (world * rows_per_micro))


def _deepspeed() -> Any:
    """DeepSpeed, imported late: it settles on an accelerator when it is imported.

    On a CPU its start-up probes every C++ operator and compiles one for shared memory (35 s with a compiler,
    a failure without); nothing here uses them, so it is told that there are none.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    return deepspeed


def _engine(module: nn.Module, config: FitConfig, micros: int) -> Any:
    deepspeed = _deepspeed()

    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micros,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": config.bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    if engine.zero_optimization_stage() != config.zero_stage:
        raise RuntimeError(f"DeepSpeed runs ZeRO {engine.zero_optimization_stage()}, not {config.zero_stage}")
    return engine


def _rate(step: int, total: int, config: FitConfig) -> float:
    """Learning rate of a step (0-based): up over the warm-up, down to zero at the end."""
    warmup = max(1, round(config.warmup * total))
    return config.lr * min((step + 1) / warmup, (total - step) / max(1, total - warmup + 1))


def _step(engine: Any, batches: Batches, rows: Any, loss_fn: Any, rate: float, micros: int) -> float:
    """One optimizer step over the rows of all workers; returns the step's mean loss."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    norm = batches.norm(rows)
    engine.module.train()
    summed = torch.zeros(1)
    for micro in range(micros):
        mine = rows[micro * world + rank :: micros * world]
        # A worker without a row still takes part in every collective, with a loss of zero weight.
        loss = loss_fn(engine, to_device(batches.load(mine or rows[:1]), engine.device)) * (
            1.0 if mine else 0.0
        )
        # DeepSpeed averages over workers and micro steps; the sum over both is what the norm belongs to.
        engine.backward(loss * (world * micros / norm))
        engine.step()
        summed += loss.detach().float().cpu()
    return _sum(summed, engine.device) / norm


def evaluate(engine: Any, batches: Batches, loss_fn: Any) -> float | None:
    """Mean held-out loss over all workers, None where nothing is held out."""
    rows = batches.held_out()
    if not rows:
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    engine.module.eval()
    summed = torch.zeros(1)
    with torch.no_grad():
        for at in range(0, len(rows), world):
            mine = rows[at : at + world][rank : rank + 1]
            batch = to_device(batches.load(mine or rows[:1], held_out=True), engine.device)
            summed += loss_fn(engine, batch).float().cpu() * (1.0 if mine else 0.0)
    return _sum(summed, engine.device) / batches.norm(rows, held_out=True)


def _sum(value: torch.Tensor, device: Any) -> float:
    shared = value.to(device)
    dist.all_reduce(shared)
    return float(shared)


def to_device(batch: Batch, device: Any) -> Batch:
    """The batch on `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def full_state(engine: Any, zero_stage: int) -> State:
    """Trained weights by name, whole, on the CPU of rank 0 (empty elsewhere); gathered one by one."""
    state: State = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if zero_stage == 3:
            from deepspeed.zero import GatheredParameters

            with GatheredParameters([parameter]):
                if dist.get_rank() == 0:
                    state[name] = parameter.detach().cpu().clone()
        elif dist.get_rank() == 0:
            state[name] = parameter.detach().cpu().clone()
    return state


def _save(engine: Any, folder: Path, step: int, history: list[dict[str, float]]) -> None:
    """One resumable checkpoint; older ones go once it is whole."""
    engine.save_checkpoint(str(folder), tag=f"step{step}", client_state={"step": step, "history": history})
    dist.barrier()
    if dist.get_rank() == 0:
        for old in folder.glob("step*"):
            if old.name != f"step{step}":
                shutil.rmtree(old)


def _resume(engine: Any, folder: Path) -> tuple[int, list[dict[str, float]]]:
    """Steps done and their curve, from the newest checkpoint in `folder`; (0, []) without one."""
    if not (folder / "latest").is_file():
        return 0, []
    path, client = engine.load_checkpoint(str(folder))
    if path is None:
        raise RuntimeError(f"{folder}: the checkpoint named by 'latest' cannot be read")
    return client["step"], client["history"]


def _metrics(
    engine: Any, history: list[dict[str, float]], plan: Any, batches: Batches, world: int, seconds: float
) -> dict[str, Any]:
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    return {
        "engine": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage(),
        "workers": world,
        "steps": len(history),
        "loss_first": history[0]["loss"] if history else None,
        "loss_last": history[-1]["loss"] if history else None,
        "eval_loss": next((h["eval_loss"] for h in reversed(history) if "eval_loss" in h), None),
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trained),
        "seconds": seconds,
    }


def group_steps(rows: Sequence[Sequence[int]], rows_per_step: int, seed: int) -> list[list[Sequence[int]]]:
    """Rows in a seeded order, cut into steps of `rows_per_step`."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return [order[at : at + rows_per_step] for at in range(0, len(order), max(1, rows_per_step))]


def chunks(items: Iterable[Any], size: int) -> list[list[Any]]:
    """`items` cut into lists of `size`."""
    listed = list(items)
    return [listed[at : at + size] for at in range(0, len(listed), size)]
