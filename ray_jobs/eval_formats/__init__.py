"""Public benchmarks of guard models, read from the files that their authors publish into one kind of row.

`read_file(path, format)` gives every labelled text of a local file and counts what it leaves out, with the reason. What
a column holds, and where that is documented, stands at each reader (prompts.py, responses.py); plain files name their
columns (columns.py). No benchmark's data comes with this project.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.eval_formats import prompts, responses
from ray_jobs.eval_formats.columns import Columns, plain
from ray_jobs.eval_formats.hub import local
from ray_jobs.eval_formats.raw import raw_rows
from ray_jobs.eval_formats.responses import Decode
from ray_jobs.eval_formats.row import EvalRow
from synth.errors import BadInput
from synth.policy import Policy, load_policy

__all__ = ["FORMATS", "Columns", "EvalRow", "Read", "read_file"]

Reader = Callable[[Mapping[str, Any], str], list[EvalRow] | str]
READERS: dict[str, Reader] = {
    "openai-moderation": prompts.openai_moderation,
    "toxic-chat": prompts.toxic_chat,
    "xstest": prompts.xstest,
    "aegis-1": prompts.aegis_1,
    "aegis-2": responses.aegis_2,
    "beaver-tails": responses.beaver_tails,
    "safe-rlhf": responses.safe_rlhf,
    "harm-bench": responses.harm_bench,
    "simple-safety-tests": prompts.simple_safety_tests,
    "wild-guard-test": responses.wild_guard,
    "rtp-lx": prompts.rtp_lx,
    "poly-guard": responses.poly_guard,
    "cold": prompts.cold,
    "toxic-spans": responses.toxic_spans,
}
FORMATS = (*READERS, "qwen3-guard-test", "gptfuzz", "plain")


@dataclass(frozen=True)
class Read:
    """The labelled texts of a file, and how many rows gave none, by reason."""

    rows: tuple[EvalRow, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_file(
    path: str,
    format: str = "plain",
    columns: Columns | None = None,
    policy: Policy | None = None,
    decode: Decode | None = None,
) -> Read:
    """All labelled texts of a file, or of one on the hub (hub.py).

    `columns`, `policy` (default: safety) are for plain files, `decode` Qwen3GuardTest. BadInput, in one sentence
    with file, row and column, for a file or a value that is not what the format says.
    """
    read = _reader(path, format, columns or Columns(), policy, decode)
    rows: list[EvalRow] = []
    left_out: Counter[str] = Counter()
    for number, raw in enumerate(raw_rows(local(path)), 1):
        told = read(raw, f"{path}, row {number}")
        if isinstance(told, str):
            left_out[told] += 1
        else:
            rows += told
    if not rows:
        reason = left_out.most_common(1)[0][0]
        raise BadInput(f"{path}: no row can be scored ({reason})")
    return Read(tuple(rows), dict(sorted(left_out.items())))


def _reader(path: str, format: str, columns: Columns, policy: Policy | None, decode: Decode | None) -> Reader:
    if format == "plain":
        return partial(plain, columns=columns, policy=policy or load_policy("safety"))
    if format == "qwen3-guard-test":
        return partial(responses.qwen3_guard_test, decode=decode)
    if format == "gptfuzz":
        return partial(responses.gptfuzz, questions=_questions(path))
    if format not in READERS:
        raise BadInput(f"no format {format!r}; known are {', '.join(FORMATS)}")
    return READERS[format]


def _questions(path: str) -> dict[str, str]:
    """GPTFuzz's question_list.csv (`index`, `text`), which lies beside its responses."""
    beside = Path(local(path)).with_name("question_list.csv")
    if not beside.is_file():
        raise BadInput(f"{path}: its questions are missing, there is no {beside}")
    return {str(row.get("index")): str(row.get("text") or "") for row in raw_rows(str(beside))}
