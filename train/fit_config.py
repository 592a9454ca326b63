"""What a training is told (no torch in here: recipes build these). Recipes override a few fields."""

from dataclasses import dataclass

from train.labels import LabelMaps, label_maps


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
    lora_rank: int = (
        0  # train adapters of this rank on those layers instead of the layers themselves; 0: none
    )
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
    matmul: str = (
        "highest"  # torch's float32 matmul precision; "medium": bfloat16 products where hardware has them
    )
    eval_share: float = 0.1  # of the groups
    patience: int = 0  # epochs without a better held-out loss before stopping; 0: never stop, keep the last
    checkpoint_steps: int = 0  # 0: none
    curves: str = ""  # also to "tensorboard" or "wandb"
    cache_bytes: int = 8 << 30  # above this, frozen layers run again for every batch


@dataclass(frozen=True)
class GenConfig(FitConfig):
    """Training of a generative guard; see FitConfig."""


@dataclass(frozen=True)
class StreamConfig(FitConfig):
    """Training of a streaming guard: FitConfig, and what the heads say (names in the policy's words).

    `safe`, `strict` and `loose` name the risks that never violate, and those that do in each reading. `fit_shift`: by
    the held-out texts, how readily a prompt and a token are flagged (train/safe_shift.py), for texts without token
    labels.
    """

    risks: tuple[str, ...] = ("Safe", "Unsafe", "Controversial")
    response_categories: tuple[str, ...] = ()
    query_categories: tuple[str, ...] = ()
    safe: tuple[str, ...] = ("Safe",)
    strict: tuple[str, ...] = ("Unsafe", "Controversial")
    loose: tuple[str, ...] = ("Unsafe",)
    inner_size: int = 512
    fit_shift: bool = False

    @property
    def maps(self) -> LabelMaps:
        """The heads' classes, in the published order where the names are the published ones."""
        return label_maps(
            self.risks, self.response_categories, self.query_categories, self.safe, self.strict, self.loose
        )
