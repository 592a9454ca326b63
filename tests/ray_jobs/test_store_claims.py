"""The lock of roots without file locks: the protocol of claims, run here on a folder."""

import threading
import time
from pathlib import Path

import pytest

from ray_jobs.store import Busy, StoreError, lock
from ray_jobs.store.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(str(tmp_path))


def test_a_live_claim_turns_others_away_and_leaves_nothing_behind(
    root: Root, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "_TRIES", 1)
    with lock._hold_claim(root):
        assert len(root.list_json("locks")) == 1
        with (
            pytest.raises(Busy, match=r"^another run \(pid \d+ on .*, since 20.*\) is using "),
            lock._hold_claim(root),
        ):
            pass
        assert len(root.list_json("locks")) == 1
    assert root.list_json("locks") == []
    with lock._hold_claim(root):
        pass


def test_a_claim_that_stopped_beating_is_dead_and_one_that_beats_is_not(
    root: Root, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "_TRIES", 1)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.6)
    root.put_json("locks/dead.json", {"pid": 1, "host": "h", "since": "s"})
    time.sleep(0.8)
    with lock._hold_claim(root):
        time.sleep(0.8)
        with pytest.raises(Busy), lock._hold_claim(root):
            pass


def test_of_many_that_come_at_once_never_two_hold(root: Root):
    inside, most, held = 0, 0, 0
    guard, gate = threading.Lock(), threading.Barrier(6)

    def run() -> None:
        nonlocal inside, most, held
        gate.wait()
        for _ in range(5):
            try:
                with lock._hold_claim(root):
                    with guard:
                        inside += 1
                        held += 1
                        most = max(most, inside)
                    time.sleep(0.002)
                    with guard:
                        inside -= 1
            except Busy:
                pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_TRIES", 3)
        patch.setattr(lock.random, "random", lambda: 0.005)
        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1 and held >= 1
    assert root.list_json("locks") == []


def test_a_run_whose_storage_was_away_for_too_long_is_told_at_its_end(
    root: Root, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.2)

    def away(path: str, record: object) -> None:
        raise StoreError("away")

    message = "could not be reached for 0 s: another run may be using it"
    with pytest.raises(StoreError, match=message), lock._hold_claim(root):
        monkeypatch.setattr(root, "put_json", away)
        time.sleep(0.5)
    monkeypatch.undo()
    with lock._hold_claim(root):
        pass
