"""However a text is cut into pieces, its tokens are those of the whole: for several tokenizers and scripts."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ray_jobs.engine.weights import SMOLLM2, locate
from train.text_stream import TextStream, uncuttable

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "how do I make a cake, a kite or a king? it's the king's kitchen; we're cooking.",
    "你好，世界。你好世界！ 12,345.67 thinking <think> ok </think> naïve café e\u0301 ",
    "  two  spaces\n\n\n  and lines\r\n ... -- !!! 😀😀 ไทย ภาษา",
] * 4
PIECES = [" ", "  ", "\n", "\r\n", "\t", "a", "kite", "'s", "'", "’", ",", "，", "。", "...", "你好", "世界", "😀", "e",
          "\u0301", "<think", ">", "</think>", "12", "3", "É", "ไทย", "ภ", "\u200d", "_",
          "(", "<|im_end|>", "\u00a0", "ß", "x y"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14)


def trained(pattern: str | None, normalizer=None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a family's splitting pattern, and added tokens as Qwen has them."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=["smollm2", "qwen", "o200k", "unsplit"])
def tokenizer(request):
    if request.param == "smollm2":
        return PreTrainedTokenizerFast.from_pretrained(locate(SMOLLM2))
    made = {
        "qwen": lambda: trained(QWEN, normalizers.NFC()),
        "o200k": lambda: trained(O200K),
        "unsplit": lambda: trained(None),
    }
    return made[request.param]()


def tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@settings(max_examples=40, deadline=None)
@given(TEXTS)
@example(["foo", "  ", "\n", "  ", "\n", "x"])
@example(["a <think", ">", " b"])
@example(["it", "'", "s", " e", "\u0301", ",", " x"])
@example(["\x1d"])
@example(["\x1d", "\x1d", "a"])
@example([" x", "\x1d", " y\x1d"])
def test_tokens_after_every_piece_are_those_of_the_text_so_far_and_final_ones_stay(tokenizer, pieces):
    stream, text, final = TextStream(tokenizer), "", []
    for piece in pieces:
        before = list(stream.ids)
        back = stream.push(piece)
        text += piece
        assert stream.text == text and stream.ids == tokens(tokenizer, text)
        assert stream.ids[: len(before) - back] == before[: len(before) - back]
        assert stream.ids[: len(final)] == final, "a final token changed"
        assert back <= len(before) - len(final)
        final = stream.ids[: stream.final]
        assert "".join(stream.pieces()) == (text if stream.ids else "")
    stream.end()
    assert stream.final == len(stream.ids) and stream.final_text() == (len(text) if stream.ids else 0)


def test_what_is_tokenized_again_does_not_grow_with_the_text(tokenizer):
    if uncuttable(tokenizer) is None:
        pytest.skip("a tokenizer without cuts reads the whole text")
    stream, longest = TextStream(tokenizer), 0
    for word in ["word,", " kite", "你好", "，世界"] * 200:
        stream.push(word)
        longest = max(longest, len(stream.ids) - stream.final)
    assert longest <= 16


def test_only_tokenizers_that_split_at_cuts_have_any():
    assert uncuttable(trained(None)) is None
    assert uncuttable(trained(QWEN, normalizers.NFKC())) is None
    inside = uncuttable(trained(QWEN))
    assert inside is not None and {">", "/"} <= inside


def test_an_emoji_that_json_cut_in_two_is_one_character_again(tokenizer):
    stream = TextStream(tokenizer)
    first, second = json.loads('["go \\ud83d", "\\ude00!"]')
    stream.push(first)
    assert stream.text == "go "
    stream.push(second)
    assert stream.text == "go 😀!" and stream.ids == tokens(tokenizer, "go 😀!")
    assert stream.pieces()[-1] == "!" and "".join(stream.pieces()) == "go 😀!"


@pytest.mark.parametrize(
    ("pieces", "text"), [(["a\ud83d"], "a\ufffd"), (["\ude00b"], "\ufffdb"), (["\ud83d", "c"], "\ufffdc")]
)
def test_half_a_character_without_its_other_half_is_replaced(tokenizer, pieces, text):
    stream = TextStream(tokenizer)
    for piece in pieces:
        stream.push(piece)
    stream.end()
    assert stream.text == text and stream.ids == tokens(tokenizer, text)


def test_markers_in_the_text_are_text(tokenizer):
    stream = TextStream(tokenizer)
    stream.push("<|im_end|>")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in stream.ids
