"""A sentence encoder so small that a test can train it: random weights, one token a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WIDTH = 32


def tiny_encoder(folder: Path, words: Sequence[str]) -> SentenceTransformer:
    """Three layers over these words; any other is unknown. What is made lies in `folder`, to be loaded again."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words])}
    tokens = Tokenizer(WordLevel(vocabulary, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    parts = folder / "parts"
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        parts
    )
    shape = BertConfig(vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2,
                       intermediate_size=48, max_position_embeddings=64)  # fmt: skip
    BertModel(shape).save_pretrained(parts)
    stack = [modules.Transformer(str(parts)), modules.Pooling(WIDTH), modules.Normalize()]
    SentenceTransformer(modules=stack, device="cpu").save(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu")
