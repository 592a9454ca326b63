"""Several processes and broken ones: the lock, racing writers, kills, and folders of weights."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.store import Busy, Provenance, Store, StoreError, table_schema, tables
from synth.errors import BadInput

SCHEMA = table_schema([pa.field("text", pa.string())])
PRELUDE = """
import os, sys, time
import pyarrow as pa
from ray_jobs.store import Provenance, Store, table_schema
SCHEMA = table_schema([pa.field("text", pa.string())])
store = Store(sys.argv[1])
def rows(*ids):
    return pa.table({name: list(ids) for name in ("id", "parent_id", "group_id", "text")})
"""


def rows(*ids: str) -> pa.Table:
    return pa.table({name: list(ids) for name in ("id", "parent_id", "group_id", "text")})


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return line.strip()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_between_fragments_and_commit_leaves_the_earlier_version_and_the_fragments_usable(
    store: Store, earlier: bool
):
    if earlier:
        store.commit("t", SCHEMA, store.write_fragments("t", rows("a"), SCHEMA), Provenance("s", "1"))
    code = """
store.put_json("ledger/u1.json", store.write_fragments("t", rows("b", "c"), SCHEMA))
print("written", flush=True)
time.sleep(60)
"""
    with start(code, store.root) as process:
        assert wait_for_line(process) == "written"
        process.send_signal(signal.SIGKILL)
    assert store.tables() == (["t"] if earlier else [])
    if earlier:
        assert store.resolve("t").ref == "t@v1" and store.read("t").column("id").to_pylist() == ["a"]
    fragments = store.get_json("ledger/u1.json")
    assert store.fragments_exist("t", fragments)
    version = store.commit("t", SCHEMA, fragments, Provenance("s", "2"))
    assert version.version == (2 if earlier else 1)
    assert store.read("t").column("id").to_pylist() == ["b", "c"]


def test_two_processes_that_commit_at_once_lose_nothing(store: Store):
    code = """
for i in range(12):
    fragments = store.write_fragments("t", rows(f"{sys.argv[2]}{i}"), SCHEMA)
    store.commit("t", SCHEMA, fragments, Provenance("s", f"{sys.argv[2]}{i}"))
"""
    writers = [start(code, store.root, who) for who in ("a", "b")]
    for writer in writers:
        assert writer.wait(60) == 0, writer.stderr.read() if writer.stderr else ""
    versions = store.versions("t")
    assert [v.version for v in versions] == list(range(1, 25))
    assert {v.provenance.identity for v in versions} == {f"{w}{i}" for w in "ab" for i in range(12)}
    for version in versions:
        assert store.read(version.ref).column("id").to_pylist() == [version.provenance.identity]


def test_a_writer_that_saw_no_table_where_another_just_made_one_gets_the_next_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    fragments = [store.write_fragments("t", rows(i), SCHEMA) for i in "ab"]
    store.commit("t", SCHEMA, fragments[0], Provenance("s", "1"))
    answers = iter([False])
    monkeypatch.setattr(tables, "exists", lambda *a: next(answers, True))
    assert store.commit("t", SCHEMA, fragments[1], Provenance("s", "2")).version == 2
    assert [store.read(f"t@v{v}").column("id").to_pylist() for v in (1, 2)] == [["a"], ["b"]]


def test_a_second_run_on_a_root_is_told_who_holds_it(store: Store):
    with store.lock():
        with (
            pytest.raises(
                Busy, match=rf"^another run \(pid {os.getpid()} on .*, since 20.*\) is using .*root$"
            ),
            store.lock(),
        ):
            pass
        code = """
try:
    with store.lock():
        pass
except Exception as error:
    print(type(error).__name__, error)
"""
        with start(code, store.root) as process:
            assert f"Busy another run (pid {os.getpid()} on" in wait_for_line(process)
    with store.lock():
        pass


def test_the_lock_of_a_killed_run_is_free(store: Store):
    code = """
with store.lock():
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
    with start(code, store.root) as process:
        pid = wait_for_line(process)
        with pytest.raises(Busy, match=rf"pid {pid} on"), store.lock():
            pass
        process.send_signal(signal.SIGKILL)
    with store.lock():
        pass


def test_a_child_that_outlives_the_run_does_not_hold_its_lock(store: Store):
    code = """
import subprocess
with store.lock():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
"""
    with start(code, store.root) as process:
        child = int(wait_for_line(process))
        process.send_signal(signal.SIGKILL)
    try:
        with store.lock():
            os.kill(child, 0)  # it is alive
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_lock_is_free_after_a_run_that_raised(store: Store):
    with pytest.raises(ZeroDivisionError), store.lock():
        _ = 1 / 0
    with store.lock():
        pass


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "shards").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "shards/w.bin").write_bytes(bytes(range(256)) * 100)
    return folder


def test_a_folder_comes_back_as_it_was_stored_and_is_stored_once(store: Store, weights: Path):
    uri, sha256 = store.put_folder(str(weights), "gen_guard")
    assert uri == f"artifacts/gen_guard-{sha256[:16]}" and len(sha256) == 64
    back = Path(store.get_folder(uri, sha256))
    assert (back / "shards/w.bin").read_bytes() == (weights / "shards/w.bin").read_bytes()
    stamp = (back / "config.json").stat().st_mtime_ns
    time.sleep(0.01)
    assert store.put_folder(str(weights), "gen_guard") == (uri, sha256)
    assert (back / "config.json").stat().st_mtime_ns == stamp
    assert store.get_folder(f"{store.root}/{uri}", sha256) == str(back)
    (weights / "config.json").write_text('{"a": 1}')
    assert store.put_folder(str(weights), "gen_guard")[0] != uri
    assert [p.name for p in (Path(store.root) / "artifacts").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["changed", "renamed", "added", "gone"])
def test_a_stored_folder_that_changed_is_refused_and_can_be_stored_again(
    store: Store, weights: Path, damage: str
):
    uri, sha256 = store.put_folder(str(weights), "g")
    stored = Path(store.root) / uri
    if damage == "changed":
        (stored / "shards/w.bin").write_bytes(b"x")
    elif damage == "renamed":
        (stored / "config.json").rename(stored / "config2.json")
    elif damage == "added":
        (stored / "extra").write_text("")
    else:
        stored.rename(stored.with_name("elsewhere"))
    with pytest.raises(
        StoreError, match=rf"stored folder .*{uri} is (gone|not what was stored: checksums differ)$"
    ):
        store.get_folder(uri, sha256)
    assert store.put_folder(str(weights), "g") == (uri, sha256)
    assert store.get_folder(uri, sha256) == str(stored)


def test_a_folder_of_finished_work_is_stored_without_taking_its_room_twice(store: Store, weights: Path):
    work = Path(store.artifact_dir("gen_guard-abc")) / "guard"
    shutil.copytree(weights, work)
    inside = Path(store.root) / store.put_folder(str(work), "g")[0]
    outside = Path(store.root) / store.put_folder(str(weights), "other")[0]
    assert (inside / "shards/w.bin").samefile(work / "shards/w.bin")
    assert not (outside / "shards/w.bin").samefile(weights / "shards/w.bin")


def test_a_working_folder_is_the_same_for_the_same_name(store: Store, tmp_path: Path):
    first = Path(store.artifact_dir("gen_guard-abc"))
    (first / "step").write_text("3")
    assert (Path(store.artifact_dir("gen_guard-abc")) / "step").read_text() == "3"
    for name in ("../x", "/tmp/x", ""):
        with pytest.raises(BadInput, match="no path inside the store"):
            store.artifact_dir(name)
    with pytest.raises(BadInput, match="is not a folder"):
        store.put_folder(str(tmp_path / "none"), "x")
