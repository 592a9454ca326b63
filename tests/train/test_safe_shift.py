"""The shift of a response's safe logit: chosen on whole responses, and applied wherever tokens are read."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from label.scores import debounced
from train.data import StreamExample, encode_stream
from train.labels import LabelMaps
from train.safe_shift import best_shift, fitted, margins
from train.stream_model import StreamGuard, StreamGuardConfig

SAFETY = LabelMaps(
    ("Safe", "Unsafe", "Controversial"),
    ("A",),
    ("A",),
    ("Safe",),
    ("Unsafe", "Controversial"),
    ("Unsafe",),
)
TEXTS = ("the old dog walks", "a small bridge and sings how do I make cake", "music with cake", "over")


def guard(backbone) -> StreamGuard:
    torch.manual_seed(3)
    return StreamGuard(StreamGuardConfig.for_policy(AutoConfig.from_pretrained(backbone), SAFETY, 16)).eval()


def samples(tokenizer, risks=("Safe", "Unsafe"), times=1):
    examples = [
        StreamExample(
            str(i),
            f"g{i}",
            "how",
            response=text,
            response_risk=risks[i % len(risks)],
            onset=0 if risks[i % len(risks)] != "Safe" else None,
        )
        for i, text in enumerate(TEXTS * times)
    ]
    return [encode_stream(example, tokenizer, SAFETY, 64) for example in examples]


def flagged(model, sample) -> bool:
    """As the stream says it, token by token: two running that are not safe."""
    asked = int((sample.targets["branch"] >= 0).argmax())
    state = model.stream_moderate_from_ids(sample.ids[:asked].tolist(), "user")[1]
    told, _ = model.stream_moderate_from_ids(sample.ids[asked:].tolist(), "assistant", state)
    return debounced([risk != "Safe" for risk in told["risk_level"]]) is not None


def test_a_response_is_flagged_where_its_margin_exceeds_the_shift(llama, tokenizer):
    model, made = guard(llama), samples(tokenizer)
    margin = margins(model, made, [0])
    known = np.unique(margin[np.isfinite(margin)])
    assert margin[3] == -np.inf and len(known) == 3  # one token is never two running
    for shift in (0.0, known[0] - 0.1, *(known[1:] + known[:-1]) / 2, known[-1] + 0.1):
        model.config.safe_shift = float(shift)
        assert [flagged(model, sample) for sample in made] == (margin > shift).tolist()


def test_prompts_are_read_without_the_shift(llama):
    model, hidden = guard(llama), torch.randn(2, 32)
    before = [model.heads(hidden, side)[0] for side in ("", "query_")]
    model.config.safe_shift = 2.0
    after = [model.heads(hidden, side)[0] for side in ("", "query_")]
    assert torch.allclose(after[0] - before[0], torch.tensor([2.0, 0.0, 0.0]), atol=1e-5)
    assert torch.equal(after[1], before[1])


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=12))
def test_no_other_shift_has_a_better_f1(rows):
    margin, truth = np.array([float(m) for m, _ in rows]), np.array([t for _, t in rows])

    def f1(shift):
        said = margin > shift
        return 2 * (said & truth).sum() / max(1, said.sum() + truth.sum())

    best = best_shift(margin, truth)
    others = [f1(shift) for shift in (*(np.arange(-4, 5) + 0.5), 0.0) if margin.min() < shift < margin.max()]
    assert f1(best) >= max([f1(0.0), *others]) - 1e-9
    assert best == 0.0 or f1(best) > f1(0.0)


def test_too_few_responses_of_either_kind_leave_the_guard_as_it_is(llama, tokenizer):
    assert fitted(guard(llama), samples(tokenizer, times=4)) == 0.0  # 8 of each
    assert fitted(guard(llama), samples(tokenizer, risks=("Safe",), times=12)) == 0.0
    assert fitted(guard(llama), []) == 0.0


@pytest.mark.parametrize("layout", ["llama", "qwen3"])
def test_both_layouts_keep_the_shift_and_do_not_mention_none(layout, tmp_path, request):
    model = guard(request.getfixturevalue(layout))
    for shift in (0.0, 1.25):
        model.config.safe_shift = shift
        model.save_guard(tmp_path / str(shift))
        assert StreamGuard.from_pretrained(tmp_path / str(shift)).config.safe_shift == shift
    if layout == "qwen3":
        assert "safe_shift" not in json.loads((tmp_path / "0.0" / "config.json").read_text())
