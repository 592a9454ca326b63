"""The cut decoder does the whole decoder's arithmetic, forwards and backwards."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from synth.errors import BadInput
from train.data import Encoded
from train.trunk import Features, cut, freeze_below, run
from train.weave import collate


def backbone(folder):
    return AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()


def some_samples():
    generator = np.random.default_rng(1)
    shared = generator.integers(0, 300, 5)
    ids = [np.concatenate([shared, generator.integers(0, 300, n)]) for n in (2, 6, 9, 4)]
    return [Encoded(each, {"labels": np.arange(len(each))}) for each in [*ids, ids[1]]]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("train_layers", [1, 2, 3])
def test_both_parts_together_equal_the_whole_model_and_its_gradients(kind, train_layers, request):
    samples = some_samples()
    batch = collate([[0, 1], [2, 3]], samples)
    whole, parts = (backbone(request.getfixturevalue(kind)) for _ in range(2))
    layout = (batch["position_ids"], batch["end"])
    freeze_below(whole, train_layers)
    expected = run(whole, *layout, input_ids=batch["input_ids"])
    expected.flatten(0, 1)[batch["at"]].square().sum().backward()
    freeze_below(parts, train_layers)
    halves = cut(parts, train_layers)
    with torch.no_grad():
        lower = run(halves.lower, *layout, input_ids=batch["input_ids"])
    found = run(halves.upper, *layout, inputs_embeds=lower)
    found.flatten(0, 1)[batch["at"]].square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_the_trained_part_does_not_own_the_embeddings(llama):
    halves = cut(backbone(llama), 1)
    assert not [name for name, _ in halves.upper.named_parameters() if "embed" in name]
    assert len(halves.upper.layers) == 1


@pytest.mark.parametrize("world", [1, 2])
def test_stored_features_equal_the_lower_parts_output_whoever_computed_them(llama, tmp_path, world):
    samples = some_samples()
    lower = cut(backbone(llama), 1).lower
    features = Features(tmp_path / "f", samples, 32)
    features.create()
    done = sum(features.fill(lower, rank, world, row_length=16) for rank in range(world))
    rows = [[0, 4], [2, 3, 1]]
    gathered = features.gather(features.open(), rows, samples)
    batch = collate(rows, samples)
    with torch.no_grad():
        expected = run(lower, batch["position_ids"], batch["end"], input_ids=batch["input_ids"])
    at = batch["at"]
    torch.testing.assert_close(gathered.flatten(0, 1)[at], expected.flatten(0, 1)[at], rtol=1e-4, atol=1e-5)
    assert features.total <= done < sum(len(sample) for sample in samples)


def test_more_trained_layers_than_there_are_is_refused(llama):
    with pytest.raises(BadInput, match="train_layers is 4, but the backbone has 3 layers"):
        cut(backbone(llama), 4)


def test_a_decoder_that_does_more_than_stack_layers_is_refused(llama):
    class Scaled(type(backbone(llama))):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.last_hidden_state = out.last_hidden_state * (2.0 if self.embed_tokens is None else 1.0)
            return out

    model = backbone(llama)
    model.__class__ = Scaled
    assert isinstance(model, nn.Module)
    with pytest.raises(BadInput, match="cannot be cut in two"):
        cut(model, 1)
