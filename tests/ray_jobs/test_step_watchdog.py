"""The watchdog: what counts as progress, what it says, and that nothing is left behind."""

import signal
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from ray_jobs.step import Cut, Output, Step, StepFailed, run_steps
from ray_jobs.step.units import Unit
from ray_jobs.step.watchdog import watched
from ray_jobs.store import table_schema

ROW = table_schema([pa.field("text", pa.string())])
NO_ENGINES = SimpleNamespace(clients={})


def unit(key: str) -> Unit:
    return Unit(key, f"identity of {key}", {}, frozenset())


def test_a_wait_without_progress_ends_with_what_it_waited_for(tmp_path):
    units = [unit(f"{n:05d}") for n in range(12)]
    started = time.monotonic()
    with (
        pytest.raises(
            StepFailed,
            match=r"step votes made no progress for 0 s: 2 of 12 units are finished, waiting for 00002, .*, …",
        ),
        watched("votes", 0.4, NO_ENGINES, tmp_path / "never made") as watch,
    ):
        watch.expect(units, units, on_driver=False)
        watch.finished(units[0].identity)
        watch.finished(units[1].identity)
        time.sleep(60)
    assert time.monotonic() - started < 5


def test_finished_units_keep_a_step_going():
    units = [unit(f"{n:05d}") for n in range(8)]
    with watched("votes", 0.4, NO_ENGINES, None) as watch:
        watch.expect(units, units, on_driver=False)
        for one in units:
            time.sleep(0.2)
            watch.finished(one.identity)


def test_a_growing_file_and_a_computing_driver_are_progress(tmp_path):
    with watched("gen_guard", 0.4, NO_ENGINES, tmp_path) as watch:
        watch.expect([unit("all")], [unit("all")], on_driver=True)
        for size in range(6):
            time.sleep(0.15)
            (tmp_path / "weights").write_bytes(b"x" * size)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            sum(range(1000))


def test_the_driver_computing_beside_units_elsewhere_is_none():
    with pytest.raises(StepFailed), watched("votes", 0.4, NO_ENGINES, None) as watch:
        watch.expect([unit("a")], [unit("a")], on_driver=False)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            sum(range(1000))


def test_signals_are_as_they_were_and_errors_pass_through():
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(KeyError), watched("votes", 5, NO_ENGINES, None):
        raise KeyError("mine")
    assert signal.getsignal(signal.SIGUSR2) == before
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_without_a_limit_or_outside_the_main_thread_nothing_is_watched():
    with watched("votes", 0, NO_ENGINES, None):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    seen = []

    def elsewhere():
        with watched("votes", 0.1, NO_ENGINES, None):
            time.sleep(0.4)
            seen.append("through")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["through"]


@dataclass(frozen=True)
class Config:
    hang: bool = True


def slow(work):
    if work.config.hang and work.unit == SLOW.cut.key(("g3",), 4):
        time.sleep(60)
    return Output({"slowly": work.rows["quiet"].drop_columns(["digest"])})


SLOW = Step("slow", slow, Config(), {"slowly": ROW}, inputs=("quiet",), cut=Cut())


def test_a_step_ended_for_a_hanging_unit_resumes_from_those_finished(
    store, data_quality, put, quiet_run, inline
):
    rows = [{"id": f"r{i}", "parent_id": "", "group_id": f"g{i}", "text": str(i)} for i in range(8)]
    put(store, "quiet", ROW, rows)
    with pytest.raises(StepFailed, match="step slow made no progress"):
        run_steps([SLOW], quiet_run(store, data_quality, units=4, stall_s=0.4))
    assert "slowly" not in store.tables()
    done = set(store.list_json("ledger/slow"))
    inline.done()
    # the same step, and the cause gone: the config's field is part of the identity, so the sleep is taken away
    healed = replace(SLOW, run=lambda work: Output({"slowly": work.rows["quiet"].drop_columns(["digest"])}))
    made = run_steps([healed], quiet_run(store, data_quality, units=4, stall_s=30))["slowly"]
    assert made.rows == 8
    units = {SLOW.cut.key((row["group_id"],), 4) for row in rows}
    assert len(inline.done()) == len(units) - len(done) < len(units)
