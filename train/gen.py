"""The generative guard: supervised fine-tuning of a chat model on the policy's moderation instruction.

The loss falls on the answer only (METHOD.md §6), and logits are computed only there: with a vocabulary of 49k
the output layer is a fifth of SmolLM2's multiplications, and an answer is a tenth of its row. With
`train_layers` = k the embeddings (tied to the output layer in small models), the output layer and the lower
layers stay frozen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from synth.errors import BadInput
from train.backbone import load_backbone, load_tokenizer, longest_row, save_tokenizer
from train.data import IGNORE, Encoded, GenExample, encode_gen
from train.deepspeed_engine import State
from train.fit_config import GenConfig
from train.lora import add_adapters, merge_adapters
from train.loss import answer_loss
from train.trunk import cut, freeze_below, run
from train.weave import Batch


class GenModule(nn.Module):
    """What is trained: the upper part (all of it without a cut) and the output layer, frozen with a cut."""

    def __init__(self, upper: nn.Module, lm_head: Any) -> None:
        super().__init__()
        self.upper, self.lm_head = upper, lm_head
        self.dtype = lm_head.weight.dtype

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [N, V] at the N labelled positions."""
        if "hidden" in batch:
            inputs = {"inputs_embeds": batch["hidden"].to(self.dtype)}
        else:
            inputs = {"input_ids": batch["input_ids"]}
        hidden_BLD = run(self.upper, batch["position_ids"], batch["end"], **inputs)
        return self.lm_head(hidden_BLD.flatten(0, 1)[batch["at"]])


class GenTask:
    """How a generative guard is encoded, built, scored and saved."""

    def __init__(self, config: GenConfig) -> None:
        if config.train_layers == 0:
            raise BadInput("a generative guard has no head of its own: train_layers must not be 0")
        self.config = config
        self.tokenizer = load_tokenizer(config.backbone)
        self.longest = longest_row(config)
        self.lower: Any = None

    def encode(self, examples: Sequence[GenExample]) -> tuple[list[Encoded], list[int]]:
        """Samples, and the indices of the examples they come from; those longer than `max_length` are left
        out."""
        samples = [encode_gen(example, self.tokenizer) for example in examples]
        kept = [i for i, sample in enumerate(samples) if len(sample) <= self.longest]
        return [samples[i] for i in kept], kept

    def label(self, example: GenExample) -> str:
        """The class of an example, for balancing."""
        return example.label or example.answer.splitlines()[0]

    def mass(self, sample: Encoded) -> float:
        """Weighted count of answer tokens."""
        return sample.weight * float((sample.targets["labels"] != IGNORE).sum())

    def whole(self) -> Any:
        """The backbone as it is before training."""
        return load_backbone(AutoModelForCausalLM, self.config)

    def build(self) -> nn.Module:
        """A fresh trainable module; `lower` becomes the frozen part, if any."""
        return self._parts()[1]

    def _parts(self) -> tuple[Any, GenModule]:
        """The whole model, and what is trained of it (its own modules)."""
        model = self.whole()
        upper = model.get_decoder()
        if self.config.train_layers is not None:
            model.requires_grad_(False)
            freeze_below(model.get_decoder(), self.config.train_layers)
            halves = cut(model.get_decoder(), self.config.train_layers)
            self.lower, upper = halves.lower, halves.upper
        if self.config.lora_rank:
            model.requires_grad_(False)
            add_adapters(upper, self.config.lora_rank, self.config.seed)
        return model, GenModule(upper, model.get_output_embeddings())

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Summed loss of a batch's answer tokens."""
        return answer_loss(module(batch), batch["labels"], batch["weight"])

    def save(self, state: State, folder: Path, _held_out: Sequence[Encoded]) -> dict[str, float]:
        """Writes model and tokenizer, ours in chat template, so that AutoModelForCausalLM loads them."""
        model, module = self._parts()
        module.load_state_dict(state, strict=False)
        if self.config.lora_rank:
            merge_adapters(module.upper)
        if self.config.bf16:
            model = model.to(torch.bfloat16)
        model.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
        return {}
