"""People's own files: what is read, what is written, and one sentence for every bad one."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.files import existing, import_file, read_import, read_table, write_table
from synth.errors import BadInput

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=12)


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), ending=st.sampled_from([".jsonl", ".parquet", ".csv"]))
def test_what_is_written_is_read_back_in_every_format(tmp_path_factory, texts: list[str], ending: str):
    path = tmp_path_factory.mktemp("files") / f"rows{ending}"
    table = pa.table({"text": [f"t {text}" for text in texts], "number": list(range(len(texts)))})
    write_table(table, str(path))
    assert read_table(str(path)).to_pylist() == table.to_pylist()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_column_that_only_later_rows_have_is_kept(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"text": "one"}, {"text": "two", "label": "a"})
    assert read_table(path).to_pylist() == [{"text": "one", "label": None}, {"text": "two", "label": "a"}]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n  \n{"text": "two"}\n')
    assert read_table(str(path))["text"].to_pylist() == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.jsonl", None, "no such file"),
        ("rows.txt", b"text\n", "unknown format '.txt'; use .jsonl, .parquet, .csv"),
        ("rows", b"text\n", r"unknown format '\(none\)'"),
        ("empty.jsonl", b"", "the file is empty"),
        ("empty.csv", b"", "the file is empty"),
        ("blank.jsonl", b"\n \n", "the file has no rows"),
        (
            "latin.jsonl",
            '{"text": "a"}\n{"text": "gr\u00fcn"}\n'.encode("latin-1"),
            r"line 2: not UTF-8 \(byte 12\)",
        ),
        ("cut.jsonl", b'{"text": "a"}\n{"text": "b', "line 2: not JSON: Unterminated string"),
        ("list.jsonl", b'["text"]\n', "line 1: a row is a JSON object, not list"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*half a character"),
        (
            "mixed.jsonl",
            b'{"text": "a"}\n{"text": {"b": 1}}\n',
            "column 'text' holds values of different kinds",
        ),
        ("cut.parquet", b"PAR1 and then nothing", "not readable as parquet"),
        ("ragged.csv", b"text,label\na,b\nc\n", "not readable as csv"),
        ("latin.csv", "text\ngr\u00fcn\n".encode("latin-1"), r"line 2: not UTF-8 \(byte 2\)"),
        ("utf16.csv", "text\nab\n".encode("utf-16"), r"line 1: not UTF-8 \(byte 0\)"),
    ],
)
def test_a_bad_file_gets_one_sentence_that_names_it(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as raised:
        read_table(str(path))
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(BadInput, match="no such file"):
        existing(str(tmp_path / "rows.csv"))


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write_table(pa.table({"text": ["old"]}), str(path))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for name in ("out.jsonl", "out.parquet", "out.csv"):
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", full)
            patch.setattr(csv, "write_csv", full)
            patch.setattr("ray_jobs.files.json.dumps", full)
            with pytest.raises(OSError, match="No space left"):
                write_table(pa.table({"text": ["new"]}), str(tmp_path / name))
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
    assert read_table(str(path))["text"].to_pylist() == ["old"]


def test_nested_columns_become_json_in_a_csv(tmp_path):
    table = pa.table({"text": ["a"], "spans": [[{"start": 0, "why": "é"}]]})
    write_table(table, str(tmp_path / "out.csv"))
    (row,) = read_table(str(tmp_path / "out.csv")).to_pylist()
    assert json.loads(row["spans"]) == [{"start": 0, "why": "é"}]


# imports


def imported(path: str, policy) -> list[tuple[dict, dict | None]]:
    return list(read_import(import_file(path), policy))


def test_an_import_is_named_by_its_content_and_not_by_its_path(tmp_path):
    from ray_jobs.seeds import SeedsConfig
    from ray_jobs.step.definition import identifying

    here, there = (
        import_file(jsonl(tmp_path / name, {"text": "a b c"})) for name in ("here.jsonl", "there.jsonl")
    )
    other = import_file(jsonl(tmp_path / "other.jsonl", {"text": "a b d"}))
    named = [identifying(SeedsConfig(imports=(one,))) for one in (here, there, other)]
    assert named[0] == named[1] != named[2]


def test_prompts_come_with_or_without_labels_and_responses_with_their_prompt(tmp_path, safety):
    path = jsonl(
        tmp_path / "mine.jsonl",
        {"prompt": "How do I bake?", "severity": "Safe"},
        {"prompt": "How do I bake?", "response": "With flour.", "severity": "Safe", "refusal": False},
        {"prompt": "Und auf Deutsch?", "language": "de", "history": [{"role": "user", "content": "Hi"}]},
    )
    (labelled, none), (bare, answer), (german, _) = imported(path, safety)
    assert none is None and labelled["human"] == "Safe" and labelled["source"] == "import"
    assert bare["human"] == ""  # the label is the response's
    assert (answer["parent_id"], answer["human"], answer["refusal"]) == (bare["id"], "Safe", False)
    assert labelled["group_id"] == bare["group_id"] == answer["group_id"] != german["group_id"]
    assert german["language"] == "de" and german["history"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "  "}, "row 2: column 'prompt' holds no text"),
        ({"prompt": None}, "row 2: column 'prompt' holds no text"),
        ({"prompt": "a", "severity": "Bad"}, "row 2: column 'severity' holds 'Bad'; the policy knows Safe, "),
        (
            {"prompt": "a", "category": "weather"},
            "row 2: column 'category' holds 'weather'; the policy knows violent",
        ),
        ({"prompt": "a", "refusal": "maybe"}, "row 2: column 'refusal' holds 'maybe', not true or false"),
        ({"prompt": "a", "refusal": 1}, "row 2: column 'refusal' holds 1, not true or false"),
        ({"prompt": "a", "history": "Hi"}, "row 2: column 'history' holds no list of messages"),
        ({"prompt": "a", "response": 7}, "row 2: column 'response' holds no text"),
        ({"prompt": "a", "language": 7}, "row 2: column 'language' holds no text"),
    ],
)
def test_a_bad_row_is_told_by_file_row_and_column(tmp_path, safety, row, said):
    path = tmp_path / "mine.jsonl"
    jsonl(
        path,
        *({"prompt": "fine"} if set(row) == {"prompt"} else {**dict.fromkeys(row), "prompt": "fine"}, row),
    )
    with pytest.raises(BadInput, match=f"mine.jsonl, {said}"):
        imported(str(path), safety)


def test_a_file_without_a_text_column_says_which_it_has(tmp_path, safety):
    with pytest.raises(BadInput, match=r"no column 'text'; it has body, label"):
        imported(jsonl(tmp_path / "mine.jsonl", {"body": "a", "label": "b"}), safety)
