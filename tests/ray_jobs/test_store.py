"""Tables, references, records and errors of the store, on real Lance tables."""

import json
import os
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.store import Provenance, Store, StoreError, table_schema
from synth.errors import BadInput

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = table_schema([pa.field("text", pa.string()), pa.field("history", pa.list_(MESSAGE))])


def rows(*ids: str, text: str = "hello", schema: pa.Schema = SCHEMA) -> pa.Table:
    """One row per id; columns beyond the common ones and `text` are null."""
    given = {"id": list(ids), "parent_id": [""] * len(ids), "group_id": list(ids), "text": [text] * len(ids)}
    return pa.table(
        {f.name: pa.array(given.get(f.name, [None] * len(ids)), f.type) for f in schema if f.name != "digest"}
    )


def made_by(identity: str, **inputs: str) -> Provenance:
    return Provenance(step="test", identity=identity, inputs=inputs)


def commit(store: Store, name: str, *ids: str, text: str = "hello", identity: str = "i", **inputs: str):
    return store.commit(
        name,
        SCHEMA,
        store.write_fragments(name, rows(*ids, text=text), SCHEMA),
        made_by(identity, **inputs),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def test_fragments_are_invisible_until_one_commit_carries_rows_and_provenance(store: Store):
    fragments = store.write_fragments("prompts", rows("a", "b"), SCHEMA)
    assert store.tables() == []
    record = Provenance(
        "prompts", "id1", {"k": 3}, "ph", {"policy": "policy@v1"}, "rev", {"dropped": {"echo": 2}}, 5, 6
    )
    version = store.commit("prompts", SCHEMA, fragments, record)
    assert (version.ref, version.rows, store.tables()) == ("prompts@v1", 2, ["prompts"])
    assert store.resolve("prompts") == version
    assert store.provenance("prompts@v1") == version.provenance
    assert version.provenance.created and version.provenance.counts == {"dropped": {"echo": 2}}
    assert store.read("prompts", columns=["id", "text"]).to_pylist() == [
        {"id": "a", "text": "hello"},
        {"id": "b", "text": "hello"},
    ]


def test_every_commit_is_the_next_number_whatever_tags_do(store: Store):
    for i in range(3):
        commit(store, "prompts", f"r{i}", identity=f"i{i}")
        store.tag("prompts", "newest")
        store.tag("prompts@v1", "first")
    assert [v.version for v in store.versions("prompts")] == [1, 2, 3]
    assert [(v.ref, v.tags) for v in store.log("prompts")] == [
        ("prompts@v3", ("newest",)),
        ("prompts@v2", ()),
        ("prompts@v1", ("first",)),
    ]
    assert store.read("prompts@first").column("id").to_pylist() == ["r0"]
    store.untag("prompts", "first")
    with pytest.raises(
        BadInput, match=r"no prompts@first: table prompts has versions v1..v3 and tags newest"
    ):
        store.resolve("prompts@first")


def test_fragments_serve_later_versions_in_any_mix(store: Store):
    one, two, three = (store.write_fragments("t", rows(i, text=i), SCHEMA) for i in ("1", "2", "3"))
    store.commit("t", SCHEMA, one + two, made_by("a"))
    store.commit("t", SCHEMA, two, made_by("b"))
    store.commit("t", SCHEMA, three + one, made_by("c"))  # one: listed long ago, three: never before
    store.commit("t", SCHEMA, [], made_by("d"))
    contents = [store.read(f"t@v{v}").column("text").to_pylist() for v in (1, 2, 3, 4)]
    assert contents == [["1", "2"], ["2"], ["3", "1"], []]
    assert store.read("t").schema == SCHEMA


def test_fragments_of_an_old_schema_still_read_after_the_schema_changed_and_changed_back(store: Store):
    wider = table_schema(
        [pa.field("n", pa.int64()), pa.field("history", pa.list_(MESSAGE)), pa.field("text", pa.string())]
    )
    old = store.write_fragments("t", rows("a", text="old"), SCHEMA)
    store.commit("t", SCHEMA, old, made_by("1"))
    new = store.write_fragments("t", rows("b", text="new", schema=wider), wider)
    store.commit("t", wider, new, made_by("2"))
    more = store.write_fragments("t", rows("c", text="more"), SCHEMA)
    store.commit("t", SCHEMA, old + more, made_by("3"))
    assert store.read("t@v2").schema == wider and store.read("t@v2").column("text").to_pylist() == ["new"]
    assert store.read("t@v3").column("text").to_pylist() == ["old", "more"]
    with pytest.raises(StoreError, match="another schema"):
        store.commit("t", SCHEMA, new, made_by("4"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_commit_refuses_missing_or_cut_files_and_leaves_the_earlier_version(store: Store, damage: str):
    commit(store, "t", "a")
    fragments = store.write_fragments("t", rows("b"), SCHEMA)
    assert store.fragments_exist("t", fragments)
    file = Path(store.root) / "tables/t.lance/data" / json.loads(fragments[0])["files"][0]["path"]
    file.unlink() if damage == "gone" else os.truncate(file, 100)
    assert not store.fragments_exist("t", fragments)
    with pytest.raises(StoreError, match="1 data files are gone or cut short"):
        store.commit("t", SCHEMA, fragments, made_by("b"))
    assert store.resolve("t").version == 1 and store.read("t").num_rows == 1


def test_an_id_twice_is_refused_within_a_fragment_and_across_fragments(store: Store):
    with pytest.raises(BadInput, match="the id a more than once"):
        store.write_fragments("t", rows("a", "b", "a"), SCHEMA)
    twice = store.write_fragments("t", rows("a"), SCHEMA) + store.write_fragments("t", rows("b", "a"), SCHEMA)
    with pytest.raises(StoreError, match="the id a more than once"):
        store.commit("t", SCHEMA, twice, made_by("x"))
    assert store.tables() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.drop_columns(["text"]), "table t lacks column text"),
        (lambda t: t.append_column("extra", pa.array(["x"])), "table t has the unknown column extra"),
        (lambda t: t.set_column(0, "id", pa.array([None], pa.string())), "column id has no value in 1 rows"),
        (lambda t: t.set_column(4, "history", pa.array([True])), "column history is bool, not list<"),
        (lambda t: t.set_column(3, "text", pa.array([Decimal("1.5")])), "column text is decimal128"),
        (lambda t: t.set_column(3, "text", pa.array([1])), "column text is int64, not string"),
        (
            lambda t: t.set_column(4, "history", pa.array([[{"role": "u", "tool": "x"}]])),
            "column history is list<",
        ),
    ],
)
def test_rows_that_do_not_fit_the_schema_get_one_sentence(store: Store, change, sentence: str):
    with pytest.raises(BadInput, match=sentence.replace("(", r"\(")):
        store.write_fragments("t", change(rows("a")), SCHEMA)
    assert not (Path(store.root) / "tables").exists()


def test_what_python_lists_leave_untyped_takes_the_declared_type(store: Store):
    schema = table_schema(
        [pa.field("score", pa.float32()), pa.field("history", pa.list_(MESSAGE)), pa.field("n", pa.int8())]
    )
    common = {"parent_id": "", "group_id": "g"}
    untyped = [
        common | {"id": "a", "score": 1, "history": [], "n": None},
        common | {"id": "b", "score": 0, "history": [], "n": None},
    ]
    store.commit("t", schema, store.write_fragments("t", pa.Table.from_pylist(untyped), schema), made_by("x"))
    assert store.read("t").schema == schema
    assert store.read("t", columns=list(untyped[0])).to_pylist() == untyped
    wide = pa.Table.from_pylist([untyped[0] | {"n": 1000}])
    with pytest.raises(BadInput, match="table t: column n: Integer value 1000 not in range"):
        store.write_fragments("t", wide, schema)


def test_columns_may_come_in_any_order_and_digests_are_computed_afresh(store: Store):
    plain = rows("a")
    forged = plain.append_column("digest", pa.array(["forged"])).select(
        ["digest", *reversed(plain.column_names)]
    )
    store.commit("t", SCHEMA, store.write_fragments("t", forged, SCHEMA), made_by("x"))
    commit(store, "u", "a")
    assert store.read("t").schema.names == SCHEMA.names
    assert store.read("t").equals(store.read("u"))


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [
        ("prompts@v99", r"there is no prompts@v99: table prompts has versions v1..v3$"),
        ("prompts@v01", "there is no prompts@v01"),
        ("prompts@", "there is no prompts@: table prompts has versions v1..v3"),
        ("prompts@best", r"there is no prompts@best: table prompts has versions v1..v3$"),
        ("responses", r"there is no table responses under .*root \(tables: prompts\)$"),
        ("../etc", "'../etc' is no table name"),
        ("Prompts", "'Prompts' is no table name"),
        ("a b;drop", "'a b;drop' is no table name"),
        ("", "'' is no table name"),
    ],
)
def test_wrong_references_get_one_sentence(store: Store, ref: str, sentence: str):
    for i in range(3):
        commit(store, "prompts", f"r{i}")
    with pytest.raises(BadInput, match=sentence):
        store.read(ref)


@pytest.mark.parametrize("tag", ["v3", "", "a/b", "../x", "1st", "x" * 65])
def test_a_tag_cannot_look_like_a_version_or_a_path(store: Store, tag: str):
    commit(store, "t", "a")
    with pytest.raises(BadInput, match="is no tag"):
        store.tag("t", tag)


def test_unknown_columns_and_unknown_tags_are_named(store: Store):
    commit(store, "t", "a")
    with pytest.raises(BadInput, match="t@v1 has no column txt"):
        store.read("t", columns=["id", "txt"])
    with pytest.raises(BadInput, match="table t has no tag best"):
        store.untag("t", "best")


def test_read_filters_batches_and_takes_by_position(store: Store):
    store.commit(
        "t",
        SCHEMA,
        store.write_fragments("t", rows("a", "b"), SCHEMA)
        + store.write_fragments("t", rows("c", text="it's"), SCHEMA),
        made_by("x"),
    )
    assert store.read("t", columns=["id"], filter="text = 'it''s'").to_pylist() == [{"id": "c"}]
    assert [b.num_rows for b in store.batches("t", rows=1)] == [1, 1, 1]
    assert store.take("t", [2, 0], columns=["id"]).column("id").to_pylist() == ["c", "a"]
    with pytest.raises(StoreError, match="cannot read t"):
        store.read("t", filter="nonsense ===")


def test_find_gives_the_version_a_step_of_that_identity_made(store: Store):
    assert store.find("t", "a") is None
    for identity in ("a", "b", "a"):
        commit(store, "t", identity, identity=identity)
    assert store.find("t", "a").version == 3 and store.find("t", "b").version == 2
    assert store.find("t", "c") is None


def test_the_root_may_not_be_a_file_nor_lie_under_one_nor_have_an_unknown_scheme(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(BadInput, match="is a file"):
            Store(str(root))
    for root in ("ftp://host/x", "s3://"):
        with pytest.raises(BadInput, match="neither a local path nor s3"):
            Store(root)


def test_nothing_is_created_by_looking(tmp_path: Path):
    store = Store(str(tmp_path / "root"))
    assert (store.tables(), store.get_json("a/b.json"), store.list_json("a")) == ([], None, [])
    with pytest.raises(BadInput, match=r"no table t under .* \(tables: none\)"):
        store.read("t")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_fragments_without_a_commit_is_no_table(store: Store):
    store.write_fragments("t", rows("a"), SCHEMA)
    with pytest.raises(BadInput, match="there is no table t"):
        store.resolve("t")


def test_a_store_travels_to_another_process_as_its_root(store: Store):
    commit(store, "t", "a")
    assert pickle.loads(pickle.dumps(store)).read("t").equals(store.read("t"))


def test_importing_the_store_loads_neither_lance_nor_ray():
    code = "import sys, ray_jobs.store; print({'lance', 'ray', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_json_records_are_whole_or_absent(store: Store):
    store.put_json("ledger/prompts/u1.json", {"rows": 1, "text": "好"})
    store.put_json("ledger/prompts/u1.json", {"rows": 2})
    store.put_json("ledger/votes/u0.json", [1])
    assert store.get_json("ledger/prompts/u1.json") == {"rows": 2}
    assert store.list_json("ledger") == ["ledger/prompts/u1.json", "ledger/votes/u0.json"]
    assert store.list_json("ledger/none") == []
    (Path(store.root) / "ledger/votes/u0.json").write_text('{"rows"')
    with pytest.raises(StoreError, match=r"u0\.json is not a whole JSON record"):
        store.get_json("ledger/votes/u0.json")


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "a//b.json", "a/../b.json", "", "a b.json", ".x"]
)
def test_records_cannot_leave_the_root(store: Store, path: str):
    with pytest.raises(BadInput, match="no path inside the store"):
        store.put_json(path, {})


def test_a_full_disk_is_one_sentence_and_leaves_earlier_tables(store: Store):
    """The size limit of a process stands for the disk: the kernel refuses the write alike."""
    commit(store, "t", "a")

    code = f"""
import sys, random, resource
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_store import SCHEMA, Store, StoreError, rows
store = Store({store.root!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = "".join(chr(random.Random(1).randrange(33, 9999)) for _ in range(200_000))
for write in (
    lambda: store.write_fragments("t", rows(*(str(i) for i in range(9000)), text=noise[:9]), SCHEMA),
    lambda: store.put_json("big.json", noise),
):
    try:
        write()
    except StoreError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 2, out.stderr
    assert lines[0].startswith("cannot write table t under") and "too large" in lines[0]
    assert lines[1].startswith(f"cannot write {store.root}/big.json") and "too large" in lines[1]
    assert store.read("t").num_rows == 1 and store.get_json("big.json") is None
    assert not list(Path(store.root).glob(".*part"))


def test_no_space_is_said_in_plain_words(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*x.json: no space left on the device$"):
        store.put_json("x.json", {})
    assert list(Path(store.root).iterdir()) == []


def test_a_ray_dataset_reads_the_exact_version(store: Store, monkeypatch: pytest.MonkeyPatch):
    import ray.data

    commit(store, "t", "a")
    commit(store, "t", "b")
    asked = {}
    store.commit("t", SCHEMA, [], made_by("empty"))
    monkeypatch.setattr(ray.data, "from_arrow", lambda table: table)
    assert store.dataset("t@v3", columns=["text", "id"]).schema.names == ["text", "id"]
    monkeypatch.setattr(ray.data, "read_lance", lambda uri, **options: asked.update(options, uri=uri))
    store.dataset("t@v1", columns=["id"])
    assert asked == {
        "uri": f"{store.root}/tables/t.lance",
        "version": 1,
        "columns": ["id"],
        "storage_options": None,
    }
