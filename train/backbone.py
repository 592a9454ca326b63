"""Loading the model a guard starts from, and its tokenizer with the guards' own chat layout."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from synth.errors import BadInput
from train.data import CHAT_TEMPLATE, special_id
from train.fit_config import FitConfig


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with ChatML markers; BadInput where it has none."""
    _check_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for marker in ("<|im_start|>", "<|im_end|>"):
        special_id(tokenizer, marker)
    return tokenizer


def load_backbone(auto_class: Any, config: FitConfig) -> Any:
    """The backbone's weights in float32 (bfloat16 where the config trains so), under SDPA attention."""
    _check_folder(config.backbone)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    return auto_class.from_pretrained(
        config.backbone, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
    )


def longest_row(config: FitConfig) -> int:
    """`max_length`, or the backbone's context where that is shorter."""
    about = AutoConfig.from_pretrained(config.backbone)
    return min(config.max_length, getattr(about, "max_position_embeddings", None) or config.max_length)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves the tokenizer with the layout the guard was trained in as its chat template."""
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(folder))


def _check_folder(folder: str) -> None:
    path = Path(folder)
    if path.is_absolute() and not (path / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json there, so this is not a model folder")
