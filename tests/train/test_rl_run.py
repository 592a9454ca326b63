"""A run of safety RL: what is not whole is not resumed (tests/ray_jobs/test_train_rl.py kills one on the way)."""

import json

import pytest

pytest.importorskip("trl", exc_type=ImportError)

from synth.errors import BadInput
from synth.policy import load_policy
from train.reward_adapters import Judge
from train.rewards import RewardConfig
from train.rl_config import RLConfig, RLPrompt
from train.rl_run import WHOLE, laid_out, newest, read_history, train_policy

ROWS = [RLPrompt(str(i), str(i), ({"role": "user", "content": f"the old dog {i}"},)) for i in range(8)]


def config(folder: str, **change) -> RLConfig:
    given = {
        "steps": 6,
        "batch": 8,
        "group": 4,
        "reuse": 2,
        "max_tokens": 8,
        "lr": 1e-3,
        "checkpoint_steps": 2,
    }
    return RLConfig(folder, **{**given, "workers": 1, **change})


def test_a_checkpoint_that_is_not_whole_is_removed_and_the_newest_whole_one_resumed(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / WHOLE).write_text(json.dumps({"step": step, "workers": 2}))
    assert newest(tmp_path, 2) == (tmp_path / "checkpoint-4", 4)
    assert not (tmp_path / "checkpoint-10").exists()
    with pytest.raises(BadInput, match="written by 2 workers and not readable by 1"):
        newest(tmp_path, 1)
    assert newest(tmp_path / "none", 1) == (None, 0)


def test_a_line_that_was_cut_off_is_no_step(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2, "rew')
    assert read_history(tmp_path) == [{"step": 1}]


def test_every_prompt_comes_once_before_any_comes_twice():
    order = [json.loads(text)["messages"][0]["content"] for text in laid_out(ROWS, config("p", steps=12))]
    assert len(order) == 6 * 4  # six generations of four prompts
    assert [len(set(order[at : at + 8])) for at in (0, 8, 16)] == [8, 8, 8]
    assert order[:8] != order[8:16]
    again = [json.loads(text)["messages"][0]["content"] for text in laid_out(ROWS, config("p", steps=12))]
    assert order == again


def test_credit_by_token_needs_a_streaming_guard(tmp_path):
    judge = Judge(lambda turns: [])
    for credit, turned in (("token", None), ("sequence", lambda prompts, answers: [])):
        with pytest.raises(BadInput, match="a streaming guard go together"):
            train_policy(
                ROWS,
                config("p", credit=credit),
                load_policy("safety"),
                judge,
                RewardConfig(),
                tmp_path,
                {},
                turned,
            )
