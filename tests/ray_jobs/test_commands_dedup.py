"""`guardmill dedup` on files: planted pairs in several scripts, the record of removals, and input that is broken."""

import json
import random
from pathlib import Path

import pytest

from ray_jobs.cli import main

CAKE = "How do I bake a chocolate cake at home without an oven"
CHINESE = "请问怎样才能在家里自己做一个很大的生日蛋糕给孩子们吃"
THAI = "ฉันจะทำเค้กวันเกิดก้อนใหญ่ที่บ้านได้อย่างไร"


def write(path: Path, *rows: dict) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_in_any_script_go_and_the_record_names_them(tmp_path, capsys):
    texts = [CAKE, CAKE + "?!", CHINESE, CHINESE + "呢", THAI, THAI + "ครับ", "yes", "no", "Yes."]
    source = write(tmp_path / "in.jsonl", *({"text": text} for text in texts))
    record = tmp_path / "gone.jsonl"
    assert (
        main(["dedup", source, str(tmp_path / "out.jsonl"), "--text", "text", "--duplicates", str(record)])
        == 0
    )
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == [
        CAKE + "?!", CHINESE + "呢", THAI + "ครับ", "no", "Yes."
    ]  # fmt: skip
    assert [(row["row"], row["kept_row"]) for row in read(record)] == [(1, 2), (3, 4), (5, 6), (7, 9)]
    assert all(row["similarity"] >= 0.7 for row in read(record))
    told = capsys.readouterr().err
    assert "9 rows in, 5 kept, 4 near-duplicates" in told and "bands of 5" in told


def test_labels_and_twins_stay_apart_and_conflicts_are_written(tmp_path):
    rows = [
        {"key": "a", "text": CAKE, "label": "Safe", "pair": None},
        {"key": "b", "text": CAKE, "label": "Unsafe", "pair": None},
        {"key": "c", "text": CAKE + " today", "label": "Safe", "pair": "p"},
        {"key": "d", "text": CAKE + " today now", "label": "Safe", "pair": "p"},
    ]
    source = write(tmp_path / "in.jsonl", *rows)
    arguments = ["--text", "text", "--label", "label", "--id", "key", "--pair", "pair"]
    conflicts = tmp_path / "conflicts.jsonl"
    out = tmp_path / "out.jsonl"
    assert main(["dedup", source, str(out), *arguments, "--conflicts", str(conflicts)]) == 0
    assert {"b", "c", "d"} <= {row["key"] for row in read(out)}
    assert {(row["id"], row["other_id"]) for row in read(conflicts)} >= {("a", "b")}


def test_rows_near_an_evaluation_set_are_dropped_and_named(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", {"text": "Tell me about the weather"}, {"text": CAKE})
    held = write(tmp_path / "held.jsonl", {"text": CAKE.upper() + "?"})
    out, near = tmp_path / "out.jsonl", tmp_path / "near.jsonl"
    told = main(
        [
            "dedup",
            source,
            str(out),
            "--text",
            "text",
            "--against",
            held,
            "--contaminated",
            str(near),
            "--json",
        ]
    )
    assert told == 0 and [row["text"] for row in read(out)] == ["Tell me about the weather"]
    assert {(row["row"], row["evaluation_row"], row["evaluation"]) for row in read(near)} == {(2, 1, held)}
    assert json.loads(capsys.readouterr().out)["near_evaluation"] == 1


def test_broken_rows_are_kept_and_counted(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    long = " ".join(random.Random(0).choices(["one", "two", "three", "four"], k=1_000_000))
    lines = [
        {"id": 1, "text": ""},
        {"id": 2, "text": None},
        {"id": 3, "text": "word"},
        {"id": 3, "text": "other"},
    ]
    write(source, *lines, {"id": 4, "text": long})
    with source.open("ab") as out:
        out.write(b'\n{"id": 5, "text": "bytes \xff\xfe that are no text"}\n')
    assert (
        main(["dedup", str(source), str(tmp_path / "out.jsonl"), "--text", "text", "--id", "id", "--json"])
        == 0
    )
    counts = json.loads(capsys.readouterr().out)
    wanted = {"rows": 6, "kept": 5, "empty": 2, "nulls": 1, "repeated_ids": 1, "not_utf8": 1}
    assert {name: counts[name] for name in wanted} == wanted


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_of_each_kind_are_read_and_written(tmp_path, ending):
    import pyarrow as pa

    from ray_jobs.files import read_table, write_table

    source = str(tmp_path / f"in.{ending}")
    write_table(pa.table({"q": [CAKE, CAKE + ".", "else"], "n": [1, 2, 3]}), source)
    assert main(["dedup", source, str(tmp_path / f"out.{ending}"), "--text", "q"]) == 0
    assert read_table(str(tmp_path / f"out.{ending}"))["n"].to_pylist() == [2, 3]


def test_wrong_use_is_one_sentence(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", {"text": "a", "n": 1})
    assert main(["dedup", source, str(tmp_path / "out.jsonl"), "--text", "n"]) == 2
    assert "holds int64, not text" in capsys.readouterr().err
    assert main(["dedup", source, str(tmp_path / "out.jsonl"), "--text", "text", "--threshold", "2"]) == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_mixing_counts_empty_texts_and_refuses_a_missing_language(tmp_path, capsys):
    source = write(
        tmp_path / "in.jsonl", {"t": "", "l": "fr"}, {"t": None, "l": "fr"}, {"t": "bonjour", "l": "fr"}
    )
    assert main(["mixing", source, str(tmp_path / "out.jsonl"), "--text", "t", "--lang", "l"]) == 0
    assert "fr: 0 of 3 rows mixed, 2 empty" in capsys.readouterr().err
    source = write(tmp_path / "in.jsonl", {"t": "bonjour", "l": None})
    assert main(["mixing", source, str(tmp_path / "out.jsonl"), "--text", "t", "--lang", "l"]) == 2
    assert "row 1, column 'l': no language code" in capsys.readouterr().err
