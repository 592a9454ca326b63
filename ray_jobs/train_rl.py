"""The training of a policy with the guard as its reward, as a job and as a step (train/rl.py has the algorithm).

Workers are Ray Train's; the guard, the reward model and the streaming guard are the engine's named actors (or
endpoints), asked by role from every worker, so that the weights of none of them lie in a trainer. The trained policy
is a checkpoint, its curve the table `rl_curve` (a row per step) and curves.svg beside the weights.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_jobs.rl_judge import JudgeConfig, helpfulness, turned, verdicts
from ray_jobs.rl_plot import curves
from ray_jobs.rl_prompts import reads
from ray_jobs.step import Output, Step, Work
from ray_jobs.step.artifacts import CHECKPOINT, checkpoint_row
from ray_jobs.store import table_schema
from ray_jobs.train_common import REFUSED, TrainResult, read_rows, run_training
from synth.errors import BadInput
from synth.ids import row_id
from synth.policy import Policy
from train.reward_adapters import Judge
from train.rewards import RewardConfig
from train.rl_config import RLConfig, RLPrompt

if TYPE_CHECKING:
    from ray_jobs.engine import Engines

NUMBERS = (
    "reward", "reward_std", "safety_rate", "unsafe_rate", "refusal_rate", "fallback_rate", "helpfulness", "tokens",
    "cut_off", "flat_groups", "loss", "grad_norm", "clipped", "entropy", "seconds",
)  # fmt: skip
CURVE = table_schema(
    [
        pa.field("step", pa.int64()),
        pa.field("generation", pa.int64()),
        *(pa.field(name, pa.float64()) for name in NUMBERS),
        pa.field("fallbacks", pa.string()),
    ]
)


@dataclass(frozen=True)
class RLJobConfig:
    """A policy's training (train.rl_config.RLConfig and train.rewards.RewardConfig say what the fields mean). `judge`
    says how the guard is asked; `cpus` are a worker's. Workers and devices are no part of its identity."""

    reward: RewardConfig = RewardConfig(fallback=-10.0)
    judge: JudgeConfig = JudgeConfig()
    steps: int = 400
    batch: int = 64
    group: int = 8
    reuse: int = 4
    max_tokens: int = 1024
    temperature: float = 1.0
    lr: float = 1e-6
    credit: str = "sequence"
    train_layers: int | None = None
    zero_stage: int = 2
    micro: int | None = None
    checkpoint_steps: int = 20
    gradient_checkpointing: bool = False
    bf16: bool = False
    vllm: bool = False
    workers: int = field(default=2, metadata={"identity": False})
    cpus: int = field(default=1, metadata={"identity": False})
    use_gpu: bool = field(default=False, metadata={"identity": False})

    def training(self, policy: str, seed: int) -> RLConfig:
        """What the trainer is told."""
        ours = ("reward", "judge", "cpus", "use_gpu")
        return RLConfig(
            policy, seed=seed, **{name: value for name, value in vars(self).items() if name not in ours}
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that are asked in training."""
        return (
            "guard",
            *(("reward",) if self.reward.kind == "hybrid" else ()),
            *(("stream_guard",) if self.credit != "sequence" else ()),
        )


def train_rl(
    rows: list[Any],
    config: RLJobConfig,
    policy: Policy,
    engines: Engines,
    model: str,
    out_dir: Path,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
) -> TrainResult:
    """Trains the model in folder `model` on `rows` (RLPrompt or dicts with id, group_id, messages, thinking).

    The trained policy lies in `out_dir/policy`; a killed training goes on from its last checkpoint. BadInput for what
    no training can start with: no rows, a missing role, a reward model with several outputs.
    """
    if importlib.util.find_spec("trl") is None:
        raise BadInput("safety RL needs the extra 'rl' (pip install 'guardmill[rl]')")
    settings = config.training(model, seed)
    prompts = read_rows(rows, RLPrompt)
    engines.open(*config.roles)
    told = {**(provenance or {}), "reward": asdict(config.reward), "judge": asdict(config.judge)}
    return run_training(
        "rl",
        {"policy": prompts},
        settings,
        out_dir,
        config.workers,
        config.use_gpu,
        told,
        worker=_worker,
        extra={"policy": policy, "engines": engines, "job": config},
        cpus=config.cpus,
    )


def _worker(loop: dict[str, Any]) -> None:
    """One training process."""
    import os

    folder = Path(loop["out"])
    if (folder / REFUSED).is_file():  # told by another worker, and Ray Train tries again
        return
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    import transformers

    from train.rl_run import train_policy

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    job, policy, engines = loop["job"], loop["policy"], loop["engines"]
    told = json.loads((folder / "policy.examples.json").read_text(encoding="utf-8"))
    try:
        judge = Judge(
            lambda turns: verdicts(policy, engines.get("guard"), turns, job.judge),
            (lambda turns: list(helpfulness(engines.get("reward"), turns)))
            if "reward" in job.roles
            else None,
        )
        where = None
        if job.credit != "sequence":
            reading = "strict" if job.reward.kind == "guard" else job.reward.unsafe

            def where(prompts: list[Any], answers: list[str]) -> list[int | None]:
                return turned(policy, engines.get("stream_guard"), prompts, answers, reading)

        train_policy(
            read_rows(told, RLPrompt), loop["config"], policy, judge, job.reward, folder / "policy",
            loop["provenance"], where,
        )  # fmt: skip
    except BadInput as error:  # the driver raises it again; Ray Train would retry it
        (folder / REFUSED).write_text(str(error), encoding="utf-8")
        if loop["config"].workers > 1:  # the others wait for this one in a collective
            raise


def step(config: RLJobConfig) -> Step:
    return Step(
        "rl_policy",
        run,
        config,
        {"rl_policy": CHECKPOINT, "rl_curve": CURVE},
        sides=("rl_prompts",),
        roles=("policy", *config.roles),
        reads=reads,
    )


def run(work: Work) -> Output:
    """Train, draw the curves, store the checkpoint."""
    from ray_jobs.engine.weights import locate

    rows = [row for row in work.read("rl_prompts").to_pylist() if row["split"] == "train"]
    if not rows:
        raise BadInput(
            "step rl_policy: no prompt has both safe and unsafe answers, so there is nothing to learn from (rl_samples "
            "has what the policy answered)"
        )
    rows.sort(key=lambda row: row["id"])
    data = {name: version.ref for name, version in work.versions.items()}
    result = train_rl(
        rows,
        work.config,
        work.policy,
        work.engines,
        locate(work.engines.roles["policy"].name),
        Path(work.store.artifact_dir(f"rl_policy/{work.identity}")),
        work.seed,
        {"step": "rl_policy", "identity": work.identity, "policy": work.policy.hash, "policy_id": work.policy.id,
         "data": data},
    )  # fmt: skip
    (result.path / "curves.svg").write_text(
        curves({"training": result.history}, "Safety RL: per step"), encoding="utf-8"
    )
    row = checkpoint_row(
        work.store, "rl_policy", work.identity, "policy", "instruct", result.path, json.dumps(result.metrics),
        json.dumps(data),
    )  # fmt: skip
    return Output(
        {"rl_policy": [row], "rl_curve": [curve_row(work.identity, entry) for entry in result.history]}
    )


def curve_row(identity: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A line of history.jsonl as a row of the curve."""
    reasons = {
        name.removeprefix("fallback "): value for name, value in entry.items() if name.startswith("fallback ")
    }
    return {
        "id": row_id(identity, "rl step", entry["step"]),
        "parent_id": "",
        "group_id": identity,
        "step": entry["step"],
        "generation": entry["generation"],
        **{name: entry.get(name) for name in NUMBERS},
        "fallbacks": json.dumps(reasons),
    }
