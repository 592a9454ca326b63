"""`guardmill evaluate`: judgements into tables by hand, and both kinds of a tiny random guard end to end."""

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aiohttp import web
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ray_jobs.commands_evaluate import add_evaluate, system_names
from ray_jobs.engine.calls import Completion, Failure
from ray_jobs.eval_formats import EvalRow
from ray_jobs.eval_page import summary
from ray_jobs.file_guards import Judgement, gen_judgement, read_checkpoint, stream_judgement, with_answer
from ray_jobs.file_scores import System, sampled, score_file
from ray_jobs.stream_guard import label_maps
from synth.errors import BadInput
from synth.policy import load_policy
from train.labels import label_maps as ordered

POLICY = load_policy("safety")
NAMES = label_maps(POLICY)
MAPS = ordered(
    NAMES["risks"], NAMES["response_categories"], NAMES["query_categories"], NAMES["safe"], NAMES["strict"],
    NAMES["loose"],
)  # fmt: skip


def told(severity: str, **more) -> Judgement:
    certain = {reading: float(POLICY.violates(severity, reading)) for reading in ("loose", "strict")}
    return Judgement(severity, certain, **more)


def prompt(number: int, violates: str) -> EvalRow:
    return EvalRow("prompt", f"p{number}", violates, f"g{number}")


def test_strict_and_loose_are_not_swapped():
    """A guard that says Controversial of every violating prompt: right when read strictly, wrong when loosely."""
    rows = [prompt(i, "always" if i < 4 else "never") for i in range(8)]
    system = System("a", POLICY, [told("Controversial" if i < 4 else "Safe") for i in range(8)])
    scores = {one["reading"]: one for one in score_file(rows, [system], 50, 0)["scores"]}
    assert (scores["strict"]["f1"], scores["loose"]["f1"]) == (1.0, 0.0)
    assert scores["strict"]["auprc"]["value"] == 1.0 and scores["loose"]["auprc"]["value"] == 0.5


def test_a_controversial_label_violates_in_the_strict_reading_only():
    rows = [prompt(0, "strict"), prompt(1, "never")]
    system = System("a", POLICY, [told("Unsafe"), told("Safe")])
    scores = {one["reading"]: one for one in score_file(rows, [system], 20, 0)["scores"]}
    assert (scores["strict"]["violating"], scores["loose"]["violating"]) == (1, 0)
    assert scores["strict"]["groups"] == 2
    assert scores["loose"]["precision"] == 0 and scores["loose"]["auprc"] is None


def test_sides_are_apart_failures_are_counted_and_pairs_share_their_rows():
    answer = EvalRow("response", "q", "always", "g9", "text", refusal=False)
    rows = [prompt(0, "always"), prompt(1, "never"), prompt(2, "never"), answer]
    first = System(
        "a", POLICY, [told("Unsafe"), told("Safe"), Failure("too long"), told("Unsafe", refusal=False)]
    )
    second = System("b", POLICY, [told("Safe"), told("Safe"), told("Safe"), told("Unsafe")])
    tables = score_file(rows, [first, second], 20, 0)
    by = {(one["system"], one["side"], one["reading"]): one for one in tables["scores"]}
    assert by["a", "prompt", "strict"]["rows"] == 2 and by["b", "prompt", "strict"]["rows"] == 3
    assert by["a", "response", "loose"]["f1"] == 1.0
    assert tables["failed"] == [{"system": "a", "reason": "too long", "rows": 1}]
    pair = next(one for one in tables["pairs"] if one["side"] == "prompt" and one["reading"] == "strict")
    assert (pair["rows"], pair["only_first"], pair["only_second"], pair["p"]) == (2, 1, 0, 1.0)
    assert pair["f1_difference"]["value"] == 1.0
    assert [(one["system"], one["rows"], one["refusals"]) for one in tables["refusal"]] == [("a", 1, 0)]


def test_rows_that_only_tell_refusal_are_not_scored_for_harm():
    row = EvalRow("response", "q", None, "g", "No.", refusal=True)
    tables = score_file([row], [System("a", POLICY, [told("Safe", refusal=True)])], 20, 0)
    assert not tables["scores"] and tables["refusal"][0]["f1"] == 1.0


def test_categories_and_onsets_are_of_violating_rows():
    offsets = np.array([[0, 2], [2, 4], [4, 6], [6, 8]])
    row = EvalRow("response", "q", "always", "g", "abcdefgh", category="weapons", onset=((2, 4),))
    late = told("Unsafe", category="Violent", onset={"strict": 3, "loose": None}, offsets=offsets)
    tables = score_file([row, replace(row, violates="never")], [System("a", POLICY, [late, late])], 20, 0)
    assert tables["categories"][0]["counts"] == [[1]] and tables["categories"][0]["said"] == ["Violent"]
    bins = {one["reading"]: {name: n for name, n in one["bins"].items() if n} for one in tables["onsets"]}
    assert bins == {"strict": {"1-32": 1}, "loose": {"Safe": 1}}


def test_a_draw_is_fixed_by_its_seed_and_keeps_the_files_order():
    rows = [replace(prompt(i, "never"), group=f"g{i // 10}") for i in range(40)]
    drawn = sampled(rows, 12, 3)
    assert drawn == sampled(rows, 12, 3) != sampled(rows, 12, 4) and len(drawn) == 12
    assert [rows.index(row) for row in drawn] == sorted(rows.index(row) for row in drawn)
    assert sampled(rows, None, 0) == rows == sampled(rows, 99, 0)
    assert sampled(rows[::-1], 12, 3) == drawn[::-1]
    assert len({row.group for row in drawn}) > 2, "a draw of whole groups would hold two"


def scores(risk: list[list[float]], query: tuple[float, ...] = (0.1, 0.6, 0.3)) -> SimpleNamespace:
    """TokenScores over Safe, Unsafe, Controversial."""
    table = np.array(risk, dtype=float).reshape(-1, 3)
    category = np.zeros((len(table), 8))
    category[:, 4] = 1
    offsets = np.array([[i, i + 1] for i in range(len(table))]).reshape(-1, 2)
    return SimpleNamespace(
        risk=table,
        category=category,
        offsets=offsets,
        query_risk=np.array(query),
        query_category=np.eye(9)[8],
    )


def test_a_streaming_guard_on_a_prompt():
    judged = stream_judgement(POLICY, MAPS, "prompt", scores([]))
    assert (judged.severity, judged.category) == ("Unsafe", "Jailbreak")
    assert judged.violating == pytest.approx({"strict": 0.9, "loose": 0.6})
    assert stream_judgement(POLICY, MAPS, "prompt", scores([], (0.8, 0.1, 0.1))).category == ""


def test_a_streaming_guard_on_a_response_is_debounced():
    safe, unsafe, middle = [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]
    once = stream_judgement(POLICY, MAPS, "response", scores([safe, unsafe, safe]))
    assert (once.severity, once.onset, once.category) == ("Safe", {"strict": None, "loose": None}, "")
    judged = stream_judgement(POLICY, MAPS, "response", scores([safe, middle, unsafe, unsafe]))
    assert (judged.severity, judged.onset) == ("Unsafe", {"strict": 2, "loose": 3})
    assert judged.violating == pytest.approx({"strict": 0.9, "loose": 0.7}) and judged.category == "PII"
    assert stream_judgement(POLICY, MAPS, "response", scores([unsafe])).violating == {
        "strict": 0.0,
        "loose": 0.0,
    }


def test_a_generative_guards_probabilities_and_answer():
    judged = gen_judgement(POLICY, [0.2, 0.5, 0.3])
    assert judged.severity == "Controversial" and judged.violating == pytest.approx(
        {"strict": 0.8, "loose": 0.3}
    )
    answer = Completion("Safety: Unsafe\nCategories: PII, Violent\nRefusal: No", "stop", 1, 1)
    full = with_answer(POLICY, "response", judged, answer)
    assert (full.severity, full.category, full.refusal) == ("Controversial", "PII", False)
    unread = with_answer(POLICY, "response", judged, replace(answer, text="Hm"))
    assert unread == replace(judged, unread="the written answer cannot be read")
    assert with_answer(POLICY, "response", Failure("too long"), answer) == Failure("too long")


def test_names_of_systems_are_as_short_as_they_can_be():
    assert system_names(["a/guard", "b/guard"]) == ["a/guard", "b/guard"]
    assert system_names(["a/one", "a/two"]) == ["one", "two"]
    with pytest.raises(BadInput, match="named twice"):
        system_names(["a/one", "a/one"])


@pytest.fixture(scope="module")
def guards(tmp_path_factory) -> tuple[str, str]:
    """A random generative and a random streaming guard on one tiny backbone."""
    from train.stream_model import StreamGuard, StreamGuardConfig

    root = tmp_path_factory.mktemp("guards")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, eos_token_id=fast.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    gen, stream = root / "gen", root / "stream"
    LlamaForCausalLM(config).save_pretrained(gen)
    fast.save_pretrained(gen)
    StreamGuard(StreamGuardConfig.for_policy(config, MAPS, 8)).eval().save_guard(stream)
    fast.save_pretrained(stream)
    about = {"provenance": {"policy_id": "safety", "policy": "another", "template": "moderation_short"}}
    for folder in (gen, stream):
        (folder / "guardmill.json").write_text(json.dumps(about))
    return str(gen), str(stream)


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_evaluate(parser.add_subparsers())
    options = parser.parse_args(["evaluate", *arguments])
    options.command(options)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,label\nhow to bake,safe\nhow to pick,unsafe\nhow to sing,Controversial\nhm,\n")
    return str(path)


def test_both_guards_side_by_side_on_a_file(guards, data, capsys):
    gen, stream = guards
    run(gen, data, "--against", stream, "--json", "--device", "cpu", "--resamples", "20")
    result = json.loads(capsys.readouterr().out)
    assert [(one["system"], one["kind"], one["policy_changed"]) for one in result["systems"]] == [
        ("gen", "gen", True), ("stream", "stream", True),
    ]  # fmt: skip
    file = result["files"][0]
    assert (file["texts"], file["scored"], file["left_out"]) == (3, 3, {"the text carries no label": 1})
    violating = {(one["system"], one["reading"]): one["violating"] for one in file["scores"]}
    assert violating == {(s, r): n for s in ("gen", "stream") for r, n in (("loose", 1), ("strict", 2))}
    assert len(file["pairs"]) == 2 and not file["failed"]


def test_the_table_for_people_names_the_draw(guards, data, capsys):
    run(guards[1], data, "--limit", "2", "--seed", "5", "--device", "cpu", "--resamples", "20")
    page = capsys.readouterr().out
    assert "2 of 3 texts drawn with seed 5; left out: 1 (the text carries no label)" in page
    assert "the policy safety is not the one it was trained on" in page
    assert page.count("strict") == 1 and page.count("loose") == 1


def test_two_files_make_a_table_as_in_papers_and_a_page_of_charts(guards, data, tmp_path, capsys):
    gen, stream = guards
    other = tmp_path / "<i>other.csv"
    other.write_text("prompt,label\nhow to bake,safe\nhow to pick,unsafe\n")
    page = tmp_path / "page.html"
    run(
        gen,
        data,
        str(other),
        "--against",
        stream,
        "--device",
        "cpu",
        "--resamples",
        "20",
        "--page",
        str(page),
    )
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("F1 strict / loose")]
    assert lines[at].split("  ")[1:] and [line.split()[0] for line in lines[at + 1 :]] == ["gen", "stream"]
    assert "mine prompt" in lines[at] and lines[at].endswith("mean")
    html = page.read_text()
    assert html.count("<svg") == 4 and "&lt;i&gt;other prompt" in html and "<i>" not in html
    assert "default-src &#39;none&#39;" in html and "how to bake" not in html


def test_strict_comes_before_loose_in_the_summary():
    scores = [
        {"system": "a", "side": "prompt", "reading": reading, "f1": value}
        for reading, value in (("loose", 0.25), ("strict", 0.75))
    ]
    files = [{"file": "x/one.csv", "format": "plain", "scores": scores}]
    assert summary({"files": files, "systems": [{"system": "a"}, {"system": "b"}]}) == [
        ["F1 strict / loose", "one prompt", "mean"],
        ["a", "0.750 / 0.250", "0.750 / 0.250"],
        ["b", "-", "-"],
    ]


def test_streamed_onsets_and_written_refusals_reach_the_tables(guards, tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    row = {"prompt": "q", "answer": "fine and then bad", "label": 1, "refusal": "no", "turn": 9}
    path.write_text(json.dumps(row) + "\n")
    columns = ("--response", "answer", "--onset", "turn", "--refusal", "refusal")
    run(
        guards[1],
        str(path),
        "--against",
        guards[0],
        *columns,
        "--json",
        "--device",
        "cpu",
        "--resamples",
        "10",
    )
    file = json.loads(capsys.readouterr().out)["files"][0]
    assert {one["system"] for one in file["onsets"]} == {"stream"}
    assert all(sum(one["bins"].values()) == 1 for one in file["onsets"])
    assert file["refusal"] or file["failed"] == [
        {"system": "gen", "reason": "the written answer cannot be read", "rows": 1}
    ]
    assert {one["system"] for one in file["scores"]} == {"gen", "stream"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--limit", "0"), "--limit is a number of rows from 1"),
        (("--resamples", "0"), "--resamples is a number from 1"),
        (("--format", "cold", "--format", "cold"), "2 formats for 1 files"),
        (("--label", "y"), "no column 'y'; it has prompt, label"),
        (("--qwen3-tokenizer", "nowhere"), "nowhere: no tokenizer.json there"),
        (("--against", "nowhere"), "nowhere: neither a checkpoint folder nor a table"),
        (("--policy", "data_quality"), "row 2: column 'label' holds|a label is one of Good, Mixed, Poor"),
    ],
)
def test_wrong_use_is_one_sentence_before_any_model_is_loaded(guards, data, tmp_path, arguments, said):
    with pytest.raises(BadInput, match=said):
        run(guards[1], data, "--root", str(tmp_path / "none"), *arguments)


def test_a_guard_of_another_policy_is_told(guards, tmp_path):
    path = tmp_path / "binary.csv"
    path.write_text("prompt,label\na,0\nb,1\n")
    with pytest.raises(
        BadInput, match="the guard says Safe, Unsafe, Controversial, the policy data_quality Good"
    ):
        run(guards[1], str(path), "--policy", "data_quality", "--device", "cpu")


def test_a_folder_that_is_no_guard_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json there"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(BadInput, match="--template must"):
        read_checkpoint(str(tmp_path))
    assert read_checkpoint(str(tmp_path), template="moderation_full").kind == "gen"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json: not readable as JSON"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForGuardModel"]}')
    assert read_checkpoint(str(tmp_path)).kind == "stream"


async def guarded(arguments: list[str], monkeypatch) -> list[dict]:
    """Runs the command against a guard behind a real endpoint, which flags what speaks of picking; returns what it was
    asked."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body)
        said = ["Safety", ":", " Unsafe" if "to pick" in body["messages"][-1]["content"] else " Safe"]
        other = {"token": " x", "logprob": -3.0}
        tokens = [
            {"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}, other]}
            for t in said
        ]
        message = {"role": "assistant", "content": "".join(said)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
        return web.json_response({"model": body["model"], "choices": [choice], "usage": {}})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    try:
        await asyncio.to_thread(run, *arguments)
    finally:
        await runner.cleanup()
    return asked


def test_a_guard_behind_an_endpoint_is_scored_as_a_checkpoint_is(tmp_path, capsys, monkeypatch):
    data = tmp_path / "mine.csv"
    data.write_text("prompt,label\nhow to bake,safe\nhow to pick,unsafe\nhow to sing,safe\n")
    arguments = [
        "openai:some-guard",
        str(data),
        "--template",
        "moderation_short",
        "--resamples",
        "20",
        "--json",
    ]
    asked = asyncio.run(guarded(arguments, monkeypatch))
    result = json.loads(capsys.readouterr().out)
    assert [(one["system"], one["kind"]) for one in result["systems"]] == [("openai:some-guard", "gen")]
    assert {one["f1"] for one in result["files"][0]["scores"]} == {1.0} and not result["files"][0]["failed"]
    assert {body["model"] for body in asked} == {"some-guard"} and len(asked) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:guard", "no recipe 'nowhere'"),
        ("local:nobody", "binds no role 'nobody'"),
        ("local:gen_guard", "name its table instead: gen_guard"),
        ("local:embedder", "kind embedder, which answers no template"),
        ("qwen3guard:judge", "runs on vllm; serve"),
    ],
)
def test_a_role_that_cannot_be_asked_is_told(data, name, said):
    with pytest.raises(BadInput, match=said):
        run(name, data)
