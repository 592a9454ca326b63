"""Compacting: fewer files, the same rows in the same order, and nothing that later steps take for new."""

import threading

import pyarrow as pa
import pytest

from ray_jobs.store import Busy, Provenance, Store, StoreError, compact, table_schema, tables

SCHEMA = table_schema([pa.field("text", pa.string())])


def commit(store: Store, *parts: str, identity: str = "1"):
    fragments = []
    for ids in parts:
        told = {name: list(ids) for name in ("id", "parent_id", "group_id", "text")}
        fragments += store.write_fragments("t", pa.table(told), SCHEMA)
    return store.commit("t", SCHEMA, fragments, Provenance("s", identity, inputs={"x": "x@v1"}, calls=3))


def count(store: Store, ref: str) -> int:
    return len(tables.fragments_of(store.files, store.resolve(ref)))


def test_many_fragments_become_few_with_the_rows_in_order_and_the_provenance(store: Store):
    before = commit(store, "ab", "c", "def", "g")
    made = store.compact("t")
    assert (made.ref, made.rows, count(store, "t@v1"), count(store, "t@v2")) == ("t@v2", 7, 4, 1)
    assert store.read("t@v2").equals(store.read("t@v1").combine_chunks())
    told, old = made.provenance, before.provenance
    assert (told.identity, told.inputs, told.calls, told.created) == ("1", {"x": "x@v1"}, 3, old.created)
    assert (told.same_as, made.content_ref, before.content_ref) == ("t@v1", "t@v1", "t@v1")
    assert store.diff("t@v1", "t@v2").same and store.find("t", "1") == made


def test_what_needs_no_compacting_gets_no_version(store: Store):
    commit(store, "ab")
    assert store.compact("t").ref == "t@v1"
    store.commit("t", SCHEMA, [], Provenance("s", "2"))
    assert store.compact("t").ref == "t@v2"


def test_fragments_are_bounded_in_rows(store: Store):
    commit(store, "abc", "de", "fgh", "ij")
    made = compact.compact(store, "t", rows=4)
    assert count(store, made.ref) == 3 and store.read(made.ref)["id"].to_pylist() == list("abcdefghij")
    assert compact.compact(store, "t", rows=4) == made


def test_a_writer_that_comes_between_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    commit(store, "a", "b")
    original, once = tables.commit, [True]

    def overtaken(*told, **more):
        if once and once.pop():
            commit(store, "a", "b", "c", identity="2")
        return original(*told, **more)

    monkeypatch.setattr(tables, "commit", overtaken)
    once.append(True)
    monkeypatch.setattr(compact.tables, "commit", overtaken)
    made = store.compact("t")
    assert store.read(made.ref)["id"].to_pylist() == ["a", "b", "c"]
    assert (made.provenance.identity, made.provenance.same_as) == ("2", made.content_ref)
    assert count(store, made.ref) == 1


def test_damage_and_a_running_mill_stop_it(store: Store, monkeypatch: pytest.MonkeyPatch):
    commit(store, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(compact, "check_digests", lambda ref, rows: (_ for _ in ()).throw(StoreError(ref)))
        with pytest.raises(StoreError, match="t@v1"):
            store.compact("t")
    told: list[BaseException] = []

    def other() -> None:
        try:
            store.compact("t")
        except Busy as busy:
            told.append(busy)

    with store.lock():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(told) == 1 and len(store.versions("t")) == 1
