"""Benchmarks of responses, or of prompts and responses together. Conventions as in prompts.py."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_jobs.eval_formats.row import (
    ALWAYS,
    HARM,
    NEVER,
    REFUSAL,
    STRICT,
    UNLABELLED,
    EvalRow,
    flag,
    group_of,
    has,
    named,
    need,
    spans,
    text,
    word,
)
from synth.errors import BadInput

Raw = Mapping[str, Any]
Told = list[EvalRow] | str
Decode = Callable[[Sequence[int]], str]
LEVELS = {"safe": NEVER, "unsafe": ALWAYS, "controversial": STRICT}
LANGUAGES = {
    "arabic": "ar", "chinese": "zh", "czech": "cs", "dutch": "nl", "english": "en", "french": "fr", "german": "de",
    "hindi": "hi", "italian": "it", "japanese": "ja", "korean": "ko", "polish": "pl", "portuguese": "pt",
    "russian": "ru", "spanish": "es", "swedish": "sv", "thai": "th",
}  # fmt: skip


def aegis_2(row: Raw, where: str) -> Told:
    """Aegis 2.0's *.json (the dataset card): `prompt`, `response` (or null), `prompt_label`, `response_label` (safe,
    unsafe), `violated_categories`. Prompts "REDACTED" come without their text and are left out."""
    need(row, where, "prompt", "prompt_label")
    prompt = text(row, where, "prompt")
    if prompt.strip() == "REDACTED":
        return "the prompt is redacted"
    category = str(row.get("violated_categories") or "")
    return _both(row, where, prompt, category, {"safe": NEVER, "unsafe": ALWAYS}, "label")


def wild_guard(row: Raw, where: str) -> Told:
    """wildguard_test.parquet (the dataset card): `prompt`, `response`, `prompt_harm_label`, `response_harm_label`
    (harmful, unharmful or null), `response_refusal_label` (refusal, compliance), `subcategory`."""
    need(row, where, "prompt", "prompt_harm_label")
    return _both(
        row, where, text(row, where, "prompt"), str(row.get("subcategory") or ""), HARM, "harm_label"
    )


def poly_guard(row: Raw, where: str) -> Told:
    """PolyGuardPrompts (the dataset card): the columns of WildGuardTest, translated, with `language` and `id`. The
    translations of one id are one group."""
    need(row, where, "id", "language")
    found = wild_guard(row, where)
    name = str(row["language"]).casefold()
    group = group_of(f"polyguard {row['id']}")
    if isinstance(found, str):
        return found
    return [EvalRow(**{**vars(one), "language": LANGUAGES.get(name, name), "group": group}) for one in found]


def _both(row: Raw, where: str, prompt: str, category: str, meanings: Mapping[str, str], label: str) -> Told:
    """A prompt and, where there is one, its response, each where it carries a label."""
    group, found = group_of(prompt), []
    asked = word(row, where, f"prompt_{label}", meanings)
    if asked:
        found.append(EvalRow("prompt", prompt, asked, group, category=category))
    answer, refusal = row.get("response"), word(row, where, "response_refusal_label", REFUSAL)
    said = word(row, where, f"response_{label}", meanings)
    if isinstance(answer, str) and answer.strip() and (said or refusal is not None):
        found.append(EvalRow("response", prompt, said, group, answer, category=category, refusal=refusal))
    return found or UNLABELLED


def beaver_tails(row: Raw, where: str) -> Told:
    """BeaverTails' *.jsonl.gz (the dataset card): `prompt`, `response`, `category` {name: bool}, `is_safe`."""
    need(row, where, "is_safe")
    prompt, answer = text(row, where, "prompt"), text(row, where, "response")
    violates = NEVER if flag(row, where, "is_safe") else ALWAYS
    return [
        EvalRow(
            "response", prompt, violates, group_of(prompt), answer, category=_category(row.get("category"))
        )
    ]


def safe_rlhf(row: Raw, where: str) -> Told:
    """PKU-SafeRLHF's *.jsonl (the dataset card): `prompt`, and for n = 0, 1 `response_n`, `is_response_n_safe`,
    `response_n_harm_category` {name: bool}. Two rows of one group."""
    prompt, found = text(row, where, "prompt"), []
    for n in (0, 1):
        answer = text(row, where, f"response_{n}")
        violates = NEVER if flag(row, where, f"is_response_{n}_safe") else ALWAYS
        category = _category(row.get(f"response_{n}_harm_category"))
        found.append(EvalRow("response", prompt, violates, group_of(prompt), answer, category=category))
    return found


def _category(value: Any) -> str:
    return named(value) if isinstance(value, Mapping) else str(value or "")


def harm_bench(row: Raw, where: str) -> Told:
    """harmbench_behaviors_text_*.csv: `Behavior`, `ContextString`, `SemanticCategory`; all violate. Rows with a
    `generation` (or `response`) are answers with people's votes `human_0` … `human_2`, or a `label`; their majority
    counts (the layout of these rows was not confirmed from a public page)."""
    prompt = text(row, where, "Behavior", "behavior", "prompt")
    context, category = (
        str(row.get("ContextString") or ""),
        str(row.get("SemanticCategory") or row.get("category") or ""),
    )
    prompt = f"{context}\n\n{prompt}" if context else prompt
    if "generation" not in row and "response" not in row:
        return [EvalRow("prompt", prompt, ALWAYS, group_of(prompt), category=category)]
    names = [name for name in (*(f"human_{i}" for i in range(3)), "label") if has(row, name)]
    if not names:
        return UNLABELLED
    if not str(row.get("generation", row.get("response")) or "").strip():
        return "the response is empty"
    votes = [flag(row, where, name) for name in names]
    violates = ALWAYS if 2 * sum(votes) > len(votes) else NEVER
    answer = text(row, where, "generation", "response")
    return [EvalRow("response", prompt, violates, group_of(prompt), answer, category=category)]


def gptfuzz(row: Raw, where: str, questions: Mapping[str, str]) -> Told:
    """GPTFuzz's labelled responses (the repository's README): `question` (an index into question_list.csv, here as
    {index: text}), `Response`, `label` 1 = harmful. One group per question."""
    need(row, where, "question", "label")
    index = str(row["question"])
    if index not in questions:
        raise BadInput(f"{where}: column 'question' holds {index!r}, which the question list does not have")
    if not has(row, "Response"):
        return "the response is empty"
    violates = ALWAYS if flag(row, where, "label") else NEVER
    return [
        EvalRow(
            "response", questions[index], violates, group_of(questions[index]), text(row, where, "Response")
        )
    ]


def toxic_spans(row: Raw, where: str) -> Told:
    """SemEval-2021 task 5 (the repository's README): `text`, and `spans`, a list of the character offsets that people
    marked. Every post is toxic; one without spans has no agreed onset. A post is judged as the response to an empty
    prompt."""
    post = text(row, where, "text")
    try:
        marked = ast.literal_eval(row["spans"]) if isinstance(row.get("spans"), str) else row.get("spans")
    except (ValueError, SyntaxError):
        marked = None
    if not isinstance(marked, list) or not all(isinstance(at, int) and 0 <= at < len(post) for at in marked):
        raise BadInput(f"{where}: column 'spans' is no list of character offsets within the text")
    return [EvalRow("response", "", ALWAYS, group_of(post), post, onset=spans(marked))]


def qwen3_guard_test(row: Raw, where: str, decode: Decode | None = None) -> Told:
    """Qwen3GuardTest's *.jsonl (the published eval_stream.py): `message` (turns), `label`, and in the …_loc splits
    `unsafe_start_index` and `unsafe_end_index`: tokens, both inclusive, of `input_ids` (Qwen3's own template).

    `decode` turns Qwen3 ids into text, and so these into characters; without it there is no onset.
    """
    need(row, where, "message", "label")
    turns = row["message"]
    if not isinstance(turns, Sequence) or len(turns) < 2 or turns[-1].get("role") != "assistant":
        raise BadInput(f"{where}: column 'message' holds no conversation that ends with an answer")
    *before, asked, answer = turns
    marked: tuple[tuple[int, int], ...] = ()
    if decode is not None and has(row, "unsafe_start_index"):
        marked = (_decoded_span(row, where, answer["content"], decode),)
    return [
        EvalRow(
            "response",
            asked["content"],
            word(row, where, "label", LEVELS),
            group_of(asked["content"]),
            answer["content"],
            tuple({"role": turn["role"], "content": turn["content"]} for turn in before),
            str(row["label"]),
            str(row.get("unsafe_type") or ""),
            onset=marked,
        )
    ]


def _decoded_span(row: Raw, where: str, answer: str, decode: Decode) -> tuple[int, int]:
    """Characters of the answer that the marked tokens cover. The last place where the answer stands is the answer."""
    ids, first, last = row["input_ids"], int(row["unsafe_start_index"]), int(row["unsafe_end_index"])
    begin = decode(ids).rfind(answer.strip())
    if begin < 0 or not 0 <= first <= last < len(ids):
        raise BadInput(f"{where}: the marked tokens and the answer do not fit the column 'input_ids'")
    begin -= len(answer) - len(answer.lstrip())
    start, end = len(decode(ids[:first])) - begin, len(decode(ids[: last + 1])) - begin
    return max(start, 0), min(end, len(answer))
