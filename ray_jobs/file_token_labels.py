"""Token labels for a file of one's own, with a recipe's models and the guards of its root.

A response is named by its texts, so that doubled rows are searched once and a draw is the same in every file. The
searches are recorded in the root after each wave, under what they depend on and not under the caps: a killed command
goes on in the wave it was in, a finished one writes its file again without a call, and larger caps go on from the
smaller ones. The root's request cache answers what any earlier run asked: another mode, another threshold or more draws
pay for what is new to them, and the wave in flight at a crash for what was not answered yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from label.token_labels import ANSWER, THINKING
from ray_jobs.files import column, text_column
from ray_jobs.step import Output, Run, StepFailed, Work
from ray_jobs.step.definition import recipe_of
from ray_jobs.token_labels import TokenLabelsConfig, label_rows, parts, step
from ray_jobs.token_tables import COSTS, EVIDENCE
from ray_jobs.token_waves import Wave
from synth.errors import BadInput
from synth.ids import row_id, stable_hash
from synth.policy import Policy

CHECK = pa.struct([("exact_outcome", pa.string()), ("exact_boundary", pa.int64()), ("same", pa.bool_())])
# What is added per part; thinking text gets the same columns under its own name where a file has any.
ADDED = {
    "outcome": pa.string(),
    "reason": pa.string(),
    "boundary": pa.int64(),
    "onset": pa.int64(),
    "tokens": pa.int64(),
    "labels": pa.list_(pa.string()),
    "evidence": EVIDENCE,
    "cost": pa.struct([(name, pa.int64()) for name in COSTS]),
    "check": CHECK,
}


PREFIXES = ("token_", "thinking_token_")


@dataclass(frozen=True)
class Columns:
    """The columns of a file that hold prompt, response and label, and thinking text if it stands apart."""

    prompt: str
    response: str
    label: str
    thinking: str = ""


def read_rows(table: pa.Table, path: str, columns: Columns, policy: Policy) -> list[dict[str, Any]]:
    """The file's rows as samples. BadInput names the row and column of a missing text or an unknown label, and a column
    that stands where a result would."""
    taken = [
        name for name in table.column_names if name.removeprefix("thinking_").removeprefix("token_") in ADDED
    ]
    taken = [name for name in taken if name.startswith(PREFIXES)]
    if taken:
        raise BadInput(f"{path}: has a column {taken[0]!r} already")
    prompts = text_column(table, columns.prompt, path).to_pylist()
    responses = column(table, columns.response, path).to_pylist()
    labels = column(table, columns.label, path).to_pylist()
    thoughts = (
        column(table, columns.thinking, path).to_pylist() if columns.thinking else [None] * len(prompts)
    )
    rows = []
    for number, (prompt, response, label, thinking) in enumerate(
        zip(prompts, responses, labels, thoughts, strict=True), 1
    ):
        for name, value in ((columns.response, response), (columns.thinking, thinking or "")):
            if not isinstance(value, str):
                raise BadInput(f"{path}, row {number}: column {name!r} holds no text")
        if label not in policy.severity_names:
            known = ", ".join(policy.severity_names)
            raise BadInput(
                f"{path}, row {number}: column {columns.label!r} holds {label!r}; the policy knows {known}"
            )
        key = row_id("", "own response", [prompt, response, thinking or "", label])
        rows.append(
            {
                "id": key,
                "group_id": key,
                "prompt": prompt,
                "history": [],
                "response": response,
                "thinking": thinking or "",
                "severity": label,
                "language": "und",
            }
        )
    return rows


def label_file(
    run: Run, config: TokenLabelsConfig, rows: list[dict[str, Any]], told: Callable[[Wave], None]
) -> Output:
    """Label the rows, each distinct one once. StepFailed when more of them fail than the recipe allows."""
    from ray_jobs.engine import Engines

    the_step = step(config)
    distinct = list({row["id"]: row for row in rows}.values())
    uncapped = step(replace(config, plan=replace(config.plan, max_rollouts=0, max_tokens=0)))
    identity = stable_hash(
        recipe_of(uncapped, run.seed, run.weights(the_step)),
        the_step.reads(run.policy, None),
        sorted(row["id"] for row in distinct),
    )
    engines = Engines(run.models(the_step), requests=run.requests)
    flagged = [row for row in distinct if row["severity"] != run.policy.mildest]
    if flagged:
        run.start_ray()
        run.opened.append(engines)
    work = Work("all", identity, {}, config, run.policy, run.seed, engines, run.store, {})
    try:
        output = label_rows(work, distinct, told)
    finally:
        run.release([])
    if len(output.failed) > run.error_budget * len(flagged):
        raise StepFailed(
            f"{len(output.failed)} of {len(flagged)} responses could not be labelled (budget {run.error_budget:.1%}), "
            f"the first because {output.failed[0].reason}; nothing is written, and a rerun tries those again"
        )
    return output


def labelled(table: pa.Table, rows: list[dict[str, Any]], output: Output) -> pa.Table:
    """The file's table with the added columns."""
    compared: list[dict[str, Any]] = output.tables["token_label_checks"]  # type: ignore[assignment]
    made_rows: list[dict[str, Any]] = output.tables["token_labels"]  # type: ignore[assignment]
    checks = {row["parent_id"]: row for row in compared}
    found = {(row["parent_id"], row["part"]): row for row in made_rows}
    thinks = any(part == THINKING for _, part in found)
    for part, prefix in zip((ANSWER, THINKING), PREFIXES, strict=True):
        if part == THINKING and not thinks:
            continue
        made = [added(row, found.get((row["id"], part)), checks) for row in rows]
        for name, kind in ADDED.items():
            table = table.append_column(prefix + name, pa.array([one.get(name) for one in made], kind))
    return table


def added(row: dict[str, Any], label: dict[str, Any] | None, checks: dict[str, Any]) -> dict[str, Any]:
    """One row's values; `onset` counts characters of the column that the text stands in."""
    if label is None:
        return {}
    start = next(part.start for part in parts(row) if part.name == label["part"])
    onset = None if label["onset"] is None else start + label["onset"]
    check = checks.get(label["id"])
    cost = {name: label[name] for name in COSTS}
    return {name: label.get(name) for name in ADDED} | {"onset": onset, "check": check, "cost": cost}


def summary(output: Output, waves: list[Wave]) -> dict[str, Any]:
    """What was found and what it cost, beside the paper's way."""
    rows: list[dict[str, Any]] = output.tables["token_labels"]  # type: ignore[assignment]
    checks: list[dict[str, Any]] = output.tables["token_label_checks"]  # type: ignore[assignment]
    return {
        "outcomes": dict(sorted(Counter(row["outcome"] for row in rows).items())),
        **{name: sum(row[name] for row in rows) for name in COSTS},
        "waves": len(waves),
        "checked": len(checks),
        "same_as_exact": sum(row["same"] for row in checks),
        "failed": len(output.failed),
    }
