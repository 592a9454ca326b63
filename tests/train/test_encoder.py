"""The upper layers of a sentence encoder, trained for real: a tiny one, on texts that one word decides."""

import random

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from tests.encoders import tiny_encoder
from train.encoder import EncoderConfig, EncoderTrainer

WORDS = ["good", "bad", *(f"w{i}" for i in range(30))]
QUICK = EncoderConfig(layers=1, epochs=12, lr=3e-3, head_lr=1e-2, batch_tokens=256)


@pytest.fixture
def encoder(tmp_path):
    return tiny_encoder(tmp_path / "encoder", WORDS)


def texts(count, seed):
    chance = random.Random(seed)
    made = [" ".join(chance.choices(WORDS[2:], k=chance.randint(2, 9))) for _ in range(count)]
    verdicts = np.array([i % 2 for i in range(count)])
    return [f"{text} {('good', 'bad')[v]} w1" for text, v in zip(made, verdicts, strict=True)], verdicts


def tune(model, read, targets, config):
    return EncoderTrainer(model, read, config).fit(targets)


def separation(model, seed=1):
    """Accuracy on new texts of the nearest of the two verdicts' mean vectors."""
    read, verdicts = texts(200, seed)
    vectors = model.encode(read)
    means = np.stack([vectors[:100][verdicts[:100] == v].mean(axis=0) for v in (0, 1)])
    near = np.argmax(vectors[100:] @ means.T, axis=1)
    return float((near == verdicts[100:]).mean())


def test_training_teaches_the_vectors_what_decides_and_changes_the_upper_layers_only(encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    untaught = separation(encoder)
    read, verdicts = texts(240, 0)
    changed = tune(encoder, read, {"severity": verdicts}, QUICK)
    assert separation(encoder) > max(0.95, untaught)
    assert changed and all("encoder.layer.2." in name for name in changed)
    after = encoder.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} <= set(changed)
    assert all(torch.equal(after[name], tensor) for name, tensor in changed.items())


def test_rows_without_an_answer_teach_nothing(encoder):
    read, verdicts = texts(240, 0)
    wrong = [text.replace("bad", "x").replace("good", "bad").replace("x", "good") for text in read]
    known = np.concatenate([verdicts, np.full(240, -1)])
    tune(encoder, [*read, *wrong], {"severity": known}, QUICK)
    assert separation(encoder) > 0.95


def test_the_same_seed_gives_the_same_weights(encoder, tmp_path):
    read, verdicts = texts(60, 0)
    encoder.save(str(tmp_path / "saved"))
    brief = EncoderConfig(layers=1, epochs=2, lr=3e-3, batch_tokens=256)
    one, two = (
        tune(SentenceTransformer(str(tmp_path / "saved"), device="cpu"), read, {"severity": verdicts}, brief)
        for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("targets", [{}, {"severity": np.zeros(20, int)}, {"severity": np.full(20, -1)}])
def test_nothing_is_trained_where_nothing_is_asked(encoder, targets):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert tune(encoder, texts(20, 0)[0], targets, QUICK) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="no layers that could be trained"):
        bag = SentenceTransformer(modules=[modules.BoW(vocab=WORDS)], device="cpu")
        tune(bag, ["good", "bad"], {"severity": np.array([0, 1])}, QUICK)


def test_its_vectors_are_the_models_before_and_after(encoder):
    read, verdicts = texts(50, 0)
    trainer = EncoderTrainer(encoder, read, QUICK)
    for _ in range(2):
        assert (trainer.vectors() * encoder.encode(read)).sum(axis=1).min() > 0.999
        trainer.fit({"severity": verdicts})
