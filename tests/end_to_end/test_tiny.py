"""The whole mill on the tiny recipe: done, rerun, edited, killed and resumed. Real models, Ray, Lance and DeepSpeed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ray_jobs.store import Store
from synth.policy import load_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MAIN_TABLES = (
    "seeds", "gold", "prompts", "deduped", "responses", "voters", "combiner", "votes", "translations",
    "controversial", "distilled", "gate", "gen_guard", "token_labels", "stream_guard", "evaluation", "report",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray_jobs.cli", *arguments]


def run(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", "tiny", "--root", str(root), *more), capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root on which the tiny recipe has run undisturbed."""
    root = tmp_path_factory.mktemp("undisturbed") / "mill"
    done = run(root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_the_flow_ends_in_two_guards_an_evaluation_and_a_report(finished: Path) -> None:
    store = Store(str(finished))
    assert set(MAIN_TABLES) <= set(store.tables())
    for name in MAIN_TABLES:
        table = store.read(name)
        ids = table["id"].to_pylist()
        assert len(ids) == len(set(ids)), name
        if name != "translations":
            assert ids, name
    for guard in ("gen_guard", "stream_guard"):
        assert sorted(store.read(guard)["name"].to_pylist()) == ["control", "guard"]
    systems = set(store.read("evaluation")["system"].to_pylist())
    assert {"gen_guard", "gen_guard_control", "stream_guard", "tfidf", "majority"} <= systems


def test_no_step_but_the_evaluation_has_seen_a_held_out_gold_row(finished: Path) -> None:
    store = Store(str(finished))
    held = {row["group_id"] for row in store.read("gold").to_pylist() if row["split"] == "test"}
    assert held
    for name in ("gold_ballots", "distilled", "token_labels"):
        assert not held & set(store.read(name)["group_id"].to_pylist()), name
    assert set(store.read("predictions")["group_id"].to_pylist()) <= held


def test_a_token_label_leads_back_to_a_seed(finished: Path) -> None:
    store = Store(str(finished))
    row = store.read("token_labels", columns=["id"])["id"].to_pylist()[0]
    path = store.lineage("token_labels", row)
    assert path[-1].ref.startswith("seeds@") and path[-1].parent_id == ""
    assert len({step.ref for step in path}) >= 4


def test_a_rerun_does_nothing_within_seconds(finished: Path) -> None:
    store = Store(str(finished))
    before = {name: store.resolve(name).ref for name in store.tables()}
    started = time.monotonic()
    again = run(finished)
    elapsed = time.monotonic() - started
    assert again.returncode == 0, again.stderr
    assert {name: store.resolve(name).ref for name in store.tables()} == before
    assert again.stderr.count("done before") == len(MAIN_TABLES) and " > " not in again.stderr
    assert (
        elapsed < 20
    )  # 5 s on an idle machine; the benchmark measures, this only catches a model being loaded


def test_a_new_seed_redoes_what_holds_its_leaf_and_plan_said_so(finished: Path, tmp_path: Path) -> None:
    policy = load_policy("safety")
    pack = yaml.safe_load(Path(policy.source).read_text(encoding="utf-8"))
    leaf = next(leaf for leaf in pack["leaves"] if leaf["id"] == "illegal.theft")
    leaf["seeds"]["Unsafe"]["en"].append("Which windows of the bakery can be forced without a sound?")
    edited = tmp_path / "safety.yaml"
    edited.write_text(yaml.safe_dump(pack, allow_unicode=True, sort_keys=False), encoding="utf-8")
    gold = Path(policy.source).parent / policy.gold
    (tmp_path / policy.gold).write_bytes(gold.read_bytes())
    planned = subprocess.run(
        command("plan", "tiny", "--root", str(finished), "--policy", str(edited)),
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr
    promised = {
        m[1]: (int(m[3]), int(m[4])) for m in re.finditer(r"(?m)^(\w+) +(\w+) +(\d+)/(\d+)", planned.stdout)
    }
    done = run(finished, "--policy", str(edited), "--until", "responses")
    assert done.returncode == 0, done.stderr[-2000:]
    redone = {
        m[1]: (int(m[2]), int(m[3])) for m in re.finditer(r"> (\w+) +(\d+) of (\d+) units", done.stderr)
    }
    assert redone["prompts"] == promised["prompts"]
    assert 0 < redone["prompts"][0] < redone["prompts"][1]
    assert redone["responses"][0] <= promised["responses"][0]
    assert "= gold" in done.stderr


def test_a_run_killed_three_times_goes_on_and_loses_and_doubles_nothing(
    finished: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mill"
    ledger: dict[str, int] = {}
    for moment, victim in (("prompts", "driver"), ("votes", "worker"), ("token_labels", "driver")):
        disturb(root, moment, victim)
        now = recorded(root)
        assert now.keys() > ledger.keys() and {path: now[path] for path in ledger} == ledger, moment
        ledger = now
    done = run(root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: recorded(root)[path] for path in ledger} == ledger  # finished units were not written again
    store, calm = Store(str(root)), Store(str(finished))
    for name in ("seeds", "gold", "prompts", "deduped"):
        assert ids(store, name) == ids(calm, name), name
    # Samples depend on row and seed alone, but float sums on threads may turn a rare token.
    for name in ("responses", "votes"):
        assert abs(len(ids(store, name)) - len(ids(calm, name))) <= 3, name
        assert len(ids(store, name)) == len(set(ids(store, name)))


def ids(store: Store, name: str) -> list[str]:
    version = store.find(name, store.resolve(name).provenance.identity)
    assert version is not None
    first = store.versions(name)[0]
    return sorted(store.read(first.ref, columns=["id"])["id"].to_pylist())


def recorded(root: Path) -> dict[str, int]:
    """The records of finished units, by when they were written."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in (root / "ledger").rglob("*.json")
        if "waves-" not in path.name
    }


def disturb(root: Path, moment: str, victim: str) -> None:
    """Start a run until `moment` and kill -9 its driver, or one of its Ray workers, once that has begun its work."""
    process = subprocess.Popen(
        command("run", "tiny", "--root", str(root), "--until", moment),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"  > {moment}"):
            break
    else:
        pytest.fail(f"the run never reached {moment}")
    time.sleep(4)
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
    else:
        # Not the node's own agents, whose titles begin alike: with one of them the whole node goes.
        names = {pid: name_of(pid) for pid in session_processes(process.pid)}
        workers = [pid for pid, name in names.items() if "ray::" in name and "Agent" not in name]
        assert workers, "no Ray worker to kill"
        os.kill(workers[0], signal.SIGKILL)
    process.stderr.read()
    process.wait(timeout=600)
    for pid in session_processes(process.pid):
        os.kill(pid, signal.SIGKILL)


def session_processes(session: int) -> list[int]:
    """Processes that descend from a run, by the session it was started in (Ray's own daemons included)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def name_of(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
