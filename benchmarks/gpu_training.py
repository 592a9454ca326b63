"""Training speed of both guards on one GPU: tokens per second, memory, and the share of the GPU's arithmetic used.

    python benchmarks/gpu_training.py --peak 989 [--json FILE] [--models smollm2 qwen3] [--tokens 32768] [--steps 12]

The same loop as on a CPU (train/fit.py), one process, bfloat16 with DeepSpeed's float32 master weights, ZeRO 1, 2 and 3
(with one process they differ in bookkeeping only). Rows of random tokens, 256 to a sample, 2,048 to a packed row, no
shared beginnings; a generative sample asks for its last 16 tokens, a streaming one for its last 128. All layers, or
frozen ones: below the top four (gen), all but the heads (stream), where the frozen part runs once before the clock
starts, as a recipe's does. Tokens per second: median over the steps after the third. Arithmetic: 6 operations per
trained weight and token, 2 more for each frozen weight that is passed through, attention left out; `--peak` is the
GPU's dense bfloat16 rate in TFLOP/s. Qwen3-0.6B is its shape with random weights and SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers

from ray_jobs.engine.weights import SMOLLM2, locate
from train.batches import PackedBatches
from train.data import IGNORE, Encoded
from train.deepspeed_engine import import_deepspeed
from train.fit import fit
from train.fit_config import GenConfig, StreamConfig
from train.gen import GenTask
from train.labels import PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES
from train.stream_task import StreamTask
from train.trunk import Features

SAMPLE, ROW, WARM = 256, 2048, 3
QWEN3_06B = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training: model, guard, how much of the backbone is trained, ZeRO stage."""

    model: str
    guard: str
    frozen: bool
    zero: int

    @property
    def name(self) -> str:
        what = {"gen": "top 4 layers", "stream": "heads"}[self.guard] if self.frozen else "all layers"
        return f"{self.model} {self.guard}, {what}, ZeRO {self.zero}"


def alone() -> None:
    """This process as the whole process group."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29531")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)


def qwen3(folder: Path) -> str:
    """A random model of Qwen3-0.6B's shape."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN3_06B))
    made.to(torch.bfloat16).cpu().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(locate(SMOLLM2)).save_pretrained(folder)
    return str(folder)


def samples(guard: str, count: int) -> list[Encoded]:
    """Random tokens with targets at the end of every sample."""
    random, made = np.random.default_rng(0), []
    asked = 16 if guard == "gen" else 128
    for _ in range(count):
        ids = random.integers(10, 40000, SAMPLE)
        at = np.full(SAMPLE, IGNORE)
        at[-asked:] = ids[-asked:] if guard == "gen" else 1
        names = ("labels",) if guard == "gen" else ("branch", "risk", "category")
        made.append(Encoded(ids, {name: at.copy() for name in names}))
    return made


def task_of(case: Case, backbone: str, tokens: int) -> Any:
    common: dict[str, Any] = {
        "backbone": backbone, "epochs": 1, "batch_tokens": tokens, "row_length": ROW, "eval_share": 0.0,
        "zero_stage": case.zero, "bf16": torch.cuda.is_available(), "micro_tokens": tokens,
    }  # fmt: skip
    if case.guard == "gen":
        return GenTask(GenConfig(**common, train_layers=4 if case.frozen else None))
    classes = {"response_categories": PUBLISHED_CATEGORIES, "query_categories": PUBLISHED_QUERY_CATEGORIES}
    return StreamTask(StreamConfig(**common, **classes, train_layers=0 if case.frozen else None))


def weights(module: Any, trained: bool) -> int:
    """Weights that multiply: without the table of embeddings, which is looked up."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad == trained and "embed_tokens" not in name
    )


def measure(case: Case, backbone: str, tokens: int, steps: int, folder: Path, peak: float) -> dict[str, Any]:
    """Tokens per second, peak memory and share of `peak` of one training."""
    task, data = task_of(case, backbone, tokens), samples(case.guard, steps * tokens // SAMPLE)
    module = task.build()
    count = len(data)
    batches = PackedBatches(data, [str(i) for i in range(count)], ["a"] * count, task.mass, task.config)
    if task.lower is not None:
        lower = task.lower.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        features = Features(folder / "features.f32", data, lower.config.hidden_size)
        features.create()
        features.fill(lower, 0, 1, row_length=ROW)
        batches.use(features)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    operations = 6 * weights(module, True) + 2 * weights(module, False)
    if (
        case.guard == "gen"
    ):  # logits are asked for at labelled positions only; the layer is tied to the embeddings
        head = module.lm_head.weight.numel()
        operations -= 0 if task.config.train_layers is None else 2 * head
        operations += (6 if task.config.train_layers is None else 2) * head * 16 // SAMPLE
    result = fit(lambda: module, batches, task.loss, task.config, folder / "resume")
    ends = [entry["seconds"] for entry in result.history]
    per_step = float(np.median(np.diff(ends[WARM - 1 :])))
    speed = tokens / per_step
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    used = operations * speed / (peak * 1e12)
    print(
        f"{case.name:<44} {speed:>10,.0f} tokens/s  {memory:>6.1f} GiB  {used:>6.1%} of the GPU's arithmetic",
        flush=True,
    )
    return {
        **asdict(case), "name": case.name, "tokens_per_second": speed, "gib": memory, "utilisation": used,
        "steps": len(ends), "tokens_per_step": tokens,
        "loss": [result.history[0]["loss"], result.history[-1]["loss"]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=("smollm2", "qwen3"), default=["smollm2", "qwen3"])
    parser.add_argument("--tokens", type=int, default=32768, help="per step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bfloat16 (H100 SXM: 989)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured", file=sys.stderr)
        return
    found = run(options)
    if options.json:
        told = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                "transformers": transformers.__version__, "deepspeed": import_deepspeed().__version__}  # fmt: skip
        options.json.write_text(json.dumps({"environment": told, "measurements": found}, indent=1))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases; one that fails is reported and the others go on."""
    import_deepspeed()
    alone()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        for model in options.models:
            backbone = locate(SMOLLM2) if model == "smollm2" else qwen3(Path(kept) / model)
            for guard in ("gen", "stream"):
                for frozen, zero in [(False, z) for z in options.stages] + [(True, 1)]:
                    case = Case(model, guard, frozen, zero)
                    with tempfile.TemporaryDirectory() as folder:
                        began = time.monotonic()
                        one = measure(
                            case, backbone, options.tokens, options.steps, Path(folder), options.peak
                        )
                        found.append({**one, "wall_seconds": time.monotonic() - began})
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    main()
