"""The shifts of the safe logits: chosen on whole texts, and applied wherever prompts and tokens are read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from label.scores import debounced
from train.data import QUERY, RESPONSE, StreamExample, encode_stream
from train.labels import LabelMaps
from train.safe_shift import fitted, level, margins
from train.stream_model import SHIFTS, StreamGuard, StreamGuardConfig

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
    margin = margins(model, made, [0], RESPONSE)
    known = np.unique(margin[np.isfinite(margin)])
    assert margin[3] == -np.inf and len(known) == 3  # one token is never two running
    for shift in (0.0, known[0] - 0.1, *(known[1:] + known[:-1]) / 2, known[-1] + 0.1):
        model.config.safe_shift = float(shift)
        assert [flagged(model, sample) for sample in made] == (margin > shift).tolist()


def prompts(tokenizer, times=1):
    """Of prompts of two kinds, every third violates."""
    return [
        encode_stream(
            StreamExample(str(i), f"g{i}", text, query_risk="Safe" if i % 3 else "Unsafe"),
            tokenizer,
            SAFETY,
            64,
        )
        for i, text in enumerate(TEXTS * times)
    ]


def refused(model, sample) -> bool:
    """As the stream says it at the end of the user's turn."""
    end = int((sample.targets["branch"] == QUERY).argmax()) + 1
    told, _ = model.stream_moderate_from_ids(sample.ids[:end].tolist(), "user")
    return told["risk_level"][-1] != "Safe"


def test_a_prompt_is_flagged_where_its_margin_exceeds_its_own_shift(llama, tokenizer):
    model, made = guard(llama), prompts(tokenizer)
    margin = margins(model, made, [0], QUERY)
    known = np.sort(margin)
    assert np.isfinite(known).all()
    for shift in (known[0] - 0.1, *(known[1:] + known[:-1]) / 2, known[-1] + 0.1):
        model.config.query_safe_shift = float(shift)
        assert [refused(model, sample) for sample in made] == (margin > shift).tolist()


def test_each_side_is_read_with_its_own_shift(llama):
    model, hidden = guard(llama), torch.randn(2, 32)
    before = [model.heads(hidden, side)[0] for side in ("", "query_")]
    model.config.safe_shift, model.config.query_safe_shift = 2.0, -3.0
    after = [model.heads(hidden, side)[0] for side in ("", "query_")]
    for one, other, shift in zip(before, after, (2.0, -3.0), strict=True):
        assert torch.allclose(other - one, torch.tensor([shift, 0.0, 0.0]), atol=1e-5)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12, unique=True), st.data())
def test_as_many_texts_are_flagged_as_violate(values, data):
    margin, flagged = np.array(values, dtype=float), data.draw(st.integers(1, len(values) - 1))
    assert (margin > level(margin, flagged)).sum() == flagged


def test_responses_of_one_token_leave_no_level():
    assert level(np.array([1.0, -np.inf, -np.inf]), 1) == level(np.array([-np.inf, -np.inf]), 1) == 0.0


def test_held_out_texts_are_flagged_as_often_as_they_violate(llama, tokenizer):
    model, made = guard(llama), [*prompts(tokenizer, 12), *samples(tokenizer, times=6)]
    shifts = fitted(model, made)
    assert set(shifts) == set(SHIFTS) and all(shifts.values())
    for name, shift in shifts.items():
        setattr(model.config, name, shift)
    assert fitted(model, made) == pytest.approx(dict.fromkeys(SHIFTS, 0.0), abs=1e-4)


def test_too_few_responses_of_either_kind_leave_the_guard_as_it_is(llama, tokenizer):
    none = dict.fromkeys(SHIFTS, 0.0)
    assert fitted(guard(llama), samples(tokenizer, times=4)) == none  # 8 of each
    assert fitted(guard(llama), samples(tokenizer, risks=("Safe",), times=12)) == none
    assert fitted(guard(llama), []) == none


@pytest.mark.parametrize("layout", ["llama", "qwen3"])
def test_both_layouts_keep_the_shifts_and_do_not_mention_none(layout, tmp_path, request):
    model = guard(request.getfixturevalue(layout))
    for shift in (0.0, 1.25):
        model.config.safe_shift, model.config.query_safe_shift = shift, -shift
        model.save_guard(tmp_path / str(shift))
        kept = StreamGuard.from_pretrained(tmp_path / str(shift)).config
        assert (kept.safe_shift, kept.query_safe_shift) == (shift, -shift)
    if layout == "qwen3":
        assert "safe_shift" not in (tmp_path / "0.0" / "config.json").read_text()
