"""Training of the streaming guard: heads over a frozen, partly frozen or fully trained backbone.

`train_layers` = 0 caches the backbone's last hidden states once and trains the heads on them in seconds; k
trains the top k layers as well, None all of it. Logits are computed at labelled positions only. Losses:
METHOD.md §6.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from synth.errors import BadInput
from train.backbone import load_backbone, load_tokenizer, longest_row, save_tokenizer
from train.data import IGNORE, QUERY, RESPONSE, Encoded, StreamExample, encode_stream
from train.deepspeed_engine import State
from train.fit_config import StreamConfig
from train.lora import add_adapters, merge_adapters
from train.loss import sample_means, token_loss
from train.safe_shift import fitted
from train.stream_model import StreamGuard, StreamGuardConfig, head_logits
from train.trunk import cut, freeze_below, run
from train.weave import Batch

SIDES = {QUERY: "query_", RESPONSE: ""}
HEADS = ("risk_level_category_pre", "risk_level_category_layernorm", "risk_level_head", "category_head")


class StreamModule(nn.Module):
    """What is trained: the upper part, if any of the backbone is, and both branches of heads."""

    def __init__(self, guard: StreamGuard, upper: Any) -> None:
        super().__init__()
        self.upper, self.dtype = upper, guard.dtype
        for side in SIDES.values():
            for head in HEADS:
                self.add_module(side + head, guard.get_submodule(side + head))

    def forward(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """For each branch, by its heads' prefix, risk and category logits [N, classes] at its N labelled positions.

        Keys are words: ZeRO 3 on a GPU asks the keys of a module's output how they begin.
        """
        layout = (batch["position_ids"], batch["end"])
        if "hidden" not in batch:
            hidden = run(self.upper, *layout, input_ids=batch["input_ids"])
        elif self.upper is not None:
            hidden = run(self.upper, *layout, inputs_embeds=batch["hidden"].to(self.dtype))
        else:
            hidden = batch["hidden"].to(self.dtype)
        labelled = hidden.flatten(0, 1)[batch["at"]]
        return {
            side: head_logits(self, labelled[batch["branch"] == branch], side)
            for branch, side in SIDES.items()
        }


class StreamTask:
    """How a streaming guard is encoded, built, scored and saved."""

    def __init__(self, config: StreamConfig) -> None:
        if config.lora_rank and config.train_layers == 0:
            raise BadInput(
                "adapters need layers to sit on: lora_rank goes with train_layers above 0 or with all"
            )
        self.config = config
        self.tokenizer = load_tokenizer(config.backbone)
        self.longest = longest_row(config)
        self.maps = config.maps
        self.safe = [self.maps.risk.index(name) for name in self.maps.safe]
        self.lower: Any = None

    def encode(self, examples: Sequence[StreamExample]) -> tuple[list[Encoded], list[int]]:
        """Samples and the examples' indices; those with nothing labelled within `max_length` are left out."""
        samples = [encode_stream(example, self.tokenizer, self.maps, self.longest) for example in examples]
        kept = [i for i, sample in enumerate(samples) if (sample.targets["branch"] != IGNORE).any()]
        return [samples[i] for i in kept], kept

    def label(self, example: StreamExample) -> str:
        """The class of an example, for balancing."""
        return example.label or f"{example.query_risk}/{example.response_risk}"

    def mass(self, sample: Encoded) -> float:
        """A sample counts its weight, whatever its length."""
        return sample.weight

    def whole(self) -> StreamGuard:
        """Backbone and fresh heads, the same for the same seed."""
        backbone = load_backbone(AutoModel, self.config)
        torch.manual_seed(self.config.seed)
        with torch.device("meta"):
            guard = StreamGuard(
                StreamGuardConfig.for_policy(backbone.config, self.maps, self.config.inner_size)
            )
        guard.model = backbone
        std = getattr(backbone.config, "initializer_range", 0.02)
        for side in SIDES.values():
            for head in HEADS:
                module: Any = guard.get_submodule(side + head).to_empty(device="cpu").to(backbone.dtype)
                with torch.no_grad():
                    module.weight.fill_(1.0) if "layernorm" in head else module.weight.normal_(0.0, std)
        guard.config.dtype = backbone.dtype
        return guard

    def build(self) -> nn.Module:
        """A fresh trainable module; `lower` becomes the frozen part, if any."""
        return self._parts()[1]

    def _parts(self) -> tuple[StreamGuard, StreamModule]:
        """The whole guard, and what is trained of it (its own modules)."""
        guard = self.whole()
        upper: Any = guard.model
        if self.config.train_layers is not None:
            freeze_below(guard.model, self.config.train_layers)
            halves = cut(guard.model, self.config.train_layers)
            self.lower, upper = halves.lower, halves.upper
        if self.config.lora_rank:
            add_adapters(upper, self.config.lora_rank, self.config.seed)
        return guard, StreamModule(guard, upper)

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Summed loss of a batch: Lq + Lr per sample, times its weight."""
        total = torch.zeros((), device=batch["risk"].device)
        logits = module(batch)
        for branch, side in SIDES.items():
            risk_logits, category_logits = logits[side]
            here = batch["branch"] == branch
            per_token = token_loss(
                risk_logits, category_logits, batch["risk"][here], batch["category"][here], self.safe
            )
            total = total + sample_means(per_token, batch["segment"][here], batch["weight"][here])
        return total

    def save(self, state: State, folder: Path, held_out: Sequence[Encoded]) -> dict[str, float]:
        """Writes the guard (published layout for Qwen3, else ours) and its tokenizer; returns what was fitted last."""
        guard, module = self._parts()
        module.load_state_dict(state, strict=False)
        if self.config.lora_rank:
            merge_adapters(module.upper)
        shifts = fitted(guard.eval(), held_out) if self.config.fit_shift else {}
        for name, shift in shifts.items():
            setattr(guard.config, name, shift)
        guard.save_guard(folder)
        save_tokenizer(self.tokenizer, folder)
        return shifts
