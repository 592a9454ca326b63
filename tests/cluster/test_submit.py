"""Jobs on a running cluster with token authentication: log, metadata, stopping, submitting again, a step alone."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests import apart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("submit")
    command = [*(apart.prefix() or ()), sys.executable, "-m", "tests.cluster.submit", str(folder)]
    done = subprocess.run(command, env=apart.environment(), cwd=apart.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_nothing_is_answered_without_the_token(told):
    assert told["without_token"] != 0 and "token authentication" in told["refusal"]


def test_the_package_that_travels_is_small(told):
    assert 100_000 < told["package_bytes"] < 5 << 20


def test_the_log_of_a_job_shows_its_progress_and_no_noise(told):
    log = told["stopped"]["log"]
    assert re.search(r"> prompts +\d+ of \d+ units to do", log) and re.search(r"\+ seeds +\d+ rows", log)
    assert "Traceback" not in log and "Warning" not in log


def test_a_job_says_what_it_is_at_in_its_metadata(told):
    before = told["stopped"]["metadata"]
    assert before["recipe"] == "tiny" and before["step"] == "prompts" and before["team"] == "red"
    assert "seeds@v1" in before["versions"].split() and "prompts@v1" not in before["versions"].split()
    after = told["resumed"]["metadata"]
    assert after["step"] == "done" and "prompts@v1" in after["versions"].split()


def test_a_stopped_job_leaves_no_half_step_and_the_next_goes_on(told):
    assert told["stopped"]["status"] == "STOPPED" and "prompts" not in told["stopped"]["tables"]
    assert told["resumed"]["status"] == "SUCCEEDED", told["resumed"]["log"]
    log = told["resumed"]["log"]
    assert re.search(r"= seeds +\d+ rows, done before", log)
    to_do, units = map(int, re.search(r"> prompts +(\d+) of (\d+) units to do", log).groups())
    assert units - to_do == told["stopped"]["finished_units"] > 0


def test_a_step_alone_is_a_job_too(told):
    assert told["alone"]["status"] == "SUCCEEDED", told["alone"]["log"]
    assert "deduped" in told["alone"]["tables"] and "responses" not in told["alone"]["tables"]
    assert "> seeds" not in told["alone"]["log"] and "= seeds" not in told["alone"]["log"]
