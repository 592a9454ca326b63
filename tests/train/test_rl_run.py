"""A run of safety RL: one killed on the way ends where an unbroken one does; what is not whole is not resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", exc_type=ImportError)

from transformers import AutoModelForCausalLM, AutoTokenizer

from label.verdict import Verdict
from synth.errors import BadInput
from synth.policy import load_policy
from train.data import CHAT_TEMPLATE
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


def alone(folder: str, out: str, killed_at: int, port: str) -> None:
    """A training in this process, which kills itself when the guard is asked for the `killed_at`th time."""
    import torch
    import torch.distributed as dist

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    asked = 0

    def guard(turns: list) -> list[Verdict]:
        nonlocal asked
        asked += 1
        if asked == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Verdict("Unsafe" if len(each[-1]["content"]) % 2 else "Safe", (), False) for each in turns]

    judge = Judge(guard, lambda turns: [float(len(each[-1]["content"])) for each in turns])
    train_policy(
        ROWS, config(folder), load_policy("safety"), judge, RewardConfig(fallback=-10.0), Path(out), {}
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(llama, tmp_path):
    policy = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = CHAT_TEMPLATE
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(policy)
    tokenizer.save_pretrained(policy)

    def run(name: str, killed_at: int) -> subprocess.CompletedProcess:
        port = str(20_000 + (os.getpid() * 7 + killed_at) % 20_000)
        return subprocess.run(
            [sys.executable, __file__, str(policy), str(tmp_path / name / "policy"), str(killed_at), port],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("broken", 3).returncode == -signal.SIGKILL  # in the third generation, behind two checkpoints
    assert not (tmp_path / "broken" / "policy").exists()
    for name in ("broken", "whole"):
        done = run(name, 0)
        assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for name in ("broken", "whole"):
        folder = tmp_path / name / "policy"
        metrics = json.loads((folder / "guardmill.json").read_text())["metrics"]
        assert (metrics["engine"], metrics["steps"]) == ("DeepSpeedEngine", 6)
        assert metrics["resumed_at"] == (4 if name == "broken" else 0)
        found[name] = [{**entry, "seconds": 0} for entry in read_history(folder)]
        assert sorted(path.name for path in folder.parent.iterdir()) == ["policy"]
    assert (
        found["broken"] == found["whole"]
    )  # to the last digit: weights, data and random state were all there
    assert [entry["step"] for entry in found["whole"]] == [1, 2, 3, 4, 5, 6]
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "policy").state_dict() for name in found
    ]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


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


if __name__ == "__main__":
    alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
