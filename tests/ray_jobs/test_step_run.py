"""Steps: what names them, what is redone and what is not, what a crash costs, what a failure leaves."""

import dataclasses
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.engine import Model
from ray_jobs.step import Cut, Failed, Output, Step, StepFailed, run_steps
from ray_jobs.step.definition import identifying, resolve_roles, step_identity
from ray_jobs.step.units import cut_units, finished, to_table
from ray_jobs.store import Busy, Store, StoreError, table_schema
from ray_jobs.store.tables import fragments_of
from synth.errors import BadInput

ROW = table_schema([pa.field("text", pa.string()), pa.field("leaf", pa.string())])
NOTE = table_schema([pa.field("note", pa.string())])


class Killed(BaseException):
    """The process ends here, without a word."""


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Config:
    suffix: str = "!"
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    device: str = field(default="cpu", metadata={"identity": False})


def shout(work):
    """Every row of the unit with the suffix; "bad" rows fail, "dull" ones are dropped; a note per unit beside them."""
    output = Output({"loud": [], "notes": []})
    for row in work.rows["quiet"].to_pylist():
        if "bad" in row["text"]:
            output.failed.append(Failed(row["id"], row["group_id"], "too bad", row["text"]))
        elif "dull" in row["text"]:
            output.dropped["dull"] += 1
        else:
            new = {name: row[name] for name in ("group_id", "leaf")}
            text = row["text"] + work.config.suffix
            output.tables["loud"].append(new | {"id": f"{row['id']}+", "parent_id": row["id"], "text": text})
    note = {
        "id": f"note-{work.unit}",
        "parent_id": "",
        "group_id": "",
        "note": str(len(output.tables["loud"])),
    }
    output.tables["notes"].append(note)
    return output


def leaves_read(policy, leaves):
    return [policy.slice_leaf(leaf.id) for leaf in policy.leaves if leaves is None or leaf.id in leaves]


LOUD = Step(
    "shout", shout, Config(), {"loud": ROW, "notes": NOTE}, inputs=("quiet",), reads=leaves_read, cut=Cut()
)


@pytest.fixture
def rows(safety) -> list[dict]:
    leaves = [leaf.id for leaf in safety.leaves[:3]]
    return [
        {"id": f"r{i}", "parent_id": "", "group_id": f"g{i // 2}", "text": f"text {i}", "leaf": leaves[i % 3]}
        for i in range(12)
    ]


@pytest.fixture
def mill(store, safety, rows, put, quiet_run, inline):
    """A fresh run over the input table, once per call, as another process would make it."""
    put(store, "quiet", ROW, rows)
    inline.done()
    inline.ray_starts = 0
    return lambda **fields: quiet_run(store, fields.pop("policy", safety), units=5, **fields)


def texts(store: Store) -> list[str]:
    return sorted(store.read("loud")["text"].to_pylist())


def ledger(store: Store) -> list[str]:
    return store.list_json("ledger/shout")


# identity


def identity(mill, step=LOUD, weights=None, **fields) -> str:
    run = mill(**fields)
    versions = {name: run.version(name) for name in step.inputs}
    return step_identity(step, run.policy, run.seed, weights or {}, versions)


def test_the_identity_is_a_function_of_what_changes_results(mill, store, put, rows, safety):
    leaf = safety.leaves[0]
    edited = replace(safety, leaves=(replace(leaf, definition="Another one."), *safety.leaves[1:]))
    templates = replace(safety, templates=safety.templates | {"voter": "another"}, source="elsewhere.yaml")
    base = identity(mill)
    same = {
        "again": identity(mill),
        "device": identity(mill, replace(LOUD, config=Config(device="cuda"))),
        "a template that it does not read": identity(mill, policy=templates),
        "unit cpus": identity(mill, unit_cpus=1.0),
    }
    assert set(same.values()) == {base}, same
    others = {
        "config": identity(mill, replace(LOUD, config=Config(suffix="?"))),
        "nested config": identity(mill, replace(LOUD, config=Config(inner=Inner(2)))),
        "listed config": identity(mill, replace(LOUD, config=Config(sizes=(1, 3)))),
        "revision": identity(mill, replace(LOUD, revision=2)),
        "name": identity(mill, replace(LOUD, name="whisper")),
        "policy slice": identity(mill, policy=edited),
        "weights": identity(mill, weights={"writer": "sha-1"}),
        "other weights": identity(mill, weights={"writer": "sha-2"}),
        "seed": identity(mill, seed=18),
    }
    put(store, "quiet", ROW, rows, "made by another run")
    others["input version"] = identity(mill)
    assert len({base, *others.values()}) == len(others) + 1, others


def test_what_does_not_change_results_is_not_recorded_either():
    assert identifying(Config()) == {"suffix": "!", "inner": {"depth": 1}, "sizes": [1, 2]}


def test_every_config_of_the_recipes_can_be_an_identity():
    from ray_jobs.recipes import ALL
    from synth.ids import stable_hash

    for make in ALL.values():
        recipe = make()
        for given in dataclasses.fields(recipe):
            value = getattr(recipe, given.name)
            if dataclasses.is_dataclass(value):
                assert stable_hash(identifying(value)), given.name


def test_a_role_stands_for_its_numbered_ones_and_may_be_optional():
    models = {
        name: Model("local", name, "base") for name in ("voter-1", "voter-2", "voter-x", "votering", "judge")
    }
    step = replace(LOUD, roles=("voter", "reasoner?"))
    assert sorted(resolve_roles(step, models)) == ["voter-1", "voter-2"]
    with pytest.raises(BadInput, match=r"step shout needs a model for the role 'writer'"):
        resolve_roles(replace(LOUD, roles=("writer",)), models)


def test_an_unbound_role_is_told_before_any_step_runs(mill, store):
    lacking = replace(LOUD, name="later", tables={"later": LOUD.tables[LOUD.main]}, roles=("writer",))
    with pytest.raises(BadInput, match="step later needs a model for the role 'writer'"):
        run_steps([LOUD, lacking], mill())
    assert store.tables() == ["quiet"]


# units


def test_engines_of_later_steps_stay_but_not_through_a_training(store, safety, quiet_run):
    class Opened:
        def shutdown(self, keep):
            self.kept = set(keep)

    writer = Model("openai", "writer", "instruct", options=(("base_url", "http://127.0.0.1:9/v1"),))
    run, opened = quiet_run(store, safety, {"writer": writer}), Opened()
    run.opened = [opened]
    asks = replace(LOUD, name="asks", roles=("writer",))
    trains = replace(LOUD, name="trains", trains=True)
    run.release([asks])
    assert len(opened.kept) == 1
    run.release([trains, asks])
    assert opened.kept == set()


def test_units_are_named_by_content_and_not_by_row_order(mill, store, put, rows, safety):
    def units(given):
        version = put(store, "quiet", ROW, given)
        return {u.key: u.identity for u in cut_units(LOUD, mill(), {}, {"quiet": version})}

    there = units(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert units(shuffled) == there
    assert 1 < len(there) <= 5
    changed = units([row | {"text": "new"} if row["id"] == "r3" else row for row in rows])
    assert [key for key in there if there[key] != changed[key]] == [Cut().key(("g1",), 5)]


def test_rows_of_a_group_share_a_unit_and_other_cuts_keep_values_apart(mill, rows):
    by_group = cut_units(LOUD, mill(), {}, {"quiet": mill().version("quiet")})
    groups = [{group for group, _, _ in unit.facts} for unit in by_group]
    assert sum(map(len, groups)) == 6 and sum(unit.size for unit in by_group) == 12
    apart = cut_units(
        replace(LOUD, cut=Cut(("leaf", "group_id"), hashed=False)),
        mill(),
        {},
        {"quiet": mill().version("quiet")},
    )
    assert sorted(unit.key for unit in apart) == sorted({f"{row['leaf']}/{row['group_id']}" for row in rows})


def test_a_unit_reads_only_the_leaves_of_its_rows(mill, safety, rows):
    leaf = safety.leaves[2]
    edited = replace(
        safety, leaves=(*safety.leaves[:2], replace(leaf, definition="Another."), *safety.leaves[3:])
    )
    by_leaf = replace(LOUD, cut=Cut(("leaf",), hashed=False))

    def units(policy):
        run = mill(policy=policy)
        return {u.key: u.identity for u in cut_units(by_leaf, run, {}, {"quiet": run.version("quiet")})}

    before, after = units(safety), units(edited)
    assert [key for key in before if before[key] != after[key]] == [leaf.id]


# running


def test_a_step_commits_its_rows_with_their_counts(mill, store, inline):
    versions = run_steps([LOUD], mill())
    assert versions["loud"].ref == "loud@v1" and versions["notes"].ref == "notes@v1"
    assert texts(store) == sorted(f"text {i}!" for i in range(12))
    made = versions["loud"].provenance
    assert made.step == "shout" and made.inputs == {"quiet": "quiet@v1"}
    assert made.counts == {"in": 12, "out": 12, "failed": 0, "dropped": {}}
    assert made.config == {"suffix": "!", "inner": {"depth": 1}, "sizes": [1, 2]}
    assert inline.ray_starts == 1 and len(ledger(store)) == len(inline.done())


def test_a_rerun_is_a_no_op_without_ray(mill, store, inline):
    first = run_steps([LOUD], mill())
    inline.done()
    again = run_steps([LOUD], mill())
    assert again["loud"] == first["loud"] and again["notes"] == first["notes"]
    assert (inline.ray_starts, inline.done()) == (1, [])
    assert len(store.versions("loud")) == 1


def test_after_one_row_changed_only_its_unit_is_redone_and_the_other_fragments_serve_again(
    mill, store, put, rows, inline
):
    run_steps([LOUD], mill())
    records = {path: store.get_json(path) for path in ledger(store)}
    inline.done()
    put(store, "quiet", ROW, [row | {"text": "news"} if row["id"] == "r3" else row for row in rows])
    run_steps([LOUD], mill())
    assert inline.done() == [Cut().key(("g1",), 5)]
    assert texts(store) == sorted([*(f"text {i}!" for i in range(12) if i != 3), "news!"])
    assert len(ledger(store)) == len(records) + 1
    assert all(store.get_json(path) == record for path, record in records.items())
    assert texts(store) != sorted(store.read("loud@v1")["text"].to_pylist())  # the earlier version stands


def test_going_back_to_an_earlier_config_finds_its_version(mill, store, inline):
    first = run_steps([LOUD], mill())
    run_steps([replace(LOUD, config=Config(suffix="?"))], mill())
    inline.done()
    assert run_steps([LOUD], mill())["loud"].ref == first["loud"].ref
    assert inline.done() == []


def test_a_later_step_sees_the_version_of_this_run_and_not_the_newest(mill, store, put, rows):
    run = mill()
    run.version("quiet")
    put(store, "quiet", ROW, [*rows, rows[0] | {"id": "late"}])
    assert run_steps([LOUD], run)["loud"].rows == 12


def test_a_step_without_a_cut_is_one_unit_and_resumes_as_well(mill, store, inline, monkeypatch):
    calls = []

    def whole(work):
        calls.append(work.unit)
        return Output({"loud": work.read("quiet").drop_columns(["digest"])})

    step = replace(LOUD, run=whole, tables={"loud": ROW}, inputs=(), sides=("quiet",), cut=None)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", crash(Store.commit, at=1))
        with pytest.raises(Killed):
            run_steps([step], mill())
    assert run_steps([step], mill())["loud"].rows == 12
    assert calls == ["all"]


# crashes


def crash(method, at: int, after: bool = False):
    """`method` until its call number `at`, at which the process dies, before or after the call."""
    count = iter(range(1, 10**6))

    def call(*args, **kwargs):
        if next(count) < at:
            return method(*args, **kwargs)
        if after:
            method(*args, **kwargs)
        raise Killed

    return call


@pytest.mark.parametrize("after", [False, True], ids=["fragments written, no record", "record written"])
def test_a_crash_costs_the_unit_in_flight_and_no_other(mill, store, inline, monkeypatch, after):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_json", crash(Store.put_json, at=3, after=after))
        with pytest.raises(Killed):
            run_steps([LOUD], mill())
    assert store.tables() == ["quiet"]
    begun = inline.done()
    assert len(begun) == 3 and len(ledger(store)) == 2 + after
    run_steps([LOUD], mill())
    redone = inline.done()
    assert (begun[-1] in redone) != after and not set(begun[:2]) & set(redone)
    assert texts(store) == sorted(f"text {i}!" for i in range(12))
    assert store.read("loud")["id"].to_pylist() == list(dict.fromkeys(store.read("loud")["id"].to_pylist()))


@pytest.mark.parametrize("at", [1, 2], ids=["before the side table", "between side and main table"])
def test_a_crash_at_the_commit_costs_no_unit_and_side_tables_come_first(mill, store, inline, monkeypatch, at):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", crash(Store.commit, at=at))
        with pytest.raises(Killed):
            run_steps([LOUD], mill())
    assert store.tables() == ["quiet"] if at == 1 else ["notes", "quiet"]
    inline.done()
    versions = run_steps([LOUD], mill())
    assert inline.done() == []
    assert (versions["loud"].ref, versions["notes"].ref) == ("loud@v1", "notes@v1")


def test_a_unit_whose_fragment_file_is_gone_is_redone(mill, store, inline, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", crash(Store.commit, at=1))
        with pytest.raises(Killed):
            run_steps([LOUD], mill())
    inline.done()
    file = sorted(Path(store.root, "tables/loud.lance/data").iterdir())[0]
    (broken,) = [
        path
        for path in ledger(store)
        if any(file.name in fragment for fragment in store.get_json(path)["fragments"]["loud"])
    ]
    file.unlink()
    assert finished(store, LOUD, Path(broken).stem) is None
    run_steps([LOUD], mill())
    assert len(inline.done()) == 1
    assert texts(store) == sorted(f"text {i}!" for i in range(12))


# failures


def spoil(rows, *ids, word="bad"):
    return [row | {"text": f"{word} {row['text']}"} if row["id"] in ids else row for row in rows]


def test_failed_rows_within_the_budget_are_quarantined_and_dropped_ones_counted(mill, store, put, rows):
    put(store, "quiet", ROW, spoil(spoil(rows, "r1"), "r2", "r7", word="dull"))
    version = run_steps([LOUD], mill(error_budget=0.1))["loud"]
    assert version.provenance.counts == {"in": 12, "out": 9, "failed": 1, "dropped": {"dull": 2}}
    (lost,) = store.read("shout_quarantine").to_pylist()
    assert (lost["parent_id"], lost["group_id"], lost["reason"], lost["raw"]) == (
        "r1",
        "g0",
        "too bad",
        "bad text 1",
    )


def test_above_the_budget_the_step_fails_and_no_table_changes_but_the_quarantine(
    mill, store, put, rows, inline
):
    before = run_steps([LOUD], mill())
    put(store, "quiet", ROW, spoil(rows, "r1", "r4"))
    with pytest.raises(StepFailed, match=r"step shout: 2 of 12 rows failed \(16\.7%, budget 1\.0%\)"):
        run_steps([LOUD], mill())
    assert [store.resolve(name).ref for name in ("loud", "notes")] == [
        before[n].ref for n in ("loud", "notes")
    ]
    assert sorted(store.read("shout_quarantine")["parent_id"].to_pylist()) == ["r1", "r4"]


def test_units_with_failed_rows_are_tried_again_and_then_all_tables_are_the_new_ones(
    mill, store, put, rows, inline, monkeypatch
):
    put(store, "quiet", ROW, spoil(rows, "r1", "r4"))
    with pytest.raises(StepFailed):
        run_steps([LOUD], mill())
    with pytest.raises(StepFailed):
        run_steps([LOUD], mill())
    inline.done()
    healed = replace(LOUD, run=heal)
    versions = run_steps([healed], mill())
    assert inline.done() == sorted({Cut().key((group,), 5) for group in ("g0", "g2")})
    assert versions["loud"].rows == 12 and versions["loud"].provenance.counts["failed"] == 0
    notes = store.read(versions["notes"].ref)["note"].to_pylist()
    assert sum(map(int, notes)) == 12  # those of the failed try would tell 10


def heal(work):
    """The engine is back: no row fails any more."""
    table = work.rows["quiet"]
    texts = [text.replace("bad ", "") for text in table["text"].to_pylist()]
    place = table.schema.get_field_index("text")
    return shout(replace(work, rows={"quiet": table.set_column(place, "text", pa.array(texts))}))


def test_a_step_that_writes_what_it_has_not_declared_is_stopped(mill, store):
    step = replace(LOUD, tables={"loud": ROW})
    with pytest.raises(AssertionError, match=r"undeclared tables \['notes'\]"):
        run_steps([step], mill())
    assert store.tables() == ["quiet"]


def test_a_full_disk_stops_the_run_with_a_sentence_and_leaves_the_tables(mill, store, put, rows, monkeypatch):
    run_steps([LOUD], mill())
    put(store, "quiet", ROW, spoil(rows, "r1", word="more"))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lance.fragment.write_fragments", full)
        with pytest.raises(StoreError, match="no space left on the device"):
            run_steps([LOUD], mill())
    assert store.resolve("loud").ref == "loud@v1"
    assert run_steps([LOUD], mill())["loud"].rows == 12


def test_rows_that_miss_a_column_or_have_too_many_are_refused():
    with pytest.raises((KeyError, pa.ArrowInvalid)):
        to_table(pa.table({"id": ["a"]}), ROW)
    assert to_table([], ROW).num_rows == 0


# processes

SCRIPT = """
import os, sys
import pyarrow as pa
from ray_jobs.progress import Progress
from ray_jobs.step import Cut, Output, Run, Step, run_steps
from ray_jobs.step import run as runner
from ray_jobs.step.units import run_unit
from ray_jobs.store import Store, table_schema
from synth.policy import load_policy

ROW = table_schema([pa.field("text", pa.string()), pa.field("leaf", pa.string())])
root, die_after = sys.argv[1], int(sys.argv[2])
done = []

def work(work):
    if len(done) == die_after:
        os._exit(9)
    done.append(work.unit)
    return Output({"loud": work.rows["quiet"].drop_columns(["digest"])})

def here(step, units, work, cpus):
    for unit in units:
        yield run_unit(step, unit, work)

runner._run_on_ray = here
runner.Run.start_ray = lambda run: done.append("ray")
step = Step("shout", work, Cut(), {"loud": ROW}, inputs=("quiet",), cut=Cut())
run = Run(Store(root), load_policy("data_quality"), 17, {}, progress=Progress(quiet=True), units=5)
with run.store.lock():
    run_steps([step], run)
print(",".join(done), "ray" in sys.modules, "torch" in sys.modules)
"""


def test_another_process_finds_what_a_killed_one_finished(store, put, rows, tmp_path):
    put(store, "quiet", ROW, rows)
    script = tmp_path / "flow.py"
    script.write_text(SCRIPT)

    def start(die_after: int, hash_seed: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), store.root, str(die_after)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert start(3, "1").returncode == 9
    assert len(ledger(store)) == 2
    second = start(99, "2")
    assert second.returncode == 0, second.stderr
    units, _, _ = second.stdout.split()
    all_units = {Cut().key((f"g{i}",), 5) for i in range(6)}
    assert len(units.split(",")) == 1 + len(all_units) - 2
    third = start(0, "3")
    assert third.returncode == 0, third.stderr
    assert third.stdout.split() == ["False", "False"]  # no unit, no Ray start, neither ray nor torch loaded
    assert sorted(store.read("loud")["id"].to_pylist()) == sorted(row["id"] for row in rows)


def test_a_root_that_a_living_process_works_on_is_busy_and_a_dead_ones_is_free(store):
    code = "import sys, time\nfrom ray_jobs.store import Store\nwith Store(sys.argv[1]).lock():\n"
    code += " print('held', flush=True)\n time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, store.root], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline().strip() == "held"
            with pytest.raises(Busy, match=rf"another run \(pid {other.pid} "), store.lock():
                pass
        finally:
            other.kill()
    with store.lock():
        pass


def in_parts(work):
    """The quiet rows three at a time, without the third of each part, which is counted as it goes by."""
    output = Output({})

    def parts():
        rows = work.read("quiet").drop_columns(["digest"]).to_pylist()
        for first in range(0, len(rows), 3):
            output.dropped["third"] += 1
            yield rows[first : first + 2]

    output.tables["whole"] = parts()
    return output


def test_a_table_that_comes_in_parts_is_one_version_of_few_fragments_and_its_drops_are_counted(
    mill, store, monkeypatch
):
    monkeypatch.setattr("ray_jobs.step.units.PIECE", 4)
    made = run_steps([Step("in_parts", in_parts, Config(), {"whole": ROW}, sides=("quiet",))], mill())[
        "whole"
    ]
    assert made.provenance.counts["dropped"] == {"third": 4}
    assert store.read("whole")["id"].to_pylist() == ["r0", "r1", "r3", "r4", "r6", "r7", "r9", "r10"]
    assert len(fragments_of(store.files, made)) == 2
