"""DeepSpeed as the training loop uses it: start, resumable checkpoints, whole weights.

Only torch's own AdamW is used (DeepSpeed's compiles C++ for minutes). A checkpoint is DeepSpeed's sharded one; the
newest is named by its file `latest`, which DeepSpeed writes after the shards, and older ones go once it is whole.
"""

import math
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train.fit_config import FitConfig

State = dict[str, torch.Tensor]
History = list[dict[str, float]]


def micro_steps(most_rows: int, config: FitConfig) -> int:
    """Forward steps per optimizer step for a step of `most_rows` rows: the same for all, as DeepSpeed counts them."""
    if config.micro_tokens is None:
        return 1
    rows_per_micro = max(1, config.micro_tokens // config.row_length)
    return math.ceil(most_rows / (dist.get_world_size() * rows_per_micro))


def import_deepspeed() -> Any:
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


def start(module: nn.Module, config: FitConfig, micros: int, universal: bool = False) -> Any:
    """A DeepSpeed engine around `module`; RuntimeError where it does not run the ZeRO stage asked for."""
    deepspeed = import_deepspeed()

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
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    if engine.zero_optimization_stage() != config.zero_stage:
        raise RuntimeError(f"DeepSpeed runs ZeRO {engine.zero_optimization_stage()}, not {config.zero_stage}")
    return engine


def full_state(engine: Any) -> State:
    """Trained weights by name, whole, on the CPU of rank 0 (empty elsewhere); gathered one by one."""
    state: State = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization_stage() == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                if dist.get_rank() == 0:
                    state[name] = parameter.detach().cpu().clone()
        elif dist.get_rank() == 0:
            state[name] = parameter.detach().cpu().clone()
    return state


def save(engine: Any, folder: Path, step: int, history: History) -> None:
    """One resumable checkpoint; older ones go once it is whole."""
    engine.save_checkpoint(str(folder), tag=f"step{step}", client_state={"step": step, "history": history})
    dist.barrier()
    if dist.get_rank() == 0:
        for old in folder.glob("*step*"):
            if old.name != f"step{step}":
                shutil.rmtree(old)


def newest(folder: Path) -> tuple[str | None, bool]:
    """The tag to resume from, if there is one, and whether it is a universal checkpoint.

    DeepSpeed reads a sharded optimizer only on as many workers as wrote it. For another number the newest
    checkpoint is first rewritten, by rank 0, as a universal one (a folder per parameter).
    """
    latest = folder / "latest"
    if not latest.is_file():
        return None, False
    tag = latest.read_text(encoding="utf-8").strip()
    shards = len(list((folder / tag).glob("*optim_states.pt")))
    if shards in (0, dist.get_world_size()):
        return tag, False
    universal = f"universal_{tag}"
    if dist.get_rank() == 0:
        import_deepspeed()
        from deepspeed.checkpoint import ds_to_universal

        shutil.rmtree(folder / universal, ignore_errors=True)
        ds_to_universal.main(
            Namespace(
                input_folder=str(folder / tag),
                output_folder=str(folder / universal),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    dist.barrier()
    return universal, True


def resume(engine: Any, folder: Path, tag: str | None) -> tuple[int, History]:
    """Steps done and their curve, from the checkpoint `tag` in `folder`; (0, []) without one."""
    if tag is None:
        return 0, []
    path, client = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise RuntimeError(f"{folder / tag}: this checkpoint cannot be read")
    return client["step"], client["history"]
