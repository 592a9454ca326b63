"""Units as tasks on a real, local Ray: the same tables as in one process, and errors that keep their sentence."""

import sys
from dataclasses import dataclass, replace

import pyarrow as pa
import pytest

from ray_jobs import own_ray
from ray_jobs.engine import EngineDied
from ray_jobs.step import Cut, Output, Step, run_steps
from ray_jobs.store import StoreError, table_schema
from synth.errors import BadInput

pytestmark = pytest.mark.slow

ROW = table_schema([pa.field("text", pa.string()), pa.field("leaf", pa.string())])
PROBLEMS = {
    "bad row": BadInput("rows.jsonl, row 3: column 'text' holds no text"),
    "full disk": StoreError("cannot write table loud: no space left on the device"),
    "dead engine": EngineDied("the process of model 'x' died"),
}


@dataclass(frozen=True)
class Config:
    problem: str = ""


def shout(work):
    """The unit's rows, louder; the rows of group g2 run into the problem."""
    rows = work.rows["quiet"].drop_columns(["digest"]).to_pylist()
    if work.config.problem and any(row["group_id"] == "g2" for row in rows):
        raise PROBLEMS[work.config.problem]
    return Output({"loud": [row | {"text": row["text"] + "!"} for row in rows]})


LOUD = Step("shout", shout, Config(), {"loud": ROW}, inputs=("quiet",), cut=Cut())


@pytest.fixture(scope="module")
def on_ray():
    """Ray, and this module's functions sent along by value: its workers cannot import a test."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    own_ray.start("guardmill", num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def mill(store, data_quality, put, quiet_run, on_ray):
    rows = [
        {"id": f"r{i}", "parent_id": "", "group_id": f"g{i}", "text": str(i), "leaf": ""} for i in range(8)
    ]
    put(store, "quiet", ROW, rows)
    return lambda: quiet_run(store, data_quality, units=4)


def test_units_on_ray_make_one_version_and_a_rerun_makes_none(mill, store):
    first = run_steps([LOUD], mill())["loud"]
    assert first.rows == 8
    assert sorted(store.read("loud")["text"].to_pylist()) == sorted(f"{i}!" for i in range(8))
    assert len(store.list_json("ledger/shout")) == len({Cut().key((f"g{i}",), 4) for i in range(8)})
    assert run_steps([LOUD], mill())["loud"] == first


@pytest.mark.timeout(120)
def test_units_that_ask_for_more_cpus_than_there_are_run_all_the_same(mill):
    assert run_steps([replace(LOUD, cpus=64.0)], mill())["loud"].rows == 8


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_error_inside_a_unit_keeps_its_sentence_and_commits_nothing(mill, store, problem):
    expected = PROBLEMS[problem]
    with pytest.raises(type(expected)) as raised:
        run_steps([replace(LOUD, config=Config(problem))], mill())
    assert str(raised.value) == str(expected)
    assert "loud" not in store.tables()
