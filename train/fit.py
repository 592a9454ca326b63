"""One training loop for every guard: DeepSpeed, ZeRO 0-3, the same numbers on any number of workers.

Each epoch's packed rows are grouped into steps of `batch_tokens` by the seed alone; a step's rows are dealt
over the workers, and losses are sums divided by the whole step's target weight. So gradients, and the loss
curve, do not depend on how many workers share the work (up to the order of float additions), and a resumed
run draws nothing anew: the step number is all its state besides weights and moments. torch's AdamW
(DeepSpeed's own compiles for minutes); linear warm-up, then linear decay to zero; optionally the epoch with
the lowest held-out loss is kept.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from train.best import Best
from train.deepspeed_engine import State, full_state, micro_steps, newest, resume, save, start
from train.fit_config import FitConfig
from train.weave import Batch


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

    `loss_fn(module, batch)` returns a sum. `folder` (seen by all workers) holds resumable checkpoints; a run that
    finds one there goes on from it.
    """
    began = time.monotonic()
    plan = [batches.steps(epoch) for epoch in range(config.epochs)]
    micros = micro_steps(max((len(step) for steps in plan for step in steps), default=1), config)
    tag, universal = newest(folder)
    engine = start(build(), config, micros, universal)
    done, history = resume(engine, folder, tag)
    loop = _Loop(
        engine, batches, loss_fn, config, folder, sum(map(len, plan)), micros, history, on_step, began
    )
    best, state = loop.run(plan, done)
    metrics = _metrics(engine, history, time.monotonic() - began, best)
    result = FitResult(full_state(engine) if state is None else state, history, metrics)
    engine.destroy()
    return result


@dataclass
class _Loop:
    """What a step needs: the DeepSpeed engine, the data, the loss, and the curve so far."""

    engine: Any
    batches: Batches
    loss_fn: Callable[[Any, Batch], torch.Tensor]
    config: FitConfig
    folder: Path
    total: int
    micros: int
    history: list[dict[str, float]]
    on_step: Callable[[dict[str, float]], None] | None
    began: float

    def run(self, plan: Sequence[Sequence[Sequence[Sequence[int]]]], done: int) -> tuple[float, State | None]:
        """All epochs but the `done` steps; the best held-out loss and its weights, where they are asked for."""
        best = Best(self.folder if self.config.checkpoint_steps else None, done, self.history)
        first = 0
        for epoch, steps in enumerate(plan):
            for step, rows in enumerate(steps[max(0, done - first) :], max(first, done)):
                self.step(step, epoch, rows)
            first += len(steps)
            held = None if first < done else self.held_out_loss()
            if held is None:
                continue
            self.history[-1]["eval_loss"] = held
            if self.on_step and dist.get_rank() == 0:
                self.on_step(self.history[-1])
            if self.config.patience:
                best.see(held, int(self.history[-1]["step"]), lambda: full_state(self.engine))
                if best.worse >= self.config.patience:
                    break
        return best.loss, best.state

    def step(self, step: int, epoch: int, rows: Sequence[Sequence[int]]) -> None:
        """One optimizer step over the rows of all workers, and what is due after it."""
        rank, world = dist.get_rank(), dist.get_world_size()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate(step, self.total, self.config)
        norm = self.batches.norm(rows)
        self.engine.module.train()
        summed = torch.zeros(1)
        for micro in range(self.micros):
            mine = rows[micro * world + rank :: self.micros * world]
            # A worker without a row still takes part in every collective, with a loss of zero weight.
            loss = self._loss(mine or rows[:1], False) * (1.0 if mine else 0.0)
            # DeepSpeed averages over workers and micro steps; the sum over both is what the norm belongs to.
            self.engine.backward(loss * (world * self.micros / norm))
            self.engine.step()
            summed += loss.detach().float().cpu()
        entry = {"step": step, "epoch": epoch, "loss": self._sum(summed) / norm}
        self.history.append({**entry, "seconds": time.monotonic() - self.began})
        if self.on_step and rank == 0:
            self.on_step(self.history[-1])
        every = self.config.checkpoint_steps
        if every and (step + 1) % every == 0 and step + 1 < self.total:
            save(self.engine, self.folder, step + 1, self.history)

    def held_out_loss(self) -> float | None:
        """Mean loss of the held-out rows over all workers, None where nothing is held out."""
        rows = self.batches.held_out()
        if not rows:
            return None
        rank, world = dist.get_rank(), dist.get_world_size()
        self.engine.module.eval()
        summed = torch.zeros(1)
        with torch.no_grad():
            for at in range(0, len(rows), world):
                mine = rows[at : at + world][rank : rank + 1]
                summed += self._loss(mine or rows[:1], True).float().cpu() * (1.0 if mine else 0.0)
        return self._sum(summed) / self.batches.norm(rows, held_out=True)

    def _loss(self, rows: Sequence[Sequence[int]], held_out: bool) -> torch.Tensor:
        batch = self.batches.load(rows, held_out)
        return self.loss_fn(
            self.engine, {name: tensor.to(self.engine.device) for name, tensor in batch.items()}
        )

    def _sum(self, value: torch.Tensor) -> float:
        shared = value.to(self.engine.device)
        dist.all_reduce(shared)
        return shared.item()


def rate(step: int, total: int, config: FitConfig) -> float:
    """Learning rate of a step (0-based): up over the warm-up, down to zero at the end."""
    warmup = max(1, round(config.warmup * total))
    return config.lr * min((step + 1) / warmup, (total - step) / max(1, total - warmup + 1))


def group_steps(rows: Sequence[Sequence[int]], rows_per_step: int, seed: int) -> list[list[Sequence[int]]]:
    """Rows in a seeded order, cut into steps of `rows_per_step`."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return [order[at : at + rows_per_step] for at in range(0, len(order), max(1, rows_per_step))]


def _metrics(engine: Any, history: list[dict[str, float]], seconds: float, best: float) -> dict[str, Any]:
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    last_held = next((entry["eval_loss"] for entry in reversed(history) if "eval_loss" in entry), None)
    return {
        "engine": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage(),
        "workers": dist.get_world_size(),
        "steps": len(history),
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "eval_loss": best if best < math.inf else last_held,
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trained),
        "seconds": seconds,
    }
