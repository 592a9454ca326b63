"""A run of safety RL: trainer, curve, checkpoints and what they are resumed from (the algorithm is in train/rl.py).

Each step adds a line to history.jsonl: the figures of the generation it trains on, and its own. A checkpoint counts
once the file `whole` lies in it, and is resumed at the step, data and random state it holds.
"""

import json
import math
import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig

from synth.errors import BadInput
from synth.policy import Policy
from train.deepspeed_engine import import_deepspeed
from train.reward_adapters import Judge
from train.rewards import RewardConfig
from train.rl import RewardFunction, SafetyTrainer, Turned
from train.rl_config import RLConfig, RLPrompt
from train.trunk import freeze_below

WHOLE = "whole"


class Recorder(TrainerCallback):
    """history.jsonl (rank 0), and the file that makes a checkpoint whole."""

    def __init__(self, folder: Path, reuse: int, done: int) -> None:
        self.folder, self.reuse, self.began = folder, reuse, time.monotonic()
        self.generated: dict[str, Any] = {}
        self.history = [entry for entry in read_history(folder) if entry["step"] <= done]
        if dist.get_rank() == 0:
            text = "".join(json.dumps(entry) + "\n" for entry in self.history)
            (folder / "history.jsonl").write_text(text, encoding="utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RuntimeError(f"the loss is {logs['loss']} at step {state.global_step}")
        if "reward" in logs:  # else the step trains on the generation of an earlier one
            self.generated = named(logs)
        entry = {
            "step": state.global_step,
            "generation": (state.global_step - 1) // self.reuse,
            **self.generated,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "clipped": logs.get("clip_ratio/region_mean"),
            "entropy": logs.get("entropy"),
            "seconds": round(time.monotonic() - self.began, 3),
        }
        self.history.append(entry)
        if dist.get_rank() == 0:
            with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            about = {"step": state.global_step, "workers": dist.get_world_size()}
            (self.folder / f"checkpoint-{state.global_step}" / WHOLE).write_text(json.dumps(about))


def named(logs: Mapping[str, Any]) -> dict[str, Any]:
    """A generation's figures under our names."""
    told = {name.removeprefix("guard/"): value for name, value in logs.items() if name.startswith("guard/")}
    return {
        **told,
        "reward_std": logs.get("reward_std"),
        "flat_groups": logs.get("frac_reward_zero_std"),
        "tokens": logs.get("completions/mean_length"),
        "cut_off": logs.get("completions/clipped_ratio"),
    }


def read_history(folder: Path) -> list[dict[str, Any]]:
    file = folder / "history.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def newest(folder: Path, workers: int) -> tuple[Path | None, int]:
    """The newest whole checkpoint and its step; what is not whole goes. BadInput for another number of workers'."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)
            continue
        about = json.loads((path / WHOLE).read_text(encoding="utf-8"))
        if about["workers"] != workers:
            raise BadInput(
                f"{path}: written by {about['workers']} workers and not readable by {workers}: go on with as many, "
                "or remove the folder to begin anew"
            )
        found.append((about["step"], path))
    if not found:
        return None, 0
    step, newest_path = max(found)
    return newest_path, step


def train_policy(
    rows: Sequence[RLPrompt],
    config: RLConfig,
    policy: Policy,
    judge: Judge,
    reward: RewardConfig,
    folder: Path,
    provenance: Mapping[str, Any],
    turned: Turned | None = None,
) -> None:
    """Trains config.policy on `rows` into `folder`; every worker of an initialised process group calls it.

    `turned` is needed for every credit but "sequence". guardmill.json, written last, says that the folder is done.
    """
    if (config.credit == "sequence") != (turned is None):
        raise BadInput(
            f"credit {config.credit!r} and a streaming guard go together (only) when it is not 'sequence'"
        )
    resume = folder.with_name(f"{folder.name}.resume")
    if dist.get_rank() == 0:
        resume.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    began = time.monotonic()
    checkpoint, done = newest(resume, dist.get_world_size()) if dist.get_rank() == 0 else (None, 0)
    told: list[Any] = [checkpoint, done]
    dist.broadcast_object_list(told)
    trainer, recorder = build(rows, config, policy, judge, reward, resume, turned, told[1])
    trainer.train(resume_from_checkpoint=str(told[0]) if told[0] else None)
    engine: Any = trainer.model_wrapped
    metrics = {
        "engine": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage(),
        "workers": dist.get_world_size(),
        "steps": trainer.state.global_step,
        "resumed_at": told[1],
        "seconds": time.monotonic() - began,
    }
    write(trainer, recorder, config, reward, metrics, folder, provenance)


def build(
    rows: Sequence[RLPrompt],
    config: RLConfig,
    policy: Policy,
    judge: Judge,
    reward: RewardConfig,
    folder: Path,
    turned: Turned | None,
    done: int,
) -> tuple[SafetyTrainer, Recorder]:
    """The trainer on DeepSpeed, and its recorder. RuntimeError where the HF Trainer would run plain DDP instead."""
    import_deepspeed()
    tokenizer = AutoTokenizer.from_pretrained(config.policy, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(
        config.policy, dtype=torch.bfloat16 if config.bf16 else torch.float32, attn_implementation="sdpa"
    )
    if config.train_layers is not None:
        model.requires_grad_(False)
        freeze_below(model.get_decoder(), config.train_layers)
    recorder = Recorder(folder, config.reuse, done)
    trainer = SafetyTrainer(
        credit=config.credit,
        reward=RewardFunction(policy, judge, reward, tokenizer, turned),
        model=model,
        args=arguments(config, folder),
        train_dataset=Dataset.from_dict({"prompt": laid_out(rows, config)}),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)  # history.jsonl has it all
    there = trainer.accelerator
    if not trainer.is_deepspeed_enabled or there.num_processes != dist.get_world_size():
        raise RuntimeError(
            f"the trainer runs {there.distributed_type} on {there.num_processes} workers, not DeepSpeed"
        )
    return trainer, recorder


def laid_out(rows: Sequence[RLPrompt], config: RLConfig) -> list[str]:
    """The prompts of the whole training in their order, as one epoch: one seeded permutation of the rows after another.

    TRL's own sampler draws an epoch's order from a generator that a resumed run would begin anew.
    """
    rng, order = random.Random(config.seed), list[RLPrompt]()
    wanted = math.ceil(config.steps / config.reuse) * (config.batch * config.reuse // config.group)
    while len(order) < wanted:
        order += rng.sample(list(rows), len(rows))
    return [
        json.dumps({"messages": [dict(turn) for turn in row.messages], "thinking": row.thinking})
        for row in order[:wanted]
    ]


def arguments(config: RLConfig, folder: Path) -> GRPOConfig:
    """TRL's arguments: our config, and DeepSpeed with torch's AdamW (its own compiles for minutes).

    Without a GPU accelerate finds no backend by itself and takes every worker for the only one, so it is told.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": config.bf16},
        "zero_optimization": {
            "stage": config.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    return GRPOConfig(
        output_dir=str(folder),
        deepspeed=deepspeed,
        optim="adamw_torch",
        shuffle_dataset=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=False,  # True would silently give plain DDP
        accelerator_config={"use_configured_state": on_cpu},
        dataloader_pin_memory=not on_cpu,
        **config.trl(),
    )


def write(
    trainer: SafetyTrainer,
    recorder: Recorder,
    config: RLConfig,
    reward: RewardConfig,
    metrics: dict[str, Any],
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """The trained policy, its curve and, last of all, guardmill.json."""
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    trainer.save_model(str(folder))
    dist.barrier()
    if dist.get_rank() == 0:
        for name in ("training_args.bin", "README.md"):
            (folder / name).unlink(missing_ok=True)
        text = "".join(json.dumps(entry) + "\n" for entry in recorder.history)
        (folder / "history.jsonl").write_text(text, encoding="utf-8")
        about = {
            "metrics": metrics, "config": asdict(config), "reward": asdict(reward), "provenance": dict(provenance),
        }  # fmt: skip
        draft = folder / "guardmill.json.part"
        draft.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, folder / "guardmill.json")
        shutil.rmtree(folder.with_name(f"{folder.name}.resume"), ignore_errors=True)
    dist.barrier()
