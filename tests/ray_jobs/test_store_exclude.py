"""Excluding rows: gone with all that was made from them, in every table, and they stay out."""

from collections import Counter

import pyarrow as pa
import pytest

from ray_jobs.step import Output, Step
from ray_jobs.step.artifacts import CHECKPOINT
from ray_jobs.store import Busy, Provenance, Store, exclude, table_schema, tables, without
from synth.errors import BadInput

SCHEMA = table_schema([pa.field("source", pa.string()), pa.field("n", pa.int64())])


def commit(store: Store, name: str, *parts: dict[str, str], schema: pa.Schema = SCHEMA, **inputs: str):
    """A version of one fragment per part; a part maps ids to parents. Ids that start with i are imports."""
    fragments = []
    for part in parts:
        rows = [
            {"id": i, "parent_id": p, "group_id": "g", "source": "import" if i[0] == "i" else "seed", "n": 1}
            for i, p in part.items()
        ]
        names = [field for field in schema if field.name != "digest"]
        table = pa.Table.from_pylist(rows, schema=pa.schema(names))
        fragments += store.write_fragments(name, table, schema)
    made = Provenance(name, f"{name}-1", inputs=inputs, counts={"in": 9, "dropped": {"echo": 2}})
    return store.commit(name, schema, fragments, made)


def ids(store: Store, ref: str) -> list[str]:
    return store.read(ref, columns=["id"])["id"].to_pylist()


@pytest.fixture
def mill(store: Store) -> Store:
    """seeds -> prompts (p… made from them) -> kept -> responses -> guard; gold is nobody's child."""
    commit(store, "seeds", {"s1": "", "i1": "", "i2": ""})
    commit(store, "gold", {"g1": ""})
    commit(store, "prompts", {"s1": "", "p1": "s1"}, {"i1": "", "q1": "i1", "q2": "q1"}, seeds="seeds@v1")
    commit(store, "kept", {"s1": "", "p1": "s1", "q2": "q1"}, prompts="prompts@v1")
    commit(store, "responses", {"r1": "p1"}, {"r2": "q2"}, deduped="kept@v1")
    commit(store, "guard", {"c1": ""}, schema=CHECKPOINT, data="responses@v1", gold="gold@v1")
    return store


def test_a_source_goes_from_every_table_with_what_was_made_from_it(mill: Store):
    done = mill.exclude("seeds", {"source": "import"}, "licence withdrawn")
    assert done.chosen == 2
    assert done.rows == {"seeds": 2, "prompts": 3, "kept": 1, "responses": 1}
    assert done.versions == {name: f"{name}@v2" for name in done.rows}
    assert done.trained == ("guard@v1",)
    assert ids(mill, "seeds") == ["s1"] and ids(mill, "prompts") == ["s1", "p1"]
    assert ids(mill, "kept") == ["s1", "p1"] and ids(mill, "responses") == ["r1"]
    assert [v.ref for v in mill.versions("gold")] == ["gold@v1"]
    assert ids(mill, "prompts@v1") == ["s1", "p1", "i1", "q1", "q2"]  # an exact version stays what it is
    noted = mill.read("exclusions").to_pylist()
    assert {(row["id"], row["table"], row["reason"]) for row in noted} == {
        ("i1", "seeds", "licence withdrawn"),
        ("i2", "seeds", "licence withdrawn"),
    }


def test_new_versions_keep_their_identity_follow_each_other_and_count_what_went(mill: Store):
    mill.exclude("seeds", {"id": "i1"}, "asked for")
    made = mill.provenance("responses@v2")
    assert (made.identity, made.inputs) == ("responses-1", {"deduped": "kept@v2"})
    assert made.counts == {"in": 9, "out": 1, "dropped": {"echo": 2, "excluded": 1}}
    assert mill.find("responses", "responses-1").ref == "responses@v2"
    assert [row.ref for row in mill.lineage("responses", "r1")] == [
        "responses@v2",
        "kept@v2",
        "prompts@v2",
        "prompts@v2",
        "seeds@v2",
    ]
    assert ids(mill, "seeds") == ["s1", "i2"]


def test_fragments_without_an_excluded_row_are_listed_again_as_they_are(mill: Store):
    before = tables.fragments_of(mill.files, mill.resolve("responses"))
    mill.exclude("prompts", {"id": "q2"}, "bad")
    after = tables.fragments_of(mill.files, mill.resolve("responses"))
    assert tables.data_files(after) == tables.data_files(before)[:1]


def test_a_dry_run_tells_and_changes_nothing(mill: Store):
    done = mill.exclude("seeds", {"source": "import"}, "x", dry_run=True)
    assert done.rows == {"seeds": 2, "prompts": 3, "kept": 1, "responses": 1} and done.trained == (
        "guard@v1",
    )
    assert "exclusions" not in mill.tables() and mill.resolve("seeds").version == 1


def test_exclusions_add_up_and_hold_for_what_comes_later(mill: Store):
    mill.exclude("seeds", {"id": "i1"}, "one")
    mill.exclude("seeds", {"id": "i2"}, "two")
    assert sorted(mill.excluded_ids().to_pylist()) == ["i1", "i2"]
    table = pa.table({"id": ["i1", "a", "b", "c"], "parent_id": ["", "i1", "a", "s1"]})
    assert without(table, mill.excluded_ids())["id"].to_pylist() == ["c"]
    assert without(table, pa.array([], pa.string())) is table


def test_a_version_that_comes_between_is_filtered_too(mill: Store, monkeypatch: pytest.MonkeyPatch):
    original, calls = tables.commit, Counter()

    def overtaken(root, name, *told, **more):
        calls[name] += 1
        if name == "prompts" and calls[name] == 1:
            commit(mill, "prompts", {"s1": "", "new": "s1", "i1": ""}, seeds="seeds@v1")
        return original(root, name, *told, **more)

    monkeypatch.setattr(exclude.tables, "commit", overtaken)
    done = mill.exclude("seeds", {"id": "i1"}, "x")
    assert ids(mill, done.versions["prompts"]) == ["s1", "new"]


def test_conditions_that_name_nothing_are_told_and_a_running_mill_is_left_alone(mill: Store):
    for where, sentence in (
        ({}, "exclude needs a condition"),
        ({"nope": "1"}, "seeds@v1 has no column nope"),
        ({"source": "import", "id": "s1"}, "seeds@v1 has no row with source=import, id=s1"),
    ):
        with pytest.raises(BadInput, match=sentence):
            mill.exclude("seeds", where, "x")
    assert mill.exclude("seeds", {"n": "1"}, "x", dry_run=True).chosen == 3  # numbers by their text
    with mill.lock(), pytest.raises(Busy):
        mill.exclude("seeds", {"id": "s1"}, "x")
    assert "exclusions" not in mill.tables()


# what a later run makes of it


def seed_run(work) -> Output:
    rows = [
        {"id": i, "parent_id": "", "group_id": i, "source": "s", "n": len(work.config.words)} for i in "abc"
    ]
    return Output({"words": rows})


def child_run(work) -> Output:
    rows = [
        {"id": f"{row['id']}-{k}", "parent_id": row["id"], "group_id": row["group_id"], "source": "s", "n": k}
        for row in work.rows["words"].to_pylist()
        for k in range(2)
    ]
    return Output({"children": rows})


def test_a_later_run_keeps_excluded_rows_out_and_redoes_only_their_units(
    inline, store, quiet_run, step_on, safety
):
    from dataclasses import make_dataclass

    from ray_jobs.step import Cut

    Config = make_dataclass("Config", [("words", tuple, ())], frozen=True)
    once, again = Config(()), Config(("changed",))
    cut = Cut(("group_id",), hashed=False)
    children = Step("children", child_run, once, {"children": SCHEMA}, inputs=("words",), cut=cut)

    def go(config) -> list[str]:
        run = quiet_run(store, safety)
        step_on(run, Step("words", seed_run, config, {"words": SCHEMA}))
        step_on(run, children)
        return inline.done()

    assert go(once) == ["a", "b", "c"]
    store.exclude("children", {"id": "b-1"}, "wrong")
    store.exclude("words", {"id": "a"}, "asked for")
    assert sorted(ids(store, "children")) == ["b-0", "c-0", "c-1"] and ids(store, "words") == ["b", "c"]
    assert go(once) == ["b"]  # its record held an excluded row; a is gone, c is as it was
    assert sorted(ids(store, "children")) == ["b-0", "c-0", "c-1"]
    assert go(once) == []
    assert go(again) == ["b", "c"]
    assert sorted(ids(store, "children")) == ["b-0", "c-0", "c-1"] and ids(store, "words") == ["b", "c"]
    assert store.provenance("words").counts["dropped"] == {"excluded": 1}
