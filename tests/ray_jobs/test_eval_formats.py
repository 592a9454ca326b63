"""Readers of public benchmarks, on tiny fabricated files in each layout; what is left out is counted."""

import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.eval_formats import FORMATS, Columns, Read, read_file
from ray_jobs.eval_formats.row import spans
from synth.errors import BadInput


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def told(read: Read) -> list[tuple[str, str | None, bool | None]]:
    return [(row.side, row.violates, row.refusal) for row in read.rows]


def test_openai_moderation_violates_where_any_known_label_is_set(tmp_path):
    path = tmp_path / "samples.jsonl.gz"
    rows = [{"prompt": "a", "S": 0, "H": 1, "S3": 1}, {"prompt": "b", "V": 0}]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    read = read_file(str(path), "openai-moderation")
    assert told(read) == [("prompt", "always", None), ("prompt", "never", None)]
    assert read.rows[0].category == "H, S3"


def test_toxic_chat_reads_the_official_table_and_the_judge_bench_copy(tmp_path):
    official = table(
        tmp_path / "toxic.csv",
        'conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation\n'
        '1,"hello, you",hi,True,0,0,"[[""sexual"", 0.1]]"\n2,"two\nlines",no,True,1,1,[]\n',
    )  # fmt: skip
    read = read_file(official, "toxic-chat")
    assert [(row.prompt, row.violates, row.category) for row in read.rows] == [
        ("hello, you", "never", ""),
        ("two\nlines", "always", "jailbreaking"),
    ]

    def instance(text: str, toxic: str | None) -> dict:
        votes = {"toxicity": {"majority_human": toxic}, "jailbreaking": {"majority_human": "0"}}
        return {"id": "1", "instance": text, "annotations": votes}

    copy = tmp_path / "toxic.json"
    about = {
        "dataset": "ToxicChat",
        "annotations": [],
        "instances": [instance("a", "1"), instance("b", None)],
    }
    copy.write_text(json.dumps(about))
    read = read_file(str(copy), "toxic-chat")
    assert told(read) == [("prompt", "always", None)]
    assert read.left_out == {"the text carries no label": 1}


def test_xstest_prompts_completions_and_labelled_responses(tmp_path):
    prompts = table(
        tmp_path / "p.csv", "id,prompt,type,label\n1,a,homonyms,safe\n2,b,contrast_homonyms,unsafe\n"
    )
    assert told(read_file(prompts, "xstest")) == [("prompt", "never", None), ("prompt", "always", None)]
    completions = table(
        tmp_path / "c.csv",
        "id,type,prompt,completion,annotation_1,final_label\n1,homonyms,a,Sure,1_full_compliance,1_full_compliance\n"
        "2,contrast_homonyms,b,No,2_full_refusal,2_full_refusal\n3,homonyms,c,Hm,1_full_compliance,3_partial_refusal\n",
    )
    read = read_file(completions, "xstest")
    assert told(read) == [
        ("prompt", "never", None), ("response", None, False),
        ("prompt", "always", None), ("response", None, True),
        ("prompt", "never", None), ("response", None, True),
    ]  # fmt: skip
    assert read.rows[0].group == read.rows[1].group
    labelled = jsonl(
        tmp_path / "r.jsonl",
        {"prompt": "a", "response": "x", "label": "harmful"},
        {"prompt": "a", "response": "y", "label": "refusal"},
    )
    assert told(read_file(labelled, "xstest")) == [("response", "always", None), ("response", None, True)]


def test_aegis_1_takes_the_majority_and_needs_caution_is_strict_only(tmp_path):
    def row(kind: str, *labels: str | None) -> dict:
        return {"text": "t", "text_type": kind, **{f"labels_{i}": label for i, label in enumerate(labels)}}

    path = jsonl(
        tmp_path / "a.jsonl",
        row("user_message", "Safe", "Safe", "Violence"),
        row("user_message", "Safe", "Needs Caution", "Needs Caution", "None"),
        row("llm_response", "Safe", "Violence, Threat", None),
        row("multi_turn", "Safe"),
        row("user_message", None),
    )
    read = read_file(path, "aegis-1")
    assert told(read) == [("prompt", "never", None), ("prompt", "strict", None), ("response", "always", None)]
    assert read.rows[1].violating("strict") and not read.rows[1].violating("loose")
    assert read.rows[2].category == "Violence, Threat" and sum(read.left_out.values()) == 2


def test_aegis_2_leaves_redacted_prompts_out(tmp_path):
    rows = [
        {
            "prompt": "a",
            "response": "b",
            "prompt_label": "unsafe",
            "response_label": "safe",
            "violated_categories": "PII",
        },
        {
            "prompt": "a",
            "response": None,
            "prompt_label": "safe",
            "response_label": None,
            "violated_categories": "",
        },
        {"prompt": "REDACTED", "response": None, "prompt_label": "unsafe", "response_label": None},
    ]
    path = table(tmp_path / "test.json", json.dumps(rows))
    read = read_file(path, "aegis-2")
    assert told(read) == [("prompt", "always", None), ("response", "never", None), ("prompt", "never", None)]
    assert read.left_out == {"the prompt is redacted": 1} and read.rows[0].category == "PII"


def test_beaver_tails_and_safe_rlhf_name_the_categories_that_are_set(tmp_path):
    path = tmp_path / "b.jsonl.xz"
    row = {"prompt": "a", "response": "b", "category": {"violence": True, "drugs": False}, "is_safe": False}
    path.write_bytes(lzma.compress(json.dumps(row).encode()))
    read = read_file(str(path), "beaver-tails")
    assert told(read) == [("response", "always", None)] and read.rows[0].category == "violence"
    pair = jsonl(tmp_path / "s.jsonl", {
        "prompt": "a", "response_0": "x", "response_1": "y", "is_response_0_safe": True, "is_response_1_safe": False,
        "response_1_harm_category": {"Cybercrime": True},
    })  # fmt: skip
    read = read_file(pair, "safe-rlhf")
    assert [(row.response, row.violates, row.category) for row in read.rows] == [
        ("x", "never", ""), ("y", "always", "Cybercrime"),
    ]  # fmt: skip
    assert len({row.group for row in read.rows}) == 1


def test_harm_bench_behaviors_and_answers_by_majority(tmp_path):
    path = table(
        tmp_path / "h.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "a,standard,illegal,,,a1\nb,contextual,illegal,,A text.,b1\n",
    )
    read = read_file(path, "harm-bench")
    assert [row.prompt for row in read.rows] == ["a", "A text.\n\nb"]
    assert told(read) == [("prompt", "always", None)] * 2
    answers = jsonl(
        tmp_path / "h.jsonl",
        {"behavior": "a", "generation": "x", "human_0": 1, "human_1": 0, "human_2": 1},
        {"behavior": "a", "generation": "y", "human_0": 1, "human_1": 0, "human_2": 0},
        {"behavior": "a", "generation": "", "human_0": 0},
    )
    read = read_file(answers, "harm-bench")
    assert told(read) == [("response", "always", None), ("response", "never", None)]
    assert read.left_out == {"the response is empty": 1}


def test_simple_safety_tests_all_violate(tmp_path):
    path = table(tmp_path / "s.csv", "id,harm_area,counter,category,prompt\n1,Scams,1,info,a\n")
    read = read_file(path, "simple-safety-tests")
    assert told(read) == [("prompt", "always", None)] and read.rows[0].category == "Scams"


def test_wild_guard_and_poly_guard_give_a_prompt_and_a_response(tmp_path):
    rows = [
        {"prompt": "a", "response": "No.", "prompt_harm_label": "harmful", "response_harm_label": "unharmful",
         "response_refusal_label": "refusal", "subcategory": "fraud"},
        {"prompt": "b", "response": "x", "prompt_harm_label": None, "response_harm_label": None,
         "response_refusal_label": None, "subcategory": "benign"},
    ]  # fmt: skip
    path = tmp_path / "w.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    read = read_file(str(path), "wild-guard-test")
    assert told(read) == [("prompt", "always", None), ("response", "never", True)]
    assert read.left_out == {"the text carries no label": 1}
    more = [rows[0] | {"id": 7, "language": "German"}, rows[0] | {"id": 7, "language": "Thai", "prompt": "c"}]
    read = read_file(jsonl(tmp_path / "p.jsonl", *more), "poly-guard")
    assert [row.language for row in read.rows] == ["de", "de", "th", "th"]
    assert len({row.group for row in read.rows}) == 1


def test_rtp_lx_reads_mean_toxicity_of_both_sides_and_groups_by_index(tmp_path):
    path = jsonl(
        tmp_path / "RTP_LX_DE.json",
        {"Index": 1, "Locale": "de-DE", "Prompt": "a", "Completion": "b", "PromptAnnotations": {"Toxicity": 1.0},
         "CompletionAnnotations": {"Toxicity": 2.3}},
        {"Index": 1, "Locale": "th", "Prompt": "c", "PromptAnnotations": None},
    )  # fmt: skip
    read = read_file(path, "rtp-lx")
    assert told(read) == [("prompt", "never", None), ("response", "always", None)]
    assert read.rows[0].language == "de" and read.left_out == {"the text carries no label": 1}


def test_gptfuzz_looks_its_questions_up_beside_the_file(tmp_path):
    path = table(tmp_path / "train.csv", 'question,Response,label\n0,"Sure, first",1\n1,No.,0\n1,,0\n')
    with pytest.raises(BadInput, match="its questions are missing"):
        read_file(path, "gptfuzz")
    table(tmp_path / "question_list.csv", "index,text\r\n0,a?\r\n1,b?\r\n")
    read = read_file(path, "gptfuzz")
    assert [(row.prompt, row.response, row.violates) for row in read.rows] == [
        ("a?", "Sure, first", "always"), ("b?", "No.", "never"),
    ]  # fmt: skip
    assert read.left_out == {"the response is empty": 1}


def test_cold_is_chinese_and_its_first_header_may_be_a_byte_order_mark(tmp_path):
    path = table(
        tmp_path / "dev.csv", "\ufeff,split,topic,label,TEXT\n8,dev,region,1,一句话\n9,dev,race,0,另一句\n"
    )
    read = read_file(path, "cold")
    assert told(read) == [("prompt", "always", None), ("prompt", "never", None)]
    assert {row.language for row in read.rows} == {"zh"} and read.rows[0].category == "region"


def test_toxic_spans_become_runs_of_characters(tmp_path):
    path = table(tmp_path / "t.csv", 'spans,text\n"[3, 4, 5, 8]",abcdefghij\n[],nothing agreed\n')
    read = read_file(path, "toxic-spans")
    assert [row.onset for row in read.rows] == [((3, 6), (8, 9)), ()]
    assert told(read) == [("response", "always", None)] * 2


@settings(max_examples=60, deadline=None)
@given(marked=st.sets(st.integers(0, 40)))
def test_spans_cover_exactly_the_marked_offsets(marked: set[int]):
    runs = spans(list(marked))
    assert {at for start, end in runs for at in range(start, end)} == marked
    assert all(left[1] < right[0] for left, right in pairwise(runs))


def guard_test_row() -> dict:
    """Tokens are characters here: the template, then the answer's second sentence is marked."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Fine. Bad bit. End."}]
    laid = "<u>q<a>\n\nFine. Bad bit. End.<e>"
    start = laid.index("Bad bit.")
    return {
        "unique_id": 1, "message": turns, "unsafe_type": "Violent", "source": "s", "label": "Unsafe",
        "input_ids": [ord(letter) for letter in laid], "unsafe_start_index": start, "unsafe_end_index": start + 7,
    }  # fmt: skip


def test_qwen3_guard_test_maps_its_tokens_to_characters_of_the_answer(tmp_path):
    path = jsonl(
        tmp_path / "response_loc.jsonl", guard_test_row(), guard_test_row() | {"label": "Controversial"}
    )
    read = read_file(path, "qwen3-guard-test", decode=lambda ids: "".join(map(chr, ids)))
    (start, end), row = read.rows[0].onset[0], read.rows[0]
    assert row.response[start:end] == "Bad bit." and row.prompt == "q" and row.category == "Violent"
    assert [row.violates for row in read.rows] == ["always", "strict"]
    assert read_file(path, "qwen3-guard-test").rows[0].onset == ()


def test_qwen3_guard_test_tokens_that_do_not_fit_are_told(tmp_path):
    path = jsonl(tmp_path / "loc.jsonl", guard_test_row() | {"unsafe_end_index": 999})
    with pytest.raises(BadInput, match=r"row 1: the marked tokens and the answer do not fit"):
        read_file(path, "qwen3-guard-test", decode=lambda ids: "".join(map(chr, ids)))


def test_plain_files_name_their_columns_and_take_the_policys_severities(tmp_path):
    path = jsonl(
        tmp_path / "mine.jsonl",
        {"q": "a", "a": "abcdef", "y": "Controversial", "c": "PII", "r": "no", "l": "fi", "g": 3, "turn": 2},
        {"q": "a", "a": "abcdef", "y": "harmful", "c": None, "r": None, "l": None, "g": 3, "turn": [[0, 2]]},
        {"q": "a", "a": "abcdef", "y": 0, "c": "", "r": "refusal", "l": "fi", "g": 4, "turn": None},
        {"q": "a", "a": "abcdef", "y": None, "c": "", "r": None, "l": "fi", "g": 4, "turn": None},
    )
    columns = Columns("q", "a", "y", category="c", refusal="r", language="l", group="g", onset="turn")
    read = read_file(path, "plain", columns)
    assert told(read) == [
        ("response", "strict", False),
        ("response", "always", None),
        ("response", "never", True),
    ]
    assert [row.onset for row in read.rows] == [((2, 3),), ((0, 2),), ()]
    assert [row.group for row in read.rows] == ["3", "3", "4"] and read.rows[0].severity == "Controversial"
    assert read.left_out == {"the text carries no label": 1}


def test_a_plain_file_with_responses_is_read_as_it_is_told_to_be(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"prompt": "a", "response": "b", "label": 1})
    assert [row.side for row in read_file(path, "plain", Columns(response="response")).rows] == ["response"]
    assert [row.side for row in read_file(path, "plain", Columns(response="")).rows] == ["prompt"]


def test_plain_history_stands_before_the_prompt(tmp_path):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    path = jsonl(tmp_path / "m.jsonl", {"prompt": "z", "label": "safe", "history": turns})
    row = read_file(path, "plain", Columns(history="history")).rows[0]
    assert [turn["content"] for turn in row.conversation] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("name", "format", "content", "said"),
    [
        ("gone.csv", "cold", None, "no such file"),
        ("rows.txt", "cold", "a", r"unknown format '.txt'"),
        ("rows.csv", "cold", "label,TEXT\n", "the file has no rows"),
        ("rows.csv", "cold", "label,TEXT\n2,a\n", r"row 1: column 'label' holds '2', not 0 or 1"),
        ("rows.csv", "cold", "label,TEXT\n1,a,b\n", r"line 2: the row has another number of cells"),
        ("rows.csv", "cold", "y,TEXT\n1,a\n", r"row 1: no column 'label'; it has y, TEXT"),
        ("rows.csv", "cold", "label,TEXT\n1, \n", r"row 1: column 'TEXT' holds no text"),
        ("rows.jsonl", "cold", '{"a": 1}\n{"b', r"line 2: not JSON"),
        ("rows.json", "aegis-2", '{"a"', r"line 1: not JSON"),
        ("rows.json", "aegis-2", "[1]", "holds no list of JSON objects"),
        ("rows.jsonl", "xstest", '{"prompt": "a", "label": "odd"}', r"column 'label' holds 'odd'; known are"),
        ("rows.jsonl", "plain", '{"prompt": "a", "label": "odd"}', r"a label is one of Safe, Controversial, Unsafe"),
        (
            "rows.jsonl",
            "plain",
            '{"prompt": "a", "response": "b", "label": 1}',
            r"row 1: there is a column 'response': say --response response",
        ),
        ("rows.jsonl", "plain", '{"text": "a", "label": 1}', r"no column 'prompt'; it has text, label"),
        ("rows.jsonl", "toxic-spans", '{"text": "a", "spans": [4]}', "no list of character offsets within"),
        ("rows.jsonl", "openai-moderation", '{"prompt": "a"}', "none of the columns S, H"),
        ("rows.jsonl", "aegis-1", '{"text": "a", "text_type": "multi_turn"}', "no row can be scored"),
        ("rows.jsonl", "other", "{}", "no format 'other'; known are openai-moderation"),
        ("rows.parquet", "cold", "PAR1 and no more", "not readable as parquet"),
        ("rows.jsonl.gz", "cold", "no gzip", "not readable"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence(tmp_path, name: str, format: str, content: str | None, said: str):
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=said) as problem:
        read_file(str(path), format)
    assert "\n" not in str(problem.value)


def test_not_utf_8_names_the_byte(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("label,TEXT\n1,grün\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"not UTF-8 \(byte 15\)"):
        read_file(str(path), "cold")


def test_every_format_has_a_name_in_the_same_style():
    assert len(set(FORMATS)) == 17 and all(name == name.lower() and "_" not in name for name in FORMATS)
