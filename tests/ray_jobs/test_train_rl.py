"""A policy trained for real with the guard as its reward: two gloo workers under Ray Train, DeepSpeed inside, guard and
reward model behind the engine; one worker is killed on the way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", exc_type=ImportError)

from ray_jobs import own_ray
from ray_jobs.engine import Engines, Model, head
from ray_jobs.rl_judge import JudgeConfig
from ray_jobs.train_rl import RLJobConfig, train_rl
from synth.policy import load_policy
from train.rewards import RewardConfig

STEPS = 8
WORDS = ["the old dog sings", "a bridge and a cake", "walks with flowers", "bites and breaks"]
CONFIG = RLJobConfig(
    reward=RewardConfig(fallback=-10.0), judge=JudgeConfig(refusals="rule"), steps=STEPS, batch=8, group=4, reuse=2,
    max_tokens=6, lr=1e-3, checkpoint_steps=2, workers=2,
)  # fmt: skip
ROWS = [
    {"id": str(i), "group_id": str(i), "messages": [{"role": "user", "content": f"{WORDS[i % 4]} {i}"}]}
    for i in range(8)
]


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory) -> dict[str, Model]:
    """A policy, a fitted head as the guard, and a reward model."""
    folder = tmp_path_factory.mktemp("guard")
    names = [f"response/severity/{name}" for name in load_policy("safety").severity_names]
    texts = [f"ASSISTANT: {word * n}" for word in ("a", "e", "o", "z") for n in range(1, 9)]
    said = np.array([2 if text[-1] in "az" else 0 for text in texts])
    fitted = head.fit(
        head.ngram_vectors(texts), [head.Output("response.severity", tuple(names))], {"response.severity": said},
        "char_ngrams",
    )  # fmt: skip
    head.save(fitted, folder)
    kinds = {"policy": "instruct", "reward": "reward", "guard": "head"}
    folders = tiny_models | {"guard": folder}
    return {name: Model("local", str(folders[name]), kind) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def ray_here():
    import ray

    own_ray.start("guardmill", num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


def kill_a_worker_once(folder: Path, killed: list[int]) -> None:
    """SIGKILL for one training process of this test's Ray as soon as a checkpoint is whole."""
    import psutil

    while not list(folder.glob("policy.resume/checkpoint-*/whole")):
        time.sleep(0.02)
    ours = psutil.Process(os.getpid()).children(recursive=True)
    workers = [each for each in ours if "RayTrainWorker" in "".join(each.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    killed.append(workers[0].pid)


@pytest.mark.slow
def test_a_policy_trains_on_two_workers_and_a_killed_one_costs_nothing_but_time(models, ray_here, tmp_path):
    from transformers import AutoModelForCausalLM

    policy = load_policy("safety")
    engines = Engines({"guard": models["guard"], "reward": models["reward"]})

    def train(name: str):
        return train_rl(ROWS, CONFIG, policy, engines, models["policy"].name, tmp_path / name, 3)

    killed: list[int] = []
    hand = threading.Thread(target=kill_a_worker_once, args=(tmp_path / "broken", killed), daemon=True)
    hand.start()
    broken, whole = train("broken"), train("whole")
    assert killed and broken.metrics["resumed_at"] in range(2, STEPS, 2)
    assert whole.metrics["resumed_at"] == 0
    for result in (broken, whole):
        assert result.metrics["engine"] == "DeepSpeedEngine"
        assert (result.metrics["zero_stage"], result.metrics["workers"], result.metrics["steps"]) == (
            2,
            2,
            STEPS,
        )
        assert [entry["step"] for entry in result.history] == list(range(1, STEPS + 1))
        assert [entry["generation"] for entry in result.history] == [step // 2 for step in range(STEPS)]
    # two workers ask the reward model side by side, and how their texts share a batch moves its last digits
    for name in set(whole.history[0]) - {"seconds"}:
        curve = [[entry[name] for entry in result.history] for result in (broken, whole)]
        assert curve[0] == pytest.approx(curve[1], rel=1e-4, abs=1e-5), name
    assert len({entry["reward"] for entry in whole.history}) > 1
    assert all(np.isfinite(entry["helpfulness"]) for entry in whole.history)
    before, resumed, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (models["policy"].name, broken.path, whole.path)
    )
    assert all(value.allclose(after[name], atol=1e-4) for name, value in resumed.items())
    assert any(not value.allclose(after[name], atol=1e-3) for name, value in before.items())
    about = json.loads((whole.path / "guardmill.json").read_text())
    assert about["provenance"]["reward"]["kind"] == "hybrid"
    assert not list((tmp_path / "whole").glob("policy.resume"))
    assert train("whole") == whole  # done is done
