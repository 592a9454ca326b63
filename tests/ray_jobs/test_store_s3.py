"""The store on S3: the same calls against an S3 server on loopback, where moto is installed."""

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.store import Busy, Provenance, Store, StoreError, lock, table_schema, verify_pull
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
