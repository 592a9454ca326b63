"""The command line: what it prints, and for every wrong use one sentence on stderr, the right exit code, and nothing
half-written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from ray_jobs import human_labels
from ray_jobs.cli import main
from ray_jobs.files import read_table
from ray_jobs.seeds import PROMPT, SeedsConfig
from ray_jobs.step import Failed, Output, StepFailed
from ray_jobs.store import Store
from synth.errors import BadInput

ROW = {"history": [], "leaf": "", "category": "", "intended": "Safe", "human": "Safe", "source": "seed",
       "keyword": "", "pair_id": "", "language": "en"}  # fmt: skip


@pytest.fixture
def fails(capsys, tmp_path):
    """fails(code, part, *arguments): the command ends with this code and one sentence that holds `part`."""

    def check(code: int, part: str, *arguments: object) -> str:
        before = tree(tmp_path)
        assert main([str(argument) for argument in arguments]) == code
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("guardmill: ") and part in told.err, told.err
        assert told.err.count("\n") == 1 and "Traceback" not in told.err
        assert tree(tmp_path) == before
        return told.err

    return check


def tree(folder: Path) -> dict[str, bytes]:
    """All files under a folder but lock files, with their content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): path.read_bytes() for path in found}


@pytest.fixture
def root(tmp_path, put) -> str:
    """A root with two versions of a table of seeds."""
    store = Store(str(tmp_path / "root"))
    rows = [
        ROW | {"id": f"s{i}", "parent_id": "", "group_id": f"s{i}", "text": f"text {i}"} for i in range(3)
    ]
    put(store, "seeds", PROMPT, rows, "first")
    put(store, "seeds", PROMPT, [*rows[1:], rows[0] | {"text": "changed"}], "second")
    return store.root


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# runs


@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_unknown_recipe_is_told_with_those_there_are(fails, command, tmp_path):
    fails(
        2,
        "unknown recipe 'gigantic'; there are tiny, tiny_vllm",
        command,
        "gigantic",
        "--root",
        tmp_path / "root",
    )


def test_an_unknown_step_is_told_with_those_of_the_recipe(fails, tmp_path):
    fails(2, "unknown step 'bake'; the recipe tiny has seeds, gold, prompts", "run", "tiny", "--until", "bake",
          "--root", tmp_path / "root")  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ('{"prompt": "fine"}\n{"prompt": "b', "line 2: not JSON"),
        ('{"prompt": "fine"}\n{"prompt": ""}\n', "row 2: column 'prompt' holds no text"),
        ('{"question": "a"}\n', "no column 'text'; it has question"),
        ('{"prompt": "a", "severity": "Awful"}\n', "row 1: column 'severity' holds 'Awful'"),
    ],
)
def test_a_bad_import_is_told_before_anything_starts(fails, tmp_path, content, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    told = fails(2, said, "run", "tiny", "--import", path, "--root", tmp_path / "root")
    assert "mine.jsonl" in told and not (tmp_path / "root").exists()


def test_a_policy_with_an_id_twice_or_no_policy_at_all_is_told(fails, tmp_path, data_quality):
    text = Path(data_quality.source).read_text(encoding="utf-8")
    first, second = (leaf.id for leaf in data_quality.leaves[:2])
    path = tmp_path / "twice.yaml"
    path.write_text(text.replace(f"- id: {second}\n", f"- id: {first}\n"), encoding="utf-8")
    said = "twice.yaml: leaves: [1] has the same id"
    assert first in fails(2, said, "plan", "tiny", "--policy", path, "--root", tmp_path / "r")
    fails(2, "nowhere.yaml", "run", "tiny", "--policy", tmp_path / "nowhere.yaml", "--root", tmp_path / "r")


def test_a_root_that_is_a_file_is_told(fails, tmp_path):
    (tmp_path / "file").write_text("mine")
    fails(2, "is a file", "run", "tiny", "--root", tmp_path / "file")


def test_a_second_run_on_a_root_that_is_in_use_is_sent_away(fails, tmp_path):
    root = tmp_path / "root"
    code = "import sys\nfrom ray_jobs.store import Store\nwith Store(sys.argv[1]).lock():\n"
    code += " print('held', flush=True)\n sys.stdin.read()"
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        fails(1, f"another run (pid {other.pid} ", "run", "tiny", "--root", root)
        other.stdin.close()
    assert Store(str(root)).tables() == []


@pytest.fixture
def seeds_only(monkeypatch, inline):
    """The recipe tiny with its first step alone, run in this process."""
    import ray_jobs.pipeline as pipeline

    def first(recipe, policy):
        return [pipeline.seeds.step(replace(recipe.seeds, leaves=("violent.weapons",)))]

    monkeypatch.setattr(pipeline, "steps", first)


def test_a_run_says_where_its_tables_are_and_a_plan_then_finds_them(seeds_only, tmp_path, capsys):
    root = str(tmp_path / "root")
    assert main(["run", "tiny", "--root", root]) == 0
    told = capsys.readouterr()
    assert told.out == f"Tables: {root} (seeds@v1, written_responses@v1)\n" and "seeds" in told.err
    assert main(["plan", "tiny", "--root", root, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["step"], entry["state"], entry["why"]) == ("seeds", "cached", "seeds@v1")
    assert main(["run", "tiny", "--root", root, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"seeds": "seeds@v1", "written_responses": "written_responses@v1"}
    assert "done before" in told.err


def test_a_full_disk_ends_a_run_with_a_sentence_and_code_1(seeds_only, tmp_path, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    root = str(tmp_path / "root")
    with monkeypatch.context() as patch:
        patch.setattr("lance.fragment.write_fragments", full)
        assert main(["run", "tiny", "--root", root]) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("guardmill: ")]
    assert "no space left on the device" in sentence
    assert set(Store(root).tables()) <= {human_labels.TABLE}  # the empty one that people may fill
    assert main(["run", "tiny", "--root", root]) == 0


def test_a_step_over_its_error_budget_ends_a_run_with_a_sentence_and_code_1(
    seeds_only, tmp_path, capsys, monkeypatch
):
    failed = Output({"seeds": []}, [Failed("r1", "g1", "no answer")])
    monkeypatch.setattr("ray_jobs.seeds.run", lambda work: failed)
    assert main(["run", "tiny", "--root", str(tmp_path / "root")]) == 1
    assert "guardmill: step seeds: 1 of 1 rows failed (100.0%, budget 1.0%)" in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(seeds_only, tmp_path, monkeypatch):
    def broken(work):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ray_jobs.seeds.run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run", "tiny", "--root", str(tmp_path / "root")])
    assert not issubclass(StepFailed, ValueError)


def test_wrong_arguments_are_wrong_use(capsys):
    for arguments in ([], ["bake"], ["run"], ["data", "pull", "seeds"], ["dedup", "a.csv", "b.csv"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage: guardmill" in capsys.readouterr().err


def test_a_model_folder_that_is_not_one_is_told_before_anything_starts(tmp_path):
    from ray_jobs.engine import Model
    from ray_jobs.engine.weights import fingerprint

    (tmp_path / "model").mkdir()
    for name in ("model", "nowhere"):
        with pytest.raises(BadInput, match=name):
            fingerprint(Model("local", str(tmp_path / name), "instruct"))


# data


def test_ls_log_and_show_tell_what_a_root_holds(root, capsys):
    assert main(["data", "ls", "--root", root]) == 0
    assert capsys.readouterr().out.startswith("seeds@v2 ")
    assert main(["data", "ls", "--root", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["ref"] == "seeds@v2"
    assert main(["data", "log", "seeds", "--root", root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["seeds@v2", "seeds@v1"]
    assert main(["data", "show", "seeds@v1", "--root", root]) == 0
    assert "seeds@v1: 3 rows" in capsys.readouterr().out
    assert main(["show", "seeds", "s1", "--root", root]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "text 1"


def test_tag_diff_lineage_and_pull_go_by_exact_versions(root, tmp_path, capsys):
    assert main(["data", "tag", "seeds@v1", "good", "--root", root]) == 0
    assert main(["data", "diff", "seeds@good", "seeds", "--root", root, "--json"]) == 0
    told = capsys.readouterr().out
    found = json.loads(told[told.index("{") :])
    assert (found["added"], found["removed"], found["columns"]) == ([], [], {"text": 1})
    assert main(["data", "lineage", "seeds", "s2", "--root", root]) == 0
    assert capsys.readouterr().out.startswith("seeds@v2 ")
    folder = tmp_path / "pulled"
    assert main(["data", "pull", "seeds@good", str(folder), "--root", root, "--format", "jsonl"]) == 0
    texts = [
        json.loads(line)["text"] for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()
    ]
    assert sorted(texts) == ["text 0", "text 1", "text 2"]
    assert main(["data", "untag", "seeds", "good", "--root", root]) == 0


def test_push_exclude_and_compact_make_versions_and_say_which(root, tmp_path, capsys):
    other = str(tmp_path / "other")
    assert main(["data", "push", "seeds@v2", other, "--lineage", "--root", root]) == 0
    assert capsys.readouterr().out == f"{root}#seeds@v2 -> {other}#seeds@v1: 3 rows, verified\n"
    assert main(["data", "push", "seeds@v2", other, "--json", "--root", root]) == 0
    assert json.loads(capsys.readouterr().out)[0]["origin"] == f"{root}#seeds@v2"
    exclude = ["data", "exclude", "seeds", "id=s1", "--reason", "asked for", "--root", root]
    assert main([*exclude, "--dry-run"]) == 0
    assert "  seeds: 1 rows would go" in capsys.readouterr().out
    assert main(exclude) == 0
    assert "  seeds: 1 rows gone in seeds@v3" in capsys.readouterr().out
    assert main(["data", "compact", "seeds", "--json", "--root", root]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "push", "seeds@v9", "elsewhere"], "there is no seeds@v9"),
        (["data", "push", "seeds", "http://x"], "neither a local path nor s3://bucket/prefix"),
        (["data", "exclude", "seeds", "id", "--reason", "x"], "'id' is no condition: COLUMN=VALUE"),
        (["data", "exclude", "seeds", "id=nobody", "--reason", "x"], "no row with id=nobody"),
        (["data", "compact", "bread"], "there is no table bread"),
        (["data", "log", "bread"], "there is no table bread"),
        (["data", "show", "seeds@v9"], "seeds"),
        (["data", "show", "seeds@best"], "best"),
        (["data", "untag", "seeds", "best"], "best"),
        (["data", "lineage", "seeds", "nobody"], "seeds@v2 has no row with the id nobody"),
        (["data", "diff", "seeds@v1", "bread"], "there is no table bread"),
        (["show", "seeds", "nobody"], "seeds@v2 has no row with the id nobody"),
        (["vote"], "there is no table combiner"),
        (["report", "report.html"], "there is no table report"),
    ],
)
def test_unknown_tables_versions_tags_and_rows_are_told(fails, root, arguments, said):
    fails(2, said, *arguments, "--root", root)


def test_a_pull_of_what_is_not_there_makes_no_folder(fails, root, tmp_path):
    fails(2, "there is no table bread", "data", "pull", "bread", tmp_path / "pulled", "--root", root)
    assert not (tmp_path / "pulled").exists()


# files

TEXTS = [
    "How do I bake a loaf of rye bread at home in an old oven?",
    "How do I bake a loaf of rye bread at home in an old oven??",
    "Which trains leave for the coast on a Sunday in winter?",
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_dedup_keeps_rows_in_order_with_their_columns_in_every_format(tmp_path, capsys, ending):
    table = pa.table({"number": [1, 2, 3], "text": TEXTS})
    given, out, gone = (tmp_path / f"{name}.{ending}" for name in ("in", "out", "gone"))
    if ending == "jsonl":
        jsonl(given, *table.to_pylist())
    else:
        {"csv": csv.write_csv, "parquet": pq.write_table}[ending](table, given)
    assert main(["dedup", str(given), str(out), "--text", "text", "--duplicates", str(gone)]) == 0
    assert "3 rows in, 2 kept, 1 near-duplicates" in capsys.readouterr().err
    kept = read_table(str(out)).to_pylist()
    assert [row["number"] for row in kept] in ([1, 3], [2, 3]) and list(kept[0]) == ["number", "text"]
    (removed,) = read_table(str(gone)).to_pylist()
    assert {removed["row"], removed["kept_row"]} == {1, 2}


def test_dedup_never_merges_labels_and_drops_what_is_near_an_evaluation_set(tmp_path, capsys):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, "aba", strict=True)]
    given, bench = jsonl(tmp_path / "in.jsonl", *rows), jsonl(tmp_path / "bench.jsonl", {"text": TEXTS[2]})
    out = tmp_path / "out.jsonl"
    assert (
        main(["dedup", str(given), str(out), "--text", "text", "--label", "label", "--against", str(bench)])
        == 0
    )
    assert (
        "0 near-duplicates, 1 near an evaluation set, 1 pairs with conflicting labels"
        in capsys.readouterr().err
    )
    assert [row["label"] for row in read_table(str(out)).to_pylist()] == ["a", "b"]


@pytest.mark.slow  # the language models take ten seconds to load on a busy machine
def test_mixing_marks_the_foreign_words(tmp_path, capsys):
    source = "How do I bake a dark bread at home without an oven?"
    rows = [
        {"text": "¿Cómo puedo hornear un pan oscuro en casa sin horno?", "lang": "es", "source": source},
        {"text": "¿Cómo puedo bake a dark bread en casa sin horno?", "lang": "es", "source": source},
    ]
    given = jsonl(tmp_path / "in.jsonl", *rows)
    for ending in ("jsonl", "csv"):
        out = tmp_path / f"out.{ending}"
        options = ["--text", "text", "--lang", "lang", "--source", "source"]
        assert main(["mixing", str(given), str(out), *options]) == 0
        assert "es: 1 of 2 rows mixed" in capsys.readouterr().err
        assert [row["mixed"] for row in read_table(str(out)).to_pylist()] == [False, True]


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ("gone.jsonl", (), "gone.jsonl: no such file"),
        ("in.jsonl", ("--text", "body"), "in.jsonl: no column 'body'; it has text, lang"),
        ("in.jsonl", ("--text", "lang", "--label", "mood"), "no column 'mood'"),
        ("in.jsonl", ("--against", "gone.csv"), "gone.csv: no such file"),
        ("in.jsonl", ("--duplicates", "dups.txt"), "dups.txt: unknown format '.txt'"),
        ("in.jsonl", ("--threshold", "7"), "threshold"),
    ],
)
def test_dedup_of_bad_input_writes_nothing(fails, tmp_path, monkeypatch, given, options, said):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "in.jsonl", {"text": "a text", "lang": "en"})
    fails(
        2,
        said,
        "dedup",
        given,
        "out.jsonl",
        *(("--text", "text") if "--text" not in options else ()),
        *options,
    )
    fails(2, "unknown format '.txt'", "dedup", "in.jsonl", "out.txt", "--text", "text")
    fails(2, "there is no folder", "dedup", "in.jsonl", "no/out.jsonl", "--text", "text")


def test_mixing_of_an_unknown_language_names_the_row(fails, tmp_path):
    given = jsonl(tmp_path / "in.jsonl", {"text": "a text", "lang": "xx"})
    options = ("--text", "text", "--lang", "lang")
    fails(2, "in.jsonl, row 1, column 'lang'", "mixing", given, tmp_path / "out.csv", *options)


def test_imports_are_part_of_the_seeds(safety, tmp_path, make_work, store):
    from ray_jobs import seeds
    from ray_jobs.files import import_file

    path = jsonl(
        tmp_path / "mine.jsonl", {"text": "Mine alone."}, {"text": "Mine alone."}, {"text": "Another one."}
    )
    config = SeedsConfig(imports=(import_file(str(path)),), leaves=("violent.weapons",))
    output = seeds.run(make_work(safety, store, config))
    brought = [row["text"] for row in output.tables["seeds"] if row["source"] == "import"]
    assert brought == ["Mine alone.", "Another one."]
    assert output.dropped == {"imported twice": 1}
