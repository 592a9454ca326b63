"""`guardmill moderate`: a streaming guard's verdict on a prompt, and on every token of an answer as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_jobs.commands_tokens import visible
from ray_jobs.store import Store
from synth.errors import BadInput


def moderate(options: argparse.Namespace) -> None:
    """Print the query's verdict, then a line per token: text, risk, category, and whether the answer is flagged."""
    conversations = list(given(options))
    from transformers.utils import logging

    from train.stream_score import load_guard

    logging.disable_progress_bar()
    guard, tokenizer = load_guard(checkpoint_folder(options))
    for turns in conversations:
        for line in verdicts(guard, tokenizer, turns, options.reading):
            print(json.dumps(line, ensure_ascii=False) if options.json else told(line), flush=True)


def given(options: argparse.Namespace) -> Iterator[list[dict[str, str]]]:
    """Conversations from the arguments, or one per line of stdin: {"prompt", "response"} or a list of messages."""
    if options.prompt is not None:
        answer = [{"role": "assistant", "content": options.response}] if options.response else []
        yield [{"role": "user", "content": options.prompt}, *answer]
        return
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            yield read_line(line, f"standard input, line {number}")


def read_line(line: str, where: str) -> list[dict[str, str]]:
    """One conversation. BadInput when the line holds none that begins with a user's turn."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as problem:
        raise BadInput(f"{where}: not JSON: {problem.msg}") from None
    if isinstance(row, dict) and "prompt" in row:
        answer = row.get("response") or ""
        row = [{"role": "user", "content": row["prompt"]}] + (
            [{"role": "assistant", "content": answer}] if answer else []
        )
    elif isinstance(row, dict):
        row = row.get("messages")
    good = isinstance(row, list) and row and all(is_message(turn) for turn in row)
    if not good or row[0]["role"] == "assistant":
        raise BadInput(
            f'{where}: needs "prompt" (and "response"), or "messages" that begin with the user\'s turn'
        )
    return row


def is_message(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
    )


def checkpoint_folder(options: argparse.Namespace) -> str:
    """A folder as it is, else the guard's checkpoint in a table of the root."""
    if Path(options.checkpoint).is_dir():
        return options.checkpoint
    table = options.checkpoint.partition("@")[0]
    store = Store(options.root)
    if "/" in table or table not in store.tables():
        raise BadInput(f"{options.checkpoint}: neither a checkpoint folder nor a table of {store.root}")
    rows = [row for row in store.read(options.checkpoint).to_pylist() if row.get("name") == "guard"]
    if not rows:
        raise BadInput(f"{options.checkpoint} holds no checkpoint of a guard")
    return store.get_folder(rows[0]["uri"], rows[0]["sha256"])


def verdicts(
    guard: Any, tokenizer: Any, turns: list[dict[str, str]], reading: str
) -> Iterator[dict[str, Any]]:
    """A line for the last user turn, and one for every token of an assistant turn that follows it."""
    from train.data import chat_ids, special_id, text_ids
    from train.stream_verdict import Debounce, flags, rule

    answer = turns[-1]["content"] if turns[-1]["role"] == "assistant" else None
    asked = turns if answer is None else turns[:-1]
    newline = text_ids(tokenizer, "\n")
    ids = chat_ids(tokenizer, asked)[: -len(newline)]
    result, state = guard.stream_moderate_from_ids(ids, role="user")
    by = rule(guard.config.maps, reading)
    query = {key: result[key][-1] for key in ("risk_level", "risk_prob", "category", "category_prob")}
    violates = query["risk_level"] in by.levels
    yield {"turn": "user", "text": asked[-1]["content"], **query, "violates": violates, "flagged": violates}
    if answer is None:
        return
    head = [*newline, special_id(tokenizer, "<|im_start|>"), *text_ids(tokenizer, "assistant\n")]
    _, state = guard.stream_moderate_from_ids(head, role="assistant", stream_state=state)
    read = tokenizer(answer, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    debounce = Debounce(by.run)
    for number, (token, (start, end)) in enumerate(
        zip(read["input_ids"], read["offset_mapping"], strict=True)
    ):
        result, state = guard.stream_moderate_from_ids([token], role="assistant", stream_state=state)
        flagged = debounce.push(flags(result, guard.config.maps, by))
        one = {key: result[key][0] for key in ("risk_level", "risk_prob", "category", "category_prob")}
        violates = one["risk_level"] in by.levels
        yield {
            "turn": "assistant",
            "token": number,
            "text": answer[start:end],
            **one,
            "violates": violates,
            "flagged": flagged,
        }


def told(line: dict[str, Any]) -> str:
    """A verdict for people. Control characters of the text are shown, not sent to the terminal."""
    text = visible(line["text"])
    sign = "FLAGGED" if line["flagged"] else ""
    category = line["category"] if line["violates"] else ""
    where = "prompt  " if line["turn"] == "user" else f"{line['token']:>7} "
    return f"{where} {line['risk_level']:<14} {line['risk_prob']:.2f}  {category:<32} {sign:<8} {text}"
