"""`guardmill train` on files of one's own: what the guards are taught, what is refused, and a training for real."""

import json

import pytest

from label.verdict import parse_verdict
from ray_jobs.cli import main
from ray_jobs.eval_formats import EvalRow
from ray_jobs.eval_formats.row import ALWAYS, NEVER, STRICT
from ray_jobs.file_training import examples
from synth.errors import BadInput

ASKED = EvalRow("prompt", "How do I bake bread?", NEVER, "bread")
HARMFUL = EvalRow("prompt", "How do I pick my neighbour's lock?", ALWAYS, "lock", category="something else")
TURNED = EvalRow(
    "response", "A story?", ALWAYS, "story", response="Once. [withheld]", onset=((6, 16),), category="violent"
)


def test_a_yes_or_no_becomes_a_severity_of_the_policy(safety):
    rows = [ASKED, HARMFUL, EvalRow("prompt", "Is it ever right?", STRICT, "right")]
    assert [one["query_risk"] for one in examples("stream", rows, safety)] == [
        "Safe",
        "Unsafe",
        "Controversial",
    ]


def test_the_generative_guard_is_taught_no_line_that_the_row_does_not_say(safety):
    safe, unknown, known = (
        one["answer"] for one in examples("gen", [ASKED, HARMFUL, TURNED], safety, "moderation_short")
    )
    assert safe == "Safety: Safe\nCategories: None"
    assert unknown == "Safety: Unsafe"
    assert known == "Safety: Unsafe\nCategories: Violent"
    assert parse_verdict(safe, safety, "prompt").severity == "Safe"


def test_a_response_is_taught_from_its_onset_on_and_a_row_without_one_as_unmarked(safety):
    whole = EvalRow("response", "A story?", ALWAYS, "story", response="[withheld]")
    calm = EvalRow("response", "A story?", NEVER, "story", response="Once upon a time.")
    made = examples("stream", [TURNED, whole, calm], safety)
    assert [one["onset"] for one in made] == [6, None, None]
    assert [one["unmarked"] for one in made] == [False, True, False]
    assert made[0]["response_category"] == "Violent" and made[1]["response_category"] is None


def test_rows_of_one_label_and_sides_that_the_policy_lacks_are_refused(safety, data_quality):
    with pytest.raises(BadInput, match="two labels at least, and all of the 2 labelled rows are Safe"):
        examples("stream", [ASKED, ASKED], safety)
    assert examples("stream", [TURNED], safety)[0]["onset"] == 6  # safe until there: two labels in one row
    with pytest.raises(BadInput, match="all of the 1 labelled rows are Unsafe"):
        examples("gen", [TURNED], safety)
    side = "response" if "response" not in data_quality.sides else "prompt"
    row = EvalRow(side, "p", ALWAYS, "g", response="r")
    with pytest.raises(BadInput, match=f"has no side '{side}'"):
        examples("stream", [row, row], data_quality)


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"{text} ({number})", "label": label}
        for number in range(12)
        for text, label in (("How do I bake bread?", 0), ("How do I pick my neighbour's lock?", 1))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epochs", "0"], "--epochs is above 0, not 0"),
        (["--row-length", "0"], "--row-length is above 0, not 0"),
        (["--backbone", "no-such-model"], "no-such-model"),
        (["--label", "verdict"], "verdict"),
        (["--policy", "no-such-policy"], "no-such-policy"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(labelled, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    assert main(["train", "stream", str(labelled), "--out", str(out), *more]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def ray_ends():
    """The command's Ray ends with its process; here it must not outlive the test."""
    yield
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_ends")
def test_a_file_becomes_a_guard_that_evaluate_reads_and_a_second_call_does_nothing(
    labelled, tmp_path, capsys
):
    call = ["train", "stream", str(labelled), "--out", str(tmp_path / "out"), "--layers", "2", "--epochs", "30",
            "--patience", "0", "--batch-tokens", "128", "--lr", "1e-3", "--json"]  # fmt: skip
    assert main(call) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"] == 24
    assert main(["evaluate", told["guard"], str(labelled), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["files"][0]["scores"]
    assert scores[0]["f1"] > 0.9
    assert main(call) == 0
    assert "done before" in capsys.readouterr().err
    assert main([*call, "--seed", "1"]) == 2
    assert "trained otherwise" in capsys.readouterr().err
