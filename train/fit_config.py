"""What every training is told. Recipes override a few fields; the two guards add their own."""

from dataclasses import dataclass


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
