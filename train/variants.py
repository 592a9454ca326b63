"""Trains one guard and its controls in one go: same model, same order, other labels.

The control of a training is itself with its labels dealt out at random among the examples (within a side, so
that every answer keeps its form): what it scores is what the method scores without information. Variants
share the process start-up and the frozen layers' features; each is built anew from the same weights and seed.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train.batches import PackedBatches
from train.curves import reporter
from train.data import Encoded
from train.fit import fit
from train.gen import GenTask
from train.stream_task import StreamTask
from train.trunk import Features

Task = GenTask | StreamTask


def train_variants(
    task: Task,
    variants: dict[str, Sequence[Any]],
    folder: Path,
    provenance: dict[str, Any],
) -> None:
    """Trains every variant and writes `folder/<name>`; all workers of the process group call it.

    A folder that has its guardmill.json (written last) is done and is left as it is.
    """
    encoded = {name: task.encode(examples) for name, examples in variants.items()}
    features: Features | None = None
    for name, examples in variants.items():
        if (folder / name / "guardmill.json").is_file():
            continue
        samples, kept = encoded[name]
        chosen = [examples[i] for i in kept]
        groups, labels = [e.group_id for e in chosen], [task.label(e) for e in chosen]
        batches = PackedBatches(samples, groups, labels, task.mass, task.config)
        module = task.build()
        if task.lower is not None:
            if features is None:
                every = [sample for each, _ in encoded.values() for sample in each]
                features = Features(folder / "features.f32", every, task.lower.config.hidden_size)
                _fill(features, task)
            _connect(batches, features, task)
        curves = task.config.curves if dist.get_rank() == 0 else ""
        resumable = folder / f"{name}.resume"
        with reporter(curves, folder / "curves" / name) as log:
            result = fit(partial(_same, module), batches, task.loss, task.config, resumable, log)
        if dist.get_rank() == 0:
            left_out = len(examples) - len(kept)
            counts = {"examples": len(chosen), "held_out": len(batches.held_samples), "left_out": left_out}
            about = {**provenance, "variant": name}
            _write(task, result, batches.held_samples, counts, folder / name, about)
        dist.barrier()
    if dist.get_rank() == 0:
        (folder / "features.f32").unlink(missing_ok=True)


def _same(module: nn.Module) -> nn.Module:
    return module


def _fill(features: Features, task: Task) -> None:
    """Computes the frozen layers' output once, shared out among the workers, if it may be kept."""
    if features.bytes > task.config.cache_bytes:
        return
    if dist.get_rank() == 0:
        features.create()
    dist.barrier()
    features.fill(_lower(task), dist.get_rank(), dist.get_world_size())
    dist.barrier()


def _connect(batches: PackedBatches, features: Features, task: Task) -> None:
    if features.bytes > task.config.cache_bytes:
        batches.use_lower(_lower(task))
    else:
        batches.use(features)


def _lower(task: Task) -> nn.Module:
    """The frozen part on this worker's device."""
    assert task.lower is not None
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return task.lower.eval().to(device)


def _write(
    task: Task,
    result: Any,
    held_out: Sequence[Encoded],
    counts: dict[str, int],
    folder: Path,
    provenance: dict[str, Any],
) -> None:
    """The checkpoint, its curve and, last of all, guardmill.json."""
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fitted = task.save(result.state, folder, held_out)
    lines = [json.dumps(entry) for entry in result.history]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    metrics = {**result.metrics, **counts, **fitted, "save_seconds": time.monotonic() - began}
    about = {"metrics": metrics, "config": asdict(task.config), "provenance": provenance}
    (folder / "guardmill.json").write_text(
        json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    shutil.rmtree(folder.parent / f"{folder.name}.resume", ignore_errors=True)
