"""Diff, lineage both ways, and what a clean-up may remove."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.store import Provenance, Store, diff, table_schema
from synth.errors import BadInput

SCHEMA = table_schema(
    [pa.field("text", pa.string()), pa.field("p", pa.list_(pa.float32())), pa.field("severity", pa.string())]
)
ROW = {"parent_id": "", "group_id": "g", "text": "x", "p": [0.5], "severity": "Safe"}


def commit(
    store: Store, name: str, rows: list[dict], schema: pa.Schema = SCHEMA, step: str = "s", **inputs: str
):
    fields = schema.remove(len(schema) - 1)
    table = pa.Table.from_pylist(
        [{k: v for k, v in (ROW | r).items() if k in fields.names} for r in rows], fields
    )
    parts = store.write_fragments(name, table, schema)
    return store.commit(name, schema, parts, Provenance(step, step, inputs=inputs))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(str(tmp_path / "root"))


def test_diff_names_rows_and_counts_changes_by_column(store: Store):
    commit(store, "t", [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "d"}])
    commit(
        store,
        "t",
        [{"id": "e"}, {"id": "d", "text": "y", "p": [0.5, None]}, {"id": "c", "text": "z"}, {"id": "a"}],
    )
    found = store.diff("t@v1", "t@v2")
    assert (found.a, found.b) == ("t@v1", "t@v2")
    assert (found.added, found.removed, set(found.changed)) == (("e",), ("b",), {"c", "d"})
    assert found.columns == {"text": 2, "p": 1} and not found.same
    assert store.diff("t@v2", "t@v2").same


def test_diff_across_schemas_compares_the_common_columns(store: Store):
    other = table_schema(
        [pa.field("severity", pa.int64()), pa.field("text", pa.string()), pa.field("n", pa.int64())]
    )
    commit(store, "t", [{"id": "a"}, {"id": "b"}])
    commit(
        store,
        "t",
        [{"id": "b", "severity": 1, "n": 1, "text": "new"}, {"id": "a", "severity": 2, "n": 2}],
        other,
    )
    found = store.diff("t@v1", "t@v2")
    assert (found.changed, found.columns) == (("b",), {"text": 1})
    assert found.columns_added == ("n", "severity") and found.columns_removed == ("p", "severity")


def test_diff_with_an_empty_version(store: Store):
    commit(store, "t", [])
    commit(store, "t", [{"id": "a"}])
    assert store.diff("t@v1", "t@v2").added == ("a",) and store.diff("t@v2", "t@v1").removed == ("a",)
    assert store.diff("t@v1", "t@v1").same


table_rows = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(st.sampled_from("xy"), st.sampled_from(["S", "U"])), max_size=8
)


@given(table_rows, table_rows, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_diff_agrees_with_a_comparison_row_by_row(tmp_path_factory, before, after, batch):
    store = Store(str(tmp_path_factory.mktemp("root")))
    for rows in (before, after):
        commit(store, "t", [{"id": i, "text": t, "severity": s} for i, (t, s) in rows.items()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "_BATCH_ROWS", batch)
        found = store.diff("t@v1", "t@v2")
    both = before.keys() & after.keys()
    changed = {i for i in both if before[i] != after[i]}
    assert set(found.added) == after.keys() - before.keys()
    assert set(found.removed) == before.keys() - after.keys()
    assert set(found.changed) == changed
    counts = {
        name: sum(before[i][k] != after[i][k] for i in both) for k, name in enumerate(("text", "severity"))
    }
    assert found.columns == {name: n for name, n in counts.items() if n}


@pytest.fixture
def mill(store: Store) -> Store:
    """seed s1 -> prompt p1 (p2 its twin) -> kept by dedup -> response r1 -> votes on r1 -> tokens of r1."""
    commit(store, "policy", [{"id": "s1"}, {"id": "s2"}])
    commit(store, "prompts", [{"id": "old"}])
    commit(
        store,
        "prompts",
        [{"id": "p1", "parent_id": "s1"}, {"id": "p2", "parent_id": "p1"}, {"id": "p3", "parent_id": "it's"}],
        seeds="policy@v1",
    )
    commit(
        store,
        "kept",
        [{"id": "p1", "parent_id": "s1"}, {"id": "p2", "parent_id": "p1"}],
        prompts="prompts@v2",
    )
    commit(store, "responses", [{"id": "r1", "parent_id": "p2"}], prompts="kept@v1")
    commit(store, "votes", [{"id": "r1", "parent_id": "p2"}], responses="responses@v1", gold="file.jsonl")
    commit(store, "tokens", [{"id": "k1", "parent_id": "r1"}], votes="votes@v1")
    return store


def test_lineage_walks_back_to_the_seed_through_copies_twins_and_parents(mill: Store):
    path = [(step.ref, step.id) for step in mill.lineage("tokens", "k1")]
    assert path == [
        ("tokens@v1", "k1"),
        ("votes@v1", "r1"),
        ("responses@v1", "r1"),
        ("kept@v1", "p2"),
        ("prompts@v2", "p2"),
        ("prompts@v2", "p1"),
        ("policy@v1", "s1"),
    ]
    assert mill.lineage("tokens", "k1")[-1].row["text"] == "x"


def test_lineage_ends_at_a_row_whose_parent_no_input_holds(mill: Store):
    assert [step.id for step in mill.lineage("prompts", "p3")] == ["p3"]
    for odd in ("none", "x' or '1'='1", ""):
        with pytest.raises(BadInput, match="prompts@v2 has no row with the id"):
            mill.lineage("prompts", odd)


def test_children_lists_all_that_was_made_from_a_row(mill: Store):
    assert {(c.ref, c.id) for c in mill.children("policy", "s1")} == {
        ("prompts@v2", "p1"),
        ("prompts@v2", "p2"),
        ("kept@v1", "p1"),
        ("kept@v1", "p2"),
        ("responses@v1", "r1"),
        ("votes@v1", "r1"),
        ("tokens@v1", "k1"),
    }
    assert mill.children("policy", "s2") == [] and mill.children("tokens", "k1") == []
    with pytest.raises(BadInput, match="policy@v1 has no row with the id s9"):
        mill.children("policy", "s9")


def test_lineage_skips_inputs_that_were_cleaned_up(store: Store):
    commit(store, "prompts", [{"id": "p1"}])
    commit(store, "copy", [{"id": "p1"}], prompts="prompts@v7")
    assert [step.ref for step in store.lineage("copy", "p1")] == ["copy@v1"]


def test_cleanup_keeps_newest_tagged_trained_on_and_made_from(store: Store):
    for _ in range(7):
        commit(store, "prompts", [{"id": "a"}])
    store.tag("prompts@v1", "paper")
    columns = [pa.field(name, pa.string()) for name in ("kind", "uri", "sha256")]
    models = table_schema(columns)
    for i in (1, 2):
        row = {"id": f"c{i}", "kind": "guard", "uri": "artifacts/x", "sha256": "0"}
        commit(store, "guards", [row], models, data=f"prompts@v{i + 2}")
    commit(store, "responses", [{"id": "r"}], prompts="prompts@v5")
    assert store.cleanup(1, dry_run=True) == ["prompts@v2", "prompts@v6"]
    assert len(store.versions("prompts")) == 7
    assert store.cleanup(1) == ["prompts@v2", "prompts@v6"]
    assert [v.version for v in store.versions("prompts")] == [1, 3, 4, 5, 7]
    assert all(store.read(v.ref).num_rows == 1 for v in store.versions("prompts"))
    assert len(store.versions("guards")) == 2
    with pytest.raises(
        BadInput, match=r"no prompts@v2: table prompts has versions v1, v3..v5, v7 and tags paper$"
    ):
        store.read("prompts@v2")
    assert store.cleanup(1) == []
    assert commit(store, "prompts", [{"id": "a"}]).version == 8


def test_cleanup_leaves_fragments_that_a_kept_version_shares_or_no_version_lists_yet(store: Store):
    table = pa.Table.from_pylist([ROW | {"id": "a"}], SCHEMA.remove(len(SCHEMA) - 1))
    shared = store.write_fragments("t", table, SCHEMA)
    waiting = store.write_fragments("t", table, SCHEMA)
    for fragments in (shared, [], shared):
        store.commit("t", SCHEMA, fragments, Provenance("s", "i"))
    assert store.cleanup(1) == ["t@v1", "t@v2"]
    assert store.read("t").num_rows == 1 and store.fragments_exist("t", shared + waiting)
    assert store.commit("t", SCHEMA, waiting, Provenance("s", "i")).version == 4


def test_cleanup_keeps_at_least_one(store: Store):
    with pytest.raises(BadInput, match="at least 1 version of each table, not 0"):
        store.cleanup(0)
