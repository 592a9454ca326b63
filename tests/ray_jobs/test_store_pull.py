"""Pulling an exact version: whole, resumable, verified, and readable by other tools."""

import json
from pathlib import Path

import datasets
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.store import Provenance, Store, StoreError, pull, table_schema, verify_pull
from synth.errors import BadInput

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = table_schema([pa.field("text", pa.string()), pa.field("history", pa.list_(MESSAGE))])
HOSTILE = "</script>\n=cmd() {{x}} \x1b[31m ``` ---"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """prompts@v1 with 10 rows in two fragments, prompts@v2 with one row."""
    store = Store(str(tmp_path / "root"))
    ids = [f"p{i}" for i in range(10)]
    columns = {"id": ids, "parent_id": ids, "group_id": ids, "text": [f"{i} 好 {HOSTILE}" for i in ids]}
    columns["history"] = [[{"role": "user", "content": None}]] * 9 + [None]
    table = pa.table(columns, schema=SCHEMA.remove(len(SCHEMA) - 1))
    parts = [store.write_fragments("prompts", table.slice(i, 5), SCHEMA) for i in (0, 5)]
    made = Provenance(
        "prompts",
        "id1",
        {"template": HOSTILE, "quota": 3},
        "ph",
        {"seeds": "seeds@v4"},
        counts={"in": 12, "out": 10, "failed": 0, "dropped": {HOSTILE: 2}},
    )
    store.commit("prompts", SCHEMA, parts[0] + parts[1], made)
    store.commit("prompts", SCHEMA, store.write_fragments("prompts", table.slice(0, 1), SCHEMA), made)
    return store


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "PART_ROWS", 4)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_parquet_has_the_rows_of_the_asked_version_a_manifest_and_nothing_else(store: Store, tmp_path: Path):
    manifest = store.pull("prompts@v1", tmp_path / "out")
    assert pq.read_table(tmp_path / "out/data").equals(store.read("prompts@v1"))
    assert (
        manifest == json.loads((tmp_path / "out/manifest.json").read_text()) == verify_pull(tmp_path / "out")
    )
    assert (manifest["ref"], manifest["rows"]) == ("prompts@v1", 10)
    assert [f["rows"] for f in manifest["files"]] == [4, 4, 2]
    assert manifest["provenance"] == json.loads(store.provenance("prompts@v1").to_json())
    assert set(content(tmp_path / "out")) == {
        "README.md",
        "manifest.json",
        *(f"data/part-0000{i}.parquet" for i in range(3)),
    }


def test_jsonl_and_lance_have_the_same_rows(store: Store, tmp_path: Path):
    expected = store.read("prompts@v1")
    store.pull("prompts@v1", tmp_path / "jsonl", "jsonl")
    lines = [
        json.loads(line)
        for file in sorted((tmp_path / "jsonl/data").iterdir())
        for line in file.read_text().split("\n")[:-1]
    ]
    assert lines == expected.to_pylist()
    store.pull("prompts@v1", tmp_path / "lance", "lance")
    copied = lance.dataset(str(tmp_path / "lance/data/table.lance"))
    assert copied.version == 1 and copied.to_table().equals(expected)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_datasets_loads_a_pulled_folder_as_it_is(store: Store, tmp_path: Path, format: str):
    store.pull("prompts@v1", tmp_path / "out", format)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == store.read("prompts@v1").to_pylist()


@pytest.mark.parametrize("format", pull.FORMATS)
@pytest.mark.parametrize("damage", ["removed", "flipped", "none"])
def test_a_second_pull_writes_only_the_part_that_is_missing_or_damaged(
    store: Store, tmp_path: Path, format: str, damage: str
):
    manifest = store.pull("prompts@v1", tmp_path / "out", format)
    before = content(tmp_path / "out")
    hurt = tmp_path / "out" / manifest["files"][1]["path"]
    if damage == "removed":
        hurt.unlink()
    elif damage == "flipped":
        data = bytearray(hurt.read_bytes())
        data[len(data) // 2] ^= 1
        hurt.write_bytes(data)
        with pytest.raises(StoreError, match="gone or not what was pulled: pull prompts@v1 again"):
            verify_pull(tmp_path / "out")
    again = store.pull("prompts@v1", tmp_path / "out", format)
    after = content(tmp_path / "out")
    for i, part in enumerate(manifest["files"]):
        assert (after.get(part["path"]) == before[part["path"]]) == (i != 1 or damage == "none")
    assert [f["rows"] for f in again["files"]] == [4, 4, 2]
    assert verify_pull(tmp_path / "out") == again
    if format == "lance":
        copied = lance.dataset(str(tmp_path / "out/data/table.lance"))
        assert copied.version == 1 and copied.to_table().equals(store.read("prompts@v1"))
        assert len(list((tmp_path / "out/data/table.lance/data").iterdir())) == 3


@pytest.mark.parametrize("format", pull.FORMATS)
def test_a_pull_that_broke_off_goes_on_where_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
):
    original = pull._write_part

    def breaks(folder, kind, number, rows):
        if number == 2:
            raise OSError(28, "No space left on device")
        return original(folder, kind, number, rows)

    monkeypatch.setattr(pull, "_write_part", breaks)
    with pytest.raises(StoreError, match=r"^cannot pull prompts@v1 into .*out: no space left on the device$"):
        store.pull("prompts@v1", tmp_path / "out", format)
    assert not (tmp_path / "out/manifest.json").exists()
    written = []
    monkeypatch.setattr(pull, "_write_part", lambda *a: written.append(a[2]) or original(*a))
    manifest = store.pull("prompts@v1", tmp_path / "out", format)
    assert written == [2] and verify_pull(tmp_path / "out") == manifest


def test_a_row_that_differs_from_its_digest_stops_the_pull(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take = Store.take
    wrong = pa.array([f"changed {i}" for i in range(4)])
    monkeypatch.setattr(Store, "take", lambda *a: take(*a).set_column(3, "text", wrong))
    with pytest.raises(StoreError, match=r"prompts@v1 is damaged: row p0 and 3 more"):
        store.pull("prompts@v1", tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_damaged_data_file_stops_the_pull(store: Store, tmp_path: Path):
    for file in (Path(store.root) / "tables/prompts.lance/data").iterdir():
        data = bytearray(file.read_bytes())
        data[: len(data) // 2] = bytes(len(data) // 2)
        file.write_bytes(data)
    with pytest.raises(StoreError, match=r"^(cannot (read|pull) )?prompts@v1"):
        store.pull("prompts@v1", tmp_path / "out")


def test_a_folder_in_use_is_left_alone(store: Store, tmp_path: Path):
    store.pull("prompts@v1", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    before = content(tmp_path)
    for ref, folder, format, sentence in (
        (
            "prompts@v2",
            "out",
            "parquet",
            "cannot pull prompts@v2 as parquet .* it holds prompts@v1 as parquet",
        ),
        ("prompts@v1", "out", "jsonl", "cannot pull prompts@v1 as jsonl .* it holds prompts@v1 as parquet"),
        ("prompts@v1", "mine", "parquet", "holds other things than a pulled version"),
        ("prompts@v1", "file", "parquet", "it is a file"),
        ("prompts@v1", "new", "csv", "unknown format 'csv': use parquet, jsonl, lance"),
        ("prompts@v9", "new", "parquet", "table prompts has versions v1..v2"),
    ):
        with pytest.raises(BadInput, match=sentence):
            store.pull(ref, tmp_path / folder, format)
    with pytest.raises(BadInput, match="is no finished pull"):
        verify_pull(tmp_path / "mine")
    assert content(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("format", pull.FORMATS)
def test_an_empty_version_can_be_pulled(store: Store, tmp_path: Path, format: str):
    store.commit("empty", SCHEMA, [], Provenance("s", "i"))
    manifest = store.pull("empty", tmp_path / "out", format)
    assert manifest["rows"] == 0 and verify_pull(tmp_path / "out") == manifest
    if format == "parquet":
        assert pq.read_table(tmp_path / "out/data").schema == SCHEMA


def test_the_card_tells_what_how_and_counts_and_generated_text_stays_text(store: Store, tmp_path: Path):
    store.pull("prompts@v1", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for expected in (
        "# prompts@v1",
        "10 rows in 3 parquet files",
        "`seeds`: `seeds@v4`",
        "- rows in: 12",
        "## Known limits",
    ):
        assert expected in card
    assert card.count("\n---\n") == 1 and card.count("```") == 2 and "\x1b" not in card
    dropped = next(line for line in card.splitlines() if line.startswith("- dropped"))
    assert dropped.startswith("- dropped, `</script> =cmd()") and dropped.endswith("`: 2")


def test_the_card_names_the_models_of_every_step_before_and_counts_rows_by_what_they_are(tmp_path: Path):
    store = Store(str(tmp_path / "root"))
    schema = table_schema([pa.field("language", pa.string()), pa.field("severity", pa.string())])
    ids = [str(i) for i in range(6)]
    told = {"id": ids, "parent_id": ids, "group_id": ids, "severity": ["Safe"] * 5 + ["`x\n"]}
    table = pa.table(told | {"language": ["en"] * 4 + ["zh"] * 2})
    for name, models, inputs in (
        ("prompts", {"writer": "a writer (w1)"}, {}),
        ("votes", {"voter-1": "a voter (v1)"}, {"deduped": "prompts@v1"}),
    ):
        made = Provenance(name, name, models=models, inputs=inputs)
        store.commit(name, schema, store.write_fragments(name, table, schema), made)
    store.pull("votes", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "- `voter-1`: `a voter (v1)`\n- `writer`: `a writer (w1)`\n" in card
    assert "- language: `en` 4, `zh` 2\n- severity: `Safe` 5, `'x` 1\n" in card
    assert "## Licences" in card and "of the\nmodels above" in card
