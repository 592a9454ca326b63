"""What a safety RL training is told (no torch in here: recipes build these).

The defaults are GSPO's as TRL runs it: sequence-level ratios, no KL term, clipping at 3e-4 / 4e-4, and several
optimizer steps per generation, without which GSPO and GRPO are the same. The learning rate, the batch and the number
of steps are ours: the report gives none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synth.errors import BadInput

CREDITS = ("sequence", "token", "truncated")


@dataclass(frozen=True)
class RLPrompt:
    """A prompt to train on: the conversation up to the user's turn, and whether the policy thinks first."""

    id: str
    group_id: str
    messages: tuple[Mapping[str, str], ...]
    thinking: bool = False


@dataclass(frozen=True)
class RLConfig:
    """`batch` answers per optimizer step, `group` answers per prompt, `reuse` optimizer steps per generation.

    `credit`: "sequence" (GSPO), or where the streaming guard says that a violating answer turned: "token" (its
    advantage lies on the tokens from there on) or "truncated" (the tokens after it are not trained on). `micro`:
    answers per worker and forward pass (None: the worker's whole share of a step). `vllm`: rollouts by vLLM beside
    the trainer (GPUs only).
    """

    policy: str
    steps: int = 400
    batch: int = 64
    group: int = 8
    reuse: int = 4
    max_tokens: int = 1024
    temperature: float = 1.0
    lr: float = 1e-6
    epsilon: float = 3e-4
    epsilon_high: float = 4e-4
    beta: float = 0.0
    credit: str = "sequence"
    train_layers: int | None = None
    zero_stage: int = 2
    micro: int | None = None
    max_grad_norm: float = 1.0
    checkpoint_steps: int = 20
    gradient_checkpointing: bool = False
    bf16: bool = False
    vllm: bool = False
    vllm_memory: float = 0.3
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise BadInput(f"credit is {', '.join(CREDITS)}, not {self.credit!r}")
        if min(self.steps, self.max_tokens, self.workers, self.reuse, self.checkpoint_steps) < 1:
            raise BadInput("steps, max_tokens, workers, reuse and checkpoint_steps are at least 1")
        if self.group < 2:
            raise BadInput(f"a group of {self.group} answers has nothing to be compared with: at least 2")
        if self.batch % (self.workers * (self.micro or 1)) or self.micro == 0:
            raise BadInput(
                f"batch {self.batch} does not divide into {self.workers} workers of {self.micro or 1} answers"
            )
        if self.batch * self.reuse % self.group:
            raise BadInput(
                f"batch x reuse = {self.batch * self.reuse} answers per generation do not divide by group {self.group}"
            )
        if self.checkpoint_steps % self.reuse:
            raise BadInput(
                f"checkpoint_steps ({self.checkpoint_steps}) must be a multiple of reuse ({self.reuse}): a checkpoint "
                "within a generation could not be resumed exactly"
            )

    def trl(self) -> dict[str, Any]:
        """The arguments of TRL's GRPOConfig."""
        share = self.batch // self.workers
        micro = self.micro or share
        return {
            "importance_sampling_level": "token" if self.credit == "token" else "sequence",
            "loss_type": "grpo",
            "beta": self.beta,
            "epsilon": self.epsilon,
            "epsilon_high": self.epsilon_high,
            "num_generations": self.group,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": share // micro,
            "steps_per_generation": share // micro * self.reuse,
            "max_completion_length": self.max_tokens,
            "temperature": self.temperature,
            "learning_rate": self.lr,
            "lr_scheduler_type": "constant",
            "max_grad_norm": self.max_grad_norm,
            "max_steps": self.steps,
            "save_steps": self.checkpoint_steps,
            "gradient_checkpointing": self.gradient_checkpointing,
            "bf16": self.bf16,
            "seed": self.seed,
            "use_vllm": self.vllm,
            **(
                {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": self.vllm_memory}
                if self.vllm
                else {}
            ),
        }
