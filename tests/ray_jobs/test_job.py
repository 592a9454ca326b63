"""Jobs: each step as a command of its own, exit codes, and what a job says of itself."""

import json
import os
import runpy
import signal
import subprocess
import sys
import warnings

import pytest

from ray_jobs import job
from ray_jobs.pipeline import steps
from ray_jobs.recipes import tiny
from ray_jobs.store import Store
from synth.errors import BadInput


def test_every_step_of_the_flow_is_a_command_of_its_own(monkeypatch, safety):
    started = []
    monkeypatch.setattr(job, "main", started.append)
    names = [step.name for step in steps(tiny(), safety)]
    for name in names:
        with warnings.catch_warnings():  # the module is imported already
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(f"ray_jobs.{name}", run_name="__main__", alter_sys=False)
    assert started == names and len(names) == 17


def test_a_step_alone_reads_the_newest_inputs_and_makes_its_table_only(tmp_path, inline):
    root = str(tmp_path / "mill")

    def alone(name):
        return job.alone(name, job.parser("").parse_args(["--recipe", "tiny", "--root", root]))

    with pytest.raises(BadInput, match=r"there is no table prompts under"):
        alone("dedup")
    assert alone("seeds")["seeds"].ref == "seeds@v1"
    assert {name for name in Store(root).tables() if name != "human_labels"} == {"seeds", "written_responses"}
    with pytest.raises(BadInput, match=r"policy data-?_?quality has no step 'token_labels'"):
        job.alone(
            "token_labels",
            job.parser("").parse_args(["--recipe", "tiny", "--root", root, "--policy", "data_quality"]),
        )


@pytest.mark.parametrize("module", ["pipeline", "votes"])
def test_wrong_use_is_one_sentence_and_exit_code_2(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-m", f"ray_jobs.{module}", "--recipe", "huge"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("guardmill: unknown recipe 'huge'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])  # a Ray of its own, and a cluster
def test_a_job_told_to_stop_leaves_as_by_an_exception_with_status_143(tmp_path, address):
    code = "import time\nfrom ray_jobs.job import as_job\ndef work():\n try:\n  print('runs', flush=True)\n"
    code += "  time.sleep(60)\n finally:\n  print('freed')\nas_job(work)"
    environment = os.environ | {"RAY_ADDRESS": address}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as one:
        assert one.stdout.readline() == "runs\n"
        one.terminate()
        assert one.communicate(timeout=30)[0] == "freed\n"
    assert one.returncode == 128 + signal.SIGTERM


def test_only_a_submitted_job_has_an_id(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert job.submission_id() == ""
    job.announce({"step": "votes"})
    config = {"metadata": {"job_submission_id": "mill-1", "team": "red"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert job.submission_id() == "mill-1"
