"""Adapters: nothing at first, and the same function before and after they are merged."""

import torch
from transformers import AutoModel

from train.lora import add_adapters, merge_adapters


def test_merging_changes_the_form_and_not_the_function(llama):
    decoder = AutoModel.from_pretrained(llama).eval()
    names = set(decoder.state_dict())
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        plain = decoder(ids).last_hidden_state
        add_adapters(decoder, 2, seed=0)
        assert torch.equal(decoder(ids).last_hidden_state, plain)
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        assert sum(p.numel() for p in trained) < 0.5 * sum(p.numel() for p in decoder.parameters())
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 0.3)
        adapted = decoder(ids).last_hidden_state
        assert not torch.allclose(adapted, plain, atol=1e-3)
        merge_adapters(decoder)
        torch.testing.assert_close(decoder(ids).last_hidden_state, adapted, atol=1e-4, rtol=1e-4)
    assert set(decoder.state_dict()) == names


def test_the_seed_draws_the_adapters(llama):
    drawn = []
    for seed in (1, 1, 2):
        decoder = AutoModel.from_pretrained(llama)
        add_adapters(decoder, 2, seed)
        drawn.append(torch.cat([p.flatten() for p in decoder.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
