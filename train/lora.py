"""Low-rank adapters (LoRA, Hu et al. 2021) on a decoder's linear layers, through peft.

Only the adapters (and, for a streaming guard, its heads) are trained; a finished guard has them merged into its
weights, so that its checkpoint is an ordinary one. Scale: alpha = 2 x rank, no dropout. Adapters go on the layers that
`train_layers` would train.
"""

from typing import Any

import torch
from torch import nn


def add_adapters(decoder: Any, rank: int, seed: int) -> None:
    """Freezes `decoder` and puts an adapter of `rank` beside every linear layer in its blocks."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name for name, module in decoder.layers.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted({name.rpartition(".")[2] for name in linear})
    decoder.requires_grad_(False)
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, decoder.layers)


def merge_adapters(decoder: Any) -> None:
    """Adds every adapter to the weights beside it and takes it off."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(decoder.layers.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[attr-defined]
            parent, _, child = name.rpartition(".")
            setattr(decoder.layers.get_submodule(parent), child, layer.get_base_layer())
