"""`guardmill label-tokens` on one's own files: what it adds, what it refuses, and that a kill -9 costs a wave."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from ray_jobs.cli import main

ROWS = [
    {"q": "Tell me.", "a": "Sure it is bad indeed", "l": "Unsafe", "n": 1},
    {"q": "Tell me.", "a": "all is well", "l": "Safe", "n": 2},
    {"q": "Tell me.", "a": "好的。 这样做 bad 吧 👍🏽", "l": "Controversial", "n": 3},
    {"q": "Tell me.", "a": "", "l": "Unsafe", "n": 4},
    {"q": "Tell me.", "a": "<think>maybe bad</think>\n\nnothing here", "l": "Unsafe", "n": 5},
    {"q": "Tell me.", "a": "Sure it is bad indeed", "l": "Unsafe", "n": 6},
]
COLUMNS = ("--prompt", "q", "--response", "a", "--label", "l")
# Scripted models in the place of a recipe's. In a process of its own they can die by kill -9 in the middle of a wave.
PROGRAM = r"""
import os, re, signal, sys
from dataclasses import replace
from ray_jobs import recipes, token_labels
from ray_jobs.engine import Completion, Failure, Model, Scores
from ray_jobs.step import Run
import ray_jobs.engine

ROLES = {
    "rollout-1": Model("local", "one", "base"),
    "rollout-2": Model("local", "two", "instruct"),
    "guard": Model("local", "guard", "gen_guard"),
    "judge": Model("local", "judge", "instruct"),
    "backbone": Model("local", "backbone", "base"),
}
BAD, GOOD = (0.1, 0.0, 0.9), (0.9, 0.1, 0.0)

class Client:
    def __init__(self, role):
        self.role, self.model = role, ROLES[role]

    def log(self, lines):
        with open(os.environ["CALLS"], "a+") as calls:
            calls.write("".join(f"{line}\n" for line in lines))
            calls.seek(0)
            return calls.read()

    def generate(self, prompts, sampling, seeds):
        self.log(f"draw {seed}" for seed in seeds)
        return [Completion(" and so on.", "stop", 3, 4) for _ in prompts]

    def score(self, prompts, continuations):
        log = self.log(self.role for _ in prompts)
        if self.role == "guard" and log.count("guard") >= int(os.environ.get("DIES_AT", 1e9)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.role == "guard" and "GONE" in os.environ:
            return [Failure("gone")] * len(prompts)
        return [self.told(prompt, labels) for prompt, labels in zip(prompts, continuations)]

    def told(self, prompt, labels):
        answer = prompt[0]["content"].rpartition("ASSISTANT:")[2]
        by = dict(zip(("Safe", "Controversial", "Unsafe"), BAD if "bad" in answer else GOOD))
        return Scores(tuple(by[label.rpartition(" ")[2]] for label in labels), False, 5)

class Engines:
    def __init__(self, roles, cache_dir="", requests=None):
        self.roles = roles
        with open(os.environ["CALLS"] + "_cache", "w") as file:
            file.write(repr(requests))

    def open(self, *roles):
        pass

    def get(self, role):
        return Client(role)

    def shutdown(self, keep=()):
        pass

def words(text, add_special_tokens, return_offsets_mapping):
    return {"offset_mapping": [m.span() for m in re.finditer(r"\s*\S+", text)]}

def install(put):
    recipe = replace(recipes.local(), roles=ROLES)
    put(ray_jobs.engine, "Engines", Engines)
    put(ray_jobs.engine, "fingerprint", lambda model: model.name)
    put(ray_jobs.engine, "actor_name", lambda model: model.name)
    put(Run, "start_ray", lambda run: None)
    put(token_labels, "tokenizer", lambda work: words)
    put(recipes, "ALL", {"local": lambda: recipe})
"""


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass
class Told:
    code: int
    out: str
    err: str


@pytest.fixture
def label(monkeypatch, capsys):
    """label(folder, …) runs the command in this process, the folder holding the root and a log of all calls."""
    scripted: dict = {}
    exec(PROGRAM, scripted)

    def go(folder: Path, *arguments: str) -> Told:
        with monkeypatch.context() as patch:
            scripted["install"](patch.setattr)
            patch.setenv("CALLS", str(folder / "calls"))
            code = main(["label-tokens", *arguments, "--root", str(folder / "root")])
        return Told(code, *capsys.readouterr())

    return go


def killed(folder: Path, dies_at: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which kills itself when the guard has been asked so often."""
    end = "install(setattr)\nfrom ray_jobs.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    (folder / "program.py").write_text(PROGRAM + end, encoding="utf-8")
    told = {"CALLS": str(folder / "calls"), "DIES_AT": str(dies_at), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, folder / "program.py", "label-tokens", *arguments, "--root", folder / "root"],
        capture_output=True, text=True, timeout=300, env={**os.environ, **told},
    )  # fmt: skip


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def done(tmp_path, label):
    folder = tmp_path / "done"
    folder.mkdir()
    write(folder / "in.jsonl", ROWS)
    told = label(folder, str(folder / "in.jsonl"), str(folder / "out.jsonl"), *COLUMNS, "--k", "4", "--json")
    assert told.code == 0, told.err
    return folder, json.loads(told.out)


def test_every_row_keeps_its_columns_and_gets_its_labels(done):
    folder, told = done
    rows = read(folder / "out.jsonl")
    assert [{name: row[name] for name in "qaln"} for row in rows] == ROWS
    first, safe, chinese, empty, thinks, again = rows
    assert (first["token_outcome"], first["token_boundary"], first["a"][first["token_onset"] :]) == (
        "boundary", 3, " bad indeed",
    )  # fmt: skip
    assert first["token_labels"] == ["Safe"] * 3 + ["Unsafe"] * 2
    assert [one["violations"] for one in first["token_evidence"]][:4] == [0, 0, 0, 4]
    assert first["token_cost"]["rollouts"] < first["token_cost"]["paper_rollouts"] == 4 * 5
    assert (safe["token_outcome"], set(safe["token_labels"])) == ("mildest", {"Safe"})
    assert safe["token_cost"]["rollouts"] == safe["token_cost"]["judge_calls"] == 0
    assert (
        chinese["a"][chinese["token_onset"] :] == " bad 吧 👍🏽"
        and chinese["token_labels"][-1] == "Controversial"
    )
    assert (empty["token_outcome"], empty["token_labels"], empty["token_cost"]["rollouts"]) == ("none", [], 0)
    assert (thinks["token_outcome"], thinks["thinking_token_outcome"]) == ("none", "boundary")
    assert thinks["a"][thinks["thinking_token_onset"] :].startswith(" bad</think>")
    assert {k: v for k, v in again.items() if k != "n"} == {k: v for k, v in first.items() if k != "n"}
    assert told["outcomes"] == {"boundary": 3, "mildest": 1, "none": 2} and told["failed"] == 0


def test_a_finished_command_writes_its_file_again_without_a_call(done, label):
    folder, _ = done
    before, calls = (folder / "out.jsonl").read_bytes(), (folder / "calls").read_text()
    told = label(folder, str(folder / "in.jsonl"), str(folder / "more.jsonl"), *COLUMNS, "--k", "4")
    assert told.code == 0 and "wave" not in told.err
    assert (folder / "more.jsonl").read_bytes() == before and (folder / "calls").read_text() == calls


def test_show_prints_searched_texts_with_their_boundary_and_evidence(tmp_path, label):
    arguments = (str(write(tmp_path / "in.jsonl", ROWS)), str(tmp_path / "out.jsonl"), *COLUMNS, "--k", "4")
    told = label(tmp_path, *arguments, "--show", "2").out
    assert "answer:   Sure it is⟦Unsafe⟧ bad indeed\n" in told
    assert "answer:   好的。 这样做⟦Controversial⟧ bad 吧 👍🏽\n" in told
    assert told.count("⟦") == 2 and told.count("4 of 4 violate") >= 2 and "all is well" not in told


@pytest.mark.parametrize("off", [False, True])
def test_answers_are_kept_in_the_root_unless_told_otherwise(tmp_path, label, off):
    arguments = (str(write(tmp_path / "in.jsonl", ROWS[:1])), str(tmp_path / "out.jsonl"), *COLUMNS)
    told = label(tmp_path, *arguments, *(["--no-request-cache"] if off else []))
    assert told.code == 0, told.err
    kept = None if off else (str(tmp_path / "root"), 4 << 30)
    assert (tmp_path / "calls_cache").read_text() == repr(kept)


def test_kill_9_in_the_middle_of_a_wave_costs_that_wave(done, tmp_path, label):
    folder, _ = done
    arguments = (str(write(tmp_path / "in.jsonl", ROWS)), str(tmp_path / "out.jsonl"), *COLUMNS, "--k", "4")
    dead = killed(tmp_path, 8, *arguments)
    assert dead.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists() and not list(tmp_path.glob(".out*"))
    waves = dead.stderr.count("wave")
    (ledger,) = (tmp_path / "root" / "ledger" / "token_labels").glob("waves-*.json")
    assert waves > 0 and len(json.loads(ledger.read_text())["waves"]) == waves
    resumed = label(tmp_path, *arguments)
    assert resumed.code == 0, resumed.err
    assert f"wave {waves + 1}:" in resumed.err and f"wave {waves}:" not in resumed.err
    assert (tmp_path / "out.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()
    undisturbed, calls = ((f / "calls").read_text().split("\n") for f in (folder, tmp_path))
    assert set(calls) == set(undisturbed)
    twice = len(calls) - len(undisturbed)
    assert 0 < twice < len(undisturbed) / 2  # the wave in flight is paid twice, no other


def test_a_larger_cap_goes_on_from_the_smaller_one(tmp_path, label):
    arguments = (
        str(write(tmp_path / "in.jsonl", ROWS[:1])),
        str(tmp_path / "out.jsonl"),
        *COLUMNS,
        "--k",
        "4",
    )
    assert label(tmp_path, *arguments, "--max-rollouts", "3").code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row["token_outcome"] == "capped" and row["token_boundary"] is None
    calls = (tmp_path / "calls").read_text().split("\n")
    assert label(tmp_path, *arguments).code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["token_outcome"], row["token_boundary"]) == ("boundary", 3)
    more = (tmp_path / "calls").read_text().split("\n")
    assert len(more) > len(calls)
    draws = [line for line in more if line.startswith("draw")]
    assert len(draws) == len(set(draws))  # none is made twice


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_csv_and_parquet_in_and_out(tmp_path, label, ending):
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    table = pa.Table.from_pylist(ROWS[:3])
    csv.write_csv(table, source) if ending == "csv" else pq.write_table(table, source)
    told = label(tmp_path, str(source), str(target), *COLUMNS, "--mode", "bisect", "--checked", "1")
    assert told.code == 0, told.err
    assert "1 of 1 checked responses as in exact mode" in told.out
    rows = (csv.read_csv(target) if ending == "csv" else pq.read_table(target)).to_pylist()
    assert [row["token_onset"] for row in rows] == [10, None, 7]
    checks = [json.loads(row["token_check"]) if ending == "csv" else row["token_check"] for row in rows]
    assert [check["same"] for check in checks if check] == [True]


@pytest.mark.parametrize(
    ("row", "arguments", "says"),
    [
        (
            {"l": "Evil"},
            (),
            "in.jsonl, row 2: column 'l' holds 'Evil'; the policy knows Safe, Controversial, Unsafe",
        ),
        ({"a": None}, (), "in.jsonl, row 2: column 'a' holds no text"),
        ({"q": " "}, (), "in.jsonl, row 2: column 'q' holds no text"),
        ({"token_outcome": "x"}, (), "in.jsonl: has a column 'token_outcome' already"),
        ({}, ("--k", "0"), "k must be 1 to 32 draws, not 0"),
        ({}, ("--threshold", "1.5"), "threshold must be above 0 and at most 1, not 1.5"),
        ({}, ("--recipe", "none"), "unknown recipe 'none'"),
        ({}, ("--thinking", "t"), "in.jsonl: no column 't'; it has q, a, l, n"),
        ({}, (), "gen_guard"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, row, arguments, says):
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[1] | row])
    where = ("--root", str(tmp_path / "no root"))
    code = main(["label-tokens", str(source), str(tmp_path / "out.jsonl"), *COLUMNS, *where, *arguments])
    told = capsys.readouterr().err
    assert code == 2 and says in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_responses_over_the_error_budget_fail_the_command_and_a_rerun_tries_them_again(
    tmp_path, label, monkeypatch
):
    arguments = (str(write(tmp_path / "in.jsonl", ROWS)), str(tmp_path / "out.jsonl"), *COLUMNS)
    with monkeypatch.context() as patch:
        patch.setenv("GONE", "1")
        told = label(tmp_path, *arguments)
    assert told.code == 1 and "responses could not be labelled" in told.err and "guard: gone" in told.err
    assert not (tmp_path / "out.jsonl").exists()
    assert label(tmp_path, *arguments).code == 0
    assert [row["token_outcome"] for row in read(tmp_path / "out.jsonl")].count("boundary") == 3
