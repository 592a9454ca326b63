"""The short form of the matrix: faults that fire, and runs that lose and double nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import apart
from tests.faults.matrix import MOUNTS, SHORT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcome of each fault, by name."""
    out: Path = tmp_path_factory.mktemp("faults") / "faults.json"
    command = [sys.executable, "-m", "tests.faults.matrix", "--short", "--json", str(out)]
    done = subprocess.run(
        command, env=apart.environment(), cwd=apart.ROOT, capture_output=True, text=True, timeout=880
    )
    assert out.is_file(), done.stderr[-3000:]
    return {fault["name"]: fault for fault in json.loads(out.read_text())["faults"]}


@pytest.mark.parametrize("name", SHORT)
def test_fault_fires_and_nothing_is_lost_doubled_or_paid_beyond_the_units_in_flight(
    shown: dict[str, dict[str, Any]], name: str
) -> None:
    fault = shown[name]
    if name in MOUNTS and "skipped" in fault:
        pytest.skip(fault["skipped"])
    assert "error" not in fault, fault["error"]
    assert fault["proof"]
    assert (fault["lost"], fault["doubled"], fault["wrong"]) == (0, 0, 0)
    assert fault["paid"] == 2 * fault["rows"] + fault["paid_twice"]
    assert fault["paid_twice"] <= fault["bound"]
