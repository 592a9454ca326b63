"""Pushing an exact version into another store: verified on both sides, resumable, checkpoints included."""

from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.step.artifacts import CHECKPOINT
from ray_jobs.store import Provenance, Store, StoreError, push, table_schema, tables
from synth.errors import BadInput

SCHEMA = table_schema([pa.field("text", pa.string())])


def rows(*ids: str, parents: str = "") -> pa.Table:
    told = {name: list(ids) for name in ("id", "group_id", "text")}
    return pa.table(told | {"parent_id": [parents] * len(ids)})


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "other"))


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """seeds@v1 -> prompts@v2 with 10 rows (prompts@v1 has one), in parts of four."""
    monkeypatch.setattr(push, "PART_ROWS", 4)
    monkeypatch.setattr("ray_jobs.store.pull.PART_ROWS", 4)
    store.commit("seeds", SCHEMA, store.write_fragments("seeds", rows("s"), SCHEMA), Provenance("seeds", "0"))
    for identity, ids in (("1", ["old"]), ("2", [f"p{i}" for i in range(10)])):
        made = Provenance("prompts", identity, {"quota": 3}, inputs={"seeds": "seeds@v1"}, calls=7)
        parts = store.write_fragments("prompts", rows(*ids, parents="s"), SCHEMA)
        store.commit("prompts", SCHEMA, parts, made)
    return store


def test_a_pushed_version_has_the_rows_and_the_provenance_and_says_where_it_came_from(
    store: Store, target: Store
):
    made = store.push("prompts@v2", target)
    assert (made.ref, made.rows) == ("prompts@v1", 10)
    assert target.read("prompts@v1").equals(store.read("prompts@v2"))
    told, here = made.provenance, store.provenance("prompts@v2")
    assert (told.identity, told.config, told.calls, told.created) == ("2", {"quota": 3}, 7, here.created)
    assert told.origin == f"{store.root}#prompts@v2"
    assert told.inputs == {"seeds": f"{store.root}#seeds@v1"}  # it stayed behind
    assert [row.ref for row in target.lineage("prompts", "p3")] == ["prompts@v1"]
    assert target.list_json("pushes") == []


def test_a_second_push_finds_what_is_there(store: Store, target: Store):
    first = store.push("prompts@v2", target)
    assert store.push("prompts@v2", target) == first and len(target.versions("prompts")) == 1
    assert store.push("prompts@v1", target).ref == "prompts@v2"
    assert target.push("prompts@v1", store).ref == "prompts@v2"  # and so does the way back


def test_with_its_lineage_a_row_is_traced_in_the_target(store: Store, target: Store):
    assert [v.ref for v in store.push_lineage("prompts@v2", target)] == ["seeds@v1", "prompts@v1"]
    assert [row.ref for row in target.lineage("prompts", "p3")] == ["prompts@v1", "seeds@v1"]


def test_a_push_that_broke_off_goes_on_where_it_was(
    store: Store, target: Store, monkeypatch: pytest.MonkeyPatch
):
    original, written = tables.write, []

    def breaks(root, name, table, schema):
        if len(written) == 2:
            raise StoreError("cannot write: the network is gone")
        written.append(table.num_rows)
        return original(root, name, table, schema)

    monkeypatch.setattr(tables, "write", breaks)
    with pytest.raises(StoreError, match="the network is gone"):
        store.push("prompts@v2", target)
    assert target.tables() == []
    monkeypatch.setattr(tables, "write", lambda *a: written.append(a[2].num_rows) or original(*a))
    assert store.push("prompts@v2", target).rows == 10 and written == [4, 4, 2]
    assert target.read("prompts").equals(store.read("prompts@v2"))


def test_rows_that_are_damaged_here_or_on_their_way_make_no_version_there(
    store: Store, target: Store, monkeypatch: pytest.MonkeyPatch
):
    original = tables.read_fragments

    def damaged(*told):
        for table in original(*told):
            yield table.set_column(table.column_names.index("text"), "text", pa.array(["x"] * len(table)))

    with monkeypatch.context() as patch:
        patch.setattr(tables, "read_fragments", damaged)
        with pytest.raises(StoreError, match=r"the copy of prompts@v2 under .* is damaged: row p0 and 3"):
            store.push("prompts@v2", target)
    take = Store.take
    with monkeypatch.context() as patch:
        patch.setattr(Store, "take", lambda *a: take(*a).set_column(3, "text", pa.array(["x"] * 4)))
        with pytest.raises(StoreError, match="prompts@v2 is damaged"):
            store.push("prompts@v2", target)
    assert target.tables() == []


def test_a_guard_travels_with_its_weights_by_push_and_by_pull(store: Store, target: Store, tmp_path: Path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"w" * 1000)
    uri, sha256 = store.put_folder(str(weights), "gen_guard/abc/guard")
    row = {"id": "c", "parent_id": "", "group_id": "g", "name": "guard", "kind": "gen_guard"}
    row |= {"uri": uri, "sha256": sha256, "metrics": "{}", "data": "{}"}
    table = pa.Table.from_pylist([row], schema=pa.schema([f for f in CHECKPOINT if f.name != "digest"]))
    made = Provenance("gen_guard", "g1", inputs={"data": "prompts@v2"})
    store.commit("gen_guard", CHECKPOINT, store.write_fragments("gen_guard", table, CHECKPOINT), made)

    store.push("gen_guard@v1", target)
    (there,) = target.read("gen_guard@v1").to_pylist()
    folder = Path(target.get_folder(there["uri"], there["sha256"]))
    assert (there["sha256"], (folder / "model.safetensors").read_bytes()) == (sha256, b"w" * 1000)

    manifest = target.pull("gen_guard@v1", tmp_path / "out")
    pulled = tmp_path / "out/checkpoints/guard/model.safetensors"
    assert pulled.read_bytes() == b"w" * 1000
    listed = {file["path"] for file in manifest["files"]}
    assert listed == {"data/part-00000.parquet", "checkpoints/guard/model.safetensors"}
    pulled.write_bytes(b"cut")
    again = target.pull("gen_guard@v1", tmp_path / "out")
    assert again == manifest and pulled.read_bytes() == b"w" * 1000

    Path(target.root, uri, "model.safetensors").write_bytes(b"other")
    for copy in (
        lambda: target.push("gen_guard@v1", Store(str(tmp_path / "third"))),
        lambda: target.pull("gen_guard@v1", tmp_path / "new"),
    ):
        with pytest.raises(StoreError, match="is not what was stored: checksums differ"):
            copy()
    assert Store(str(tmp_path / "third")).tables() == []
    assert not (tmp_path / "new/manifest.json").exists()


def test_wrong_references_and_a_push_into_itself_are_told(store: Store, target: Store):
    with pytest.raises(BadInput, match=r"there is no prompts@v9"):
        store.push("prompts@v9", target)
    with pytest.raises(BadInput, match=r"cannot push prompts@v2 into the store that it is in"):
        store.push("prompts", Store(store.root))
    assert target.tables() == []
