"""Real autoscaling with the node types of cluster.yaml: up by type as a step needs it, down after."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import apart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if apart.prefix() is None:
        pytest.skip("needs a network namespace: the fake provider works on Ray's default port only")
    out: Path = tmp_path_factory.mktemp("autoscale") / "told.json"
    command = [sys.executable, "-m", "tests.cluster.autoscale", "--json", str(out)]
    done = subprocess.run(command, env=apart.environment(), cwd=apart.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("phase", ["cpu", "gpu1", "gpu8"])
def test_a_step_brings_one_node_of_its_type_and_no_other(told: dict[str, Any], phase: str) -> None:
    most = next(one["most"] for one in told["phases"] if one["phase"] == phase)
    assert most == {name: int(name == phase) for name in most}


def test_every_worker_is_gone_between_the_steps_and_at_the_end(told: dict[str, Any]) -> None:
    assert [mark["what"].partition(": ")[2] for mark in told["marks"]] == ["asks", "done", "gone"] * 3
    assert all(told["samples"][-1][name] == 0 for name in ("cpu", "gpu1", "gpu8"))
    assert {sample["head"] for sample in told["samples"]} == {1}
