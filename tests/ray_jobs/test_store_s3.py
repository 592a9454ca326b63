"""The store on S3: the same calls against an S3 server on loopback, where moto is installed."""

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.commands_run import summary
from ray_jobs.store import Busy, Provenance, Store, StoreError, lock, table_schema, tables, verify_pull
from synth.errors import BadInput

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
SCHEMA = table_schema([pa.field("text", pa.string())])


def rows(*ids: str) -> pa.Table:
    return pa.table({name: list(ids) for name in ("id", "parent_id", "group_id", "text")})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
    return Store(f"s3://bucket/{tmp_path.name}")


def test_the_places_a_run_names_are_addresses_in_the_bucket(store: Store):
    row = {"id": "r", "parent_id": "", "group_id": "", "uri": "artifacts/report/x"}
    schema = table_schema([pa.field("uri", pa.string())])
    table = pa.Table.from_pylist([row])
    found = store.commit(
        "report", schema, store.write_fragments("report", table, schema), Provenance("report", "1")
    )
    assert summary(store, {"report": found})[-1] == f"Report: {store.root}/artifacts/report/x/report.html"


def test_versions_tags_diff_lineage_and_cleanup(store: Store):
    assert store.tables() == []
    one, two = (store.write_fragments("t", rows(*ids), SCHEMA) for ids in (("a", "b"), ("c",)))
    assert store.tables() == [] and store.fragments_exist("t", one + two)
    store.commit("t", SCHEMA, one, Provenance("s", "1"))
    store.commit("t", SCHEMA, two, Provenance("s", "2"))
    store.commit("t", SCHEMA, two + one, Provenance("s", "3", inputs={"x": "t@v2"}))
    store.tag("t@v1", "first")
    assert [(v.ref, v.rows, v.tags) for v in store.versions("t")] == [
        ("t@v1", 2, ("first",)),
        ("t@v2", 1, ()),
        ("t@v3", 3, ()),
    ]
    assert store.read("t").column("id").to_pylist() == ["c", "a", "b"]
    assert store.diff("t@first", "t").added == ("c",)
    assert [step.ref for step in store.lineage("t", "c")] == ["t@v3", "t@v2"]
    store.commit("t", SCHEMA, [], Provenance("s", "4"))
    assert store.cleanup(1) == ["t@v2", "t@v3"]
    store.files.delete(f"tables/t.lance/data/{store.files.listing('tables/t.lance/data')[0].base_name}")
    with pytest.raises(StoreError, match="1 data files are gone"):
        store.commit("t", SCHEMA, one, Provenance("s", "5"))


def test_pull_is_verified_and_resumes(store: Store, tmp_path: Path):
    store.commit("t", SCHEMA, store.write_fragments("t", rows("a", "b"), SCHEMA), Provenance("s", "1"))
    manifest = store.pull("t@v1", tmp_path / "out")
    (tmp_path / "out" / manifest["files"][0]["path"]).unlink()
    again = store.pull("t@v1", tmp_path / "out")
    assert again["rows"] == 2 and verify_pull(tmp_path / "out") == again
    assert pq.read_table(tmp_path / "out/data").equals(store.read("t"))


def test_push_compact_and_exclude_between_a_folder_and_s3(store: Store, tmp_path: Path):
    local = Store(str(tmp_path / "root"))
    parts = [f for ids in (("a", "b"), ("c",)) for f in local.write_fragments("t", rows(*ids), SCHEMA)]
    local.commit("t", SCHEMA, parts, Provenance("s", "1"))
    assert local.push("t@v1", store).ref == "t@v1" and local.push("t@v1", store).ref == "t@v1"
    assert store.read("t@v1").equals(local.read("t@v1"))
    parts = [f for ids in (("a", "b"), ("c",)) for f in store.write_fragments("t", rows(*ids), SCHEMA)]
    store.commit("t", SCHEMA, parts, Provenance("s", "2"))
    assert store.compact("t").provenance.same_as == "t@v2"
    done = store.exclude("t", {"id": "a"}, "asked for")
    assert done.versions == {"t": "t@v4"} and store.read("t@v4")["id"].to_pylist() == ["b", "c"]
    assert store.push("t@v4", local).ref == "t@v2"


def test_writers_at_once_get_a_version_each_and_none_is_lost(store: Store):
    def write(who: str) -> None:
        for i in range(4):
            fragments = store.write_fragments("t", rows(f"{who}{i}"), SCHEMA)
            store.commit("t", SCHEMA, fragments, Provenance("s", f"{who}{i}"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    versions = store.versions("t")
    assert [v.version for v in versions] == list(range(1, 13))
    assert {v.provenance.identity for v in versions} == {f"{w}{i}" for w in "abc" for i in range(4)}
    assert all(store.read(v.ref)["id"].to_pylist() == [v.provenance.identity] for v in versions)
    with pytest.raises(StoreError, match=r"table t has a new version v12 since v3 was read"):
        tables.commit(store.files, "t", SCHEMA, [], Provenance("s", "late"), after=3)


def test_records_and_folders(store: Store, tmp_path: Path):
    store.put_json("ledger/a/u1.json", {"n": 1})
    assert store.get_json("ledger/a/u1.json") == {"n": 1} and store.get_json("ledger/none.json") is None
    assert store.list_json("ledger") == ["ledger/a/u1.json"]
    (tmp_path / "w/sub").mkdir(parents=True)
    (tmp_path / "w/sub/x.bin").write_bytes(b"x" * 100_000)
    uri, sha256 = store.put_folder(str(tmp_path / "w"), "guard")
    assert store.put_folder(str(tmp_path / "w"), "guard") == (uri, sha256)
    back = Path(store.get_folder(uri, sha256))
    assert (back / "sub/x.bin").read_bytes() == b"x" * 100_000
    with pytest.raises(StoreError, match=r"stored folder .* is gone"):
        store.get_folder("artifacts/other", "0" * 64)


def test_one_run_per_root(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "_TRIES", 1)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    with store.lock():
        time.sleep(0.5)
        with pytest.raises(Busy, match="another run"), store.lock():
            pass
    with store.lock():
        pass


def test_a_bucket_that_is_not_there_is_one_sentence(store: Store):
    missing = Store("s3://nowhere/x")
    with pytest.raises(BadInput, match="there is no table t under s3://nowhere/x"):
        missing.read("t")
    with pytest.raises(StoreError, match=r"cannot write s3://nowhere/x/a\.json"):
        missing.put_json("a.json", {})


def test_paid_answers_are_kept_in_the_bucket_for_the_next_run(store: Store):
    from ray_jobs.engine.calls import Completion, Model, Sampling
    from ray_jobs.engine.requests import RequestCache

    model = Model("openai", "some-model", "instruct")

    async def ask(kept: int) -> list[Completion | None]:
        cache = RequestCache(store.root, model, 1 << 30)
        keys = [cache.key("generate", [f"row {at}", at], [Sampling()]) for at in range(20)]
        found = [await cache.get(key) for key in keys]
        new = [Completion(f"text {at}", "stop", 3, 2) for at in range(kept)]
        await asyncio.gather(*(cache.put(key, one) for key, one in zip(keys, new, strict=False)))
        return [*found, *[await cache.get(key) for key in keys[:kept]]]

    first, second = asyncio.run(ask(15)), asyncio.run(ask(0))
    assert first[:20] == [None] * 20
    assert second == [*first[20:], *[None] * 5] and second[3] == Completion("text 3", "stop", 3, 2)
    objects = [info for info in store.files.listing("requests", recursive=True) if info.is_file]
    assert len(objects) == 1  # what came within a quarter of a second is one object
