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


def samples(tokenizer, risks=("Safe", "Unsafe"), times=1, onset=0):
    examples = [
        StreamExample(
            str(i),
            f"g{i}",
            "how",
            response=text,
            response_risk=risks[i % len(risks)],
            onset=onset if risks[i % len(risks)] != "Safe" else None,
        )
        for i, text in enumerate(TEXTS * times)
    ]
    return [encode_stream(example, tokenizer, SAFETY, 64) for example in examples]


def sure_at(model, sample) -> int | None:
    """As the stream says it, token by token: the second of the first two running that are not safe."""
    asked = int((sample.targets["branch"] >= 0).argmax())
    state = model.stream_moderate_from_ids(sample.ids[:asked].tolist(), "user")[1]
    told, _ = model.stream_moderate_from_ids(sample.ids[asked:].tolist(), "assistant", state)
    return debounced([risk != "Safe" for risk in told["risk_level"]])


def between(known):
    known = np.unique(known[np.isfinite(known)])
    return (known[0] - 0.1, *(known[1:] + known[:-1]) / 2, known[-1] + 0.1, 0.0)


def test_margins_say_where_the_stream_flags_a_response_at_any_shift(llama, tokenizer):
    model = guard(llama)
    made = samples(tokenizer, times=2, onset=8)
    told = margins(model, made)
    turns = [int(s.targets["risk"][s.targets["branch"] >= 0].argmax()) for s in made]
    assert {bool(turn) for turn in turns} == {True, False}  # responses that turn inside, and safe ones
    for shift in between(told):
        model.config.safe_shift = float(shift)
        for sample, turn, (early, in_time, anywhere) in zip(made, turns, told, strict=True):
            at = sure_at(model, sample)
            assert (at is not None) == (anywhere > shift)
            if turn:
                assert (at is not None and at - 1 < turn) == (early > shift)
                assert (at is not None and turn <= at - 1 < turn + 3) == (early <= shift < in_time)


def test_a_response_that_violates_from_its_first_token_on_may_be_flagged_anywhere(llama, tokenizer):
    told = margins(guard(llama), samples(tokenizer, risks=("Unsafe",)))
    assert (told[:, 0] == -np.inf).all() and (told[:, 1] == told[:, 2]).all()
    assert told[3, 2] == -np.inf and np.isfinite(told[:3, 2]).all()  # one token is never two running


def test_a_safe_response_is_never_found(llama, tokenizer):
    told = margins(guard(llama), samples(tokenizer, risks=("Safe",)))
    assert (told[:, 1] == -np.inf).all() and (told[:, 0] == told[:, 2]).all()


def test_prompts_are_read_without_the_shift(llama):
    model, hidden = guard(llama), torch.randn(2, 32)
    before = [model.heads(hidden, side)[0] for side in ("", "query_")]
    model.config.safe_shift = 2.0
    after = [model.heads(hidden, side)[0] for side in ("", "query_")]
    assert torch.allclose(after[0] - before[0], torch.tensor([2.0, 0.0, 0.0]), atol=1e-5)
    assert torch.equal(after[1], before[1])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.booleans()), min_size=2, max_size=12))
def test_no_other_shift_finds_responses_better(rows):
    """A safe row has margins (x, -inf, x); one that violates (early, in time, the larger or more)."""
    looks = np.array([(e, t, max(e, t)) if v else (e, -np.inf, e) for e, t, v in rows], dtype=float)
    violating = sum(v for *_, v in rows)

    def f1(shift):
        found = sum(v and e <= shift < t for e, t, v in rows)
        return 2 * found / max(1, (looks[:, 2] > shift).sum() + violating)

    best, known = best_shift(looks, violating), looks[np.isfinite(looks)]
    inside = [f1(shift) for shift in np.arange(-5, 5) + 0.5 if known.min() < shift < known.max()]
    assert f1(best) >= max([f1(0.0), *inside]) - 1e-9
    assert best == 0.0 or f1(best) > f1(0.0)


def test_too_few_responses_of_either_kind_leave_the_guard_as_it_is(llama, tokenizer):
    assert fitted(guard(llama), samples(tokenizer, times=4)) == 0.0  # 8 of each
    assert fitted(guard(llama), samples(tokenizer, risks=("Safe",), times=12)) == 0.0
    assert fitted(guard(llama), samples(tokenizer, risks=("Unsafe",), times=12)) == 0.0
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
