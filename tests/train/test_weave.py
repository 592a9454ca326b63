"""Prefix trees against their definition, and woven logits against plain ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from synth.errors import BadInput
from train.data import IGNORE, Encoded
from train.trunk import run
from train.weave import collate, neighbours, pack, path_mask, sorted_distinct, weave

SAMPLES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def arrays(samples):
    return [np.array(sample, dtype=np.int64) for sample in samples]


@settings(max_examples=100, deadline=None)
@given(SAMPLES)
def test_every_sample_reads_its_own_tokens_at_its_own_positions_and_sees_only_itself(samples):
    woven = weave(arrays(samples))
    mask = path_mask(torch.from_numpy(woven.end)[None])[0, 0]
    for sample, places in zip(samples, woven.places, strict=True):
        assert woven.ids[places].tolist() == sample
        assert woven.depth[places].tolist() == list(range(len(sample)))
        for position, place in enumerate(places):
            assert mask[place].nonzero().squeeze(-1).tolist() == places[: position + 1].tolist()


@settings(max_examples=100, deadline=None)
@given(SAMPLES)
def test_a_common_beginning_is_laid_out_once(samples):
    distinct = {tuple(sample[:n]) for sample in samples for n in range(1, len(sample) + 1)}
    assert len(weave(arrays(samples)).ids) == len(distinct)


@settings(max_examples=100, deadline=None)
@given(SAMPLES, st.integers(6, 20), st.integers(0, 3))
def test_packing_keeps_every_sample_once_and_every_row_within_its_length(samples, row_length, seed):
    ids = arrays(samples)
    rows = pack(ids, row_length, seed)
    assert sorted(i for row in rows for i in row) == list(range(len(ids)))
    assert all(len(weave([ids[i] for i in row]).ids) <= row_length for row in rows)
    assert rows == pack(ids, row_length, seed)


@settings(max_examples=50, deadline=None)
@given(SAMPLES, st.integers(6, 20))
def test_rows_of_neighbours_hold_every_distinct_sample_once(samples, row_length):
    distinct = sorted_distinct(arrays(samples))
    rows = neighbours(distinct, row_length)
    assert [ids.tolist() for row in rows for ids in row] == sorted({tuple(s): s for s in samples}.values())
    assert all(len(weave(row).ids) <= row_length for row in rows)


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(BadInput, match="sample 0 has 9 tokens"):
        pack(arrays([list(range(9))]), 8, 0)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_woven_hidden_states_equal_those_of_each_sample_alone(kind, request):
    model = AutoModel.from_pretrained(request.getfixturevalue(kind), attn_implementation="sdpa").eval()
    generator = np.random.default_rng(0)
    prefix = generator.integers(0, 300, 7)
    ids = [np.concatenate([prefix, generator.integers(0, 300, n)]) for n in (3, 9, 5)]
    ids += [generator.integers(0, 300, n) for n in (4, 11)]
    samples = [Encoded(each, {"labels": np.arange(len(each))}) for each in ids]
    batch = collate([[0, 3, 1], [2, 4]], samples)
    with torch.no_grad():
        woven = run(model, batch["position_ids"], batch["end"], input_ids=batch["input_ids"]).flatten(0, 1)
        for segment, index in enumerate([0, 3, 1, 2, 4]):
            alone = model(torch.from_numpy(ids[index])[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(
                woven[batch["at"][batch["segment"] == segment]], alone, rtol=1e-4, atol=1e-5
            )


def test_a_shared_position_carries_the_targets_of_all_its_samples():
    first = Encoded(np.array([1, 2, 3]), {"labels": np.array([IGNORE, 3, IGNORE])}, weight=2.0)
    second = Encoded(np.array([1, 2, 4]), {"labels": np.array([IGNORE, 4, IGNORE])}, weight=0.5)
    batch = collate([[0, 1]], [first, second])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2]]
    assert batch["at"].tolist() == [1, 1]
    assert batch["labels"].tolist() == [3, 4]
    assert batch["weight"].tolist() == [2.0, 0.5]
    assert batch["segment"].tolist() == [0, 1]
