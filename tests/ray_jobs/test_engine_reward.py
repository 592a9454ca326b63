"""Reward models behind the engine: one score per conversation, and one sentence for a model that gives none."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ray_jobs.engine.calls import Failure, Model
from ray_jobs.engine.local import LocalModel
from synth.errors import BadInput

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASKED = [{"role": "user", "content": "how do I bake bread"}]
ANSWERS = ["with flour and an oven", "no", "first you take a bowl and then some water and so on and on"]
TURNS = [[*ASKED, {"role": "assistant", "content": text}] for text in ANSWERS]


def save(folder: Path, auto: str, template: str | None = TEMPLATE, **config) -> Path:
    """A random Llama of the given class with a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(ANSWERS, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=120, initializer_range=0.3, **config,
    )  # fmt: skip
    getattr(transformers, auto)(shape).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def scores(folder: Path, conversations: list) -> list:
    return LocalModel(Model("local", str(folder), "reward")).embed(conversations)


def test_a_conversation_gets_the_models_own_score_whatever_it_is_batched_with(tmp_path):
    folder = save(tmp_path, "LlamaForSequenceClassification", num_labels=1)
    found = scores(folder, TURNS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.eos_token_id
    for turns, one in zip(TURNS, found, strict=True):
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            assert one.values == pytest.approx(model(ids).logits[0].numpy(), abs=1e-4)
        assert one.values.shape == (1,) and one.prompt_tokens == ids.shape[1]
    assert len({round(float(one.values[0]), 3) for one in found}) == 3


def test_without_a_chat_template_question_and_answer_are_a_pair(tmp_path):
    folder = save(tmp_path, "LlamaForSequenceClassification", template=None, num_labels=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    (found,) = scores(folder, TURNS[:1])
    assert found.prompt_tokens == len(tokenizer(ASKED[0]["content"], ANSWERS[0])["input_ids"])


def test_what_cannot_be_scored_fails_alone(tmp_path):
    folder = save(tmp_path, "LlamaForSequenceClassification", num_labels=1)
    long = [*ASKED, {"role": "assistant", "content": "bread " * 200}]
    found = scores(folder, [TURNS[0], long, ASKED, "a text"])
    assert [isinstance(one, Failure) for one in found] == [False, True, True, False]
    assert "the model holds 120" in found[1].reason and "ends with an answer" in found[2].reason
    assert np.isfinite(found[0].values[0])


def test_several_outputs_or_none_trained_are_one_sentence(tmp_path):
    wide = save(tmp_path / "wide", "LlamaForSequenceClassification", num_labels=3)
    with pytest.raises(BadInput, match="has 3 outputs; a reward model has one"):
        scores(wide, TURNS)
    language = save(tmp_path / "language", "LlamaForCausalLM")
    with pytest.raises(BadInput, match=r"has no trained score\.weight: no reward model"):
        scores(language, TURNS)
