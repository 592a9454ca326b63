"""A checkpoint of either guard, in this process and without Ray, over labelled texts of files.

A streaming guard judges a prompt at the end of the user's turn and a response by its tokens, debounced (METHOD.md §6);
what ranks a response is the highest probability of violating that holds for two tokens running. A generative guard is
asked for the probabilities of its answers' first lines, as in the evaluation step; its categories and refusal need the
answer itself, which it writes (greedily) for the rows with a label of refusal only, or for all of them on request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label.scores import debounced, token_severity
from label.verdict import moderation_prompt, parse_verdict, severity_answers
from ray_jobs.engine.calls import Failure, Model, Sampling
from ray_jobs.eval_formats import EvalRow
from synth.errors import BadInput
from synth.policy import READINGS, Policy, load_policy

BATCH = 64
ANSWER_TOKENS = 64
STREAM_TYPE, PUBLISHED = "guardmill_stream", "Qwen3ForGuardModel"


@dataclass(frozen=True)
class Judgement:
    """A guard on one text: severity, probability of violating by reading, and what else it said.

    `category` and `refusal` are None where the guard was not asked; `onset` is the first flagged token by reading, of
    the tokens whose character `offsets` [T, 2] are given (streaming guards, responses). `unread`: why an answer that
    was asked for gave neither category nor refusal; the severity stands.
    """

    severity: str
    violating: dict[str, float]
    category: str | None = None
    refusal: bool | None = None
    onset: dict[str, int | None] | None = None
    offsets: NDArray[np.int64] | None = None
    unread: str = ""


Judged = list[Judgement | Failure]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder says of itself: `kind` ("gen", "stream"), policy (`changed` since the training), template. With
    `model`, no folder but a role or an endpoint (ray_jobs.file_roles)."""

    folder: str
    kind: str
    policy: Policy
    template: str
    changed: bool = False
    model: Model | None = None


def read_checkpoint(folder: str, policy: str = "", template: str = "") -> Checkpoint:
    """The folder's kind, policy and template, as guardmill.json names them or as given. BadInput for no checkpoint."""
    path = Path(folder)
    config = _read(path / "config.json")
    if config is None:
        raise BadInput(f"{folder}: no config.json there, so this is no checkpoint of a guard")
    about = (_read(path / "guardmill.json") or {}).get("provenance", {})
    names = config.get("architectures") or []
    stream = config.get("model_type") == STREAM_TYPE or PUBLISHED in names
    if not stream and not about and not template:
        raise BadInput(f"{folder}: no guardmill.json names its moderation template, so --template must")
    known = load_policy(policy or about.get("policy_id") or "safety")
    changed = bool(about.get("policy")) and about["policy"] != known.hash
    chosen = template or about.get("template") or "moderation_short"
    return Checkpoint(folder, "stream" if stream else "gen", known, chosen, changed)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BadInput(f"{path}: not readable as JSON") from None
    if not isinstance(told, dict):
        raise BadInput(f"{path}: holds no JSON object")
    return told


def judge(
    checkpoint: Checkpoint,
    rows: Sequence[EvalRow],
    answers: bool = False,
    options: tuple[tuple[str, str | int | float | bool], ...] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Judged:
    """The guard's judgement of every row, in order, a Failure in the place of one it cannot read.

    `answers`: a generative guard writes out every answer. `options` place the model (device, dtype, threads).
    """
    model = _loaded(checkpoint, options)
    told: Judged = []
    for at in range(0, len(rows), BATCH):
        part = list(rows[at : at + BATCH])
        told += (
            _stream(model, checkpoint, part)
            if checkpoint.kind == "stream"
            else _gen(model, checkpoint, part, answers)
        )
        progress(len(told))
    if hasattr(model, "close"):
        model.close()
    return told


def _loaded(checkpoint: Checkpoint, options: tuple[tuple[str, str | int | float | bool], ...]) -> Any:
    """The model with its blocking calls, in this process."""
    from ray_jobs.engine.local import LocalModel
    from ray_jobs.file_roles import Asked

    bound = checkpoint.model
    if bound is not None and bound.engine == "openai":
        return Asked(bound)
    if bound is not None:
        return LocalModel(replace(bound, options=bound.options + options))
    return LocalModel(Model("local", checkpoint.folder, f"{checkpoint.kind}_guard", options=options))


def _stream(model: Any, checkpoint: Checkpoint, rows: list[EvalRow]) -> Judged:
    maps, policy = model.loaded.guard.config.maps, checkpoint.policy
    if set(maps.risk) != set(policy.severity_names):
        raise BadInput(
            f"{checkpoint.folder}: the guard says {', '.join(maps.risk)}, "
            f"the policy {policy.id} {', '.join(policy.severity_names)}"
        )
    scores = model.score_tokens([row.conversation for row in rows])
    return [
        found if isinstance(found, Failure) else stream_judgement(policy, maps, row.side, found)
        for row, found in zip(rows, scores, strict=True)
    ]


def stream_judgement(policy: Policy, maps: Any, side: str, scores: Any) -> Judgement:
    """From a streaming guard's probabilities (TokenScores, LabelMaps) to its judgement of one prompt or response."""
    columns = {
        reading: [i for i, name in enumerate(maps.risk) if policy.violates(name, reading)]
        for reading in READINGS
    }
    if side == "prompt":
        severity = maps.risk[int(scores.query_risk.argmax())]
        violating = {reading: float(scores.query_risk[found].sum()) for reading, found in columns.items()}
        category = (
            "" if severity == policy.mildest else maps.query_category[int(scores.query_category.argmax())]
        )
        return Judgement(severity, violating, category)
    severity = token_severity(policy, maps.risk, scores.risk)
    violating, onset, top = {}, {}, scores.risk.argmax(axis=1)
    for reading, found in columns.items():
        by_token = scores.risk[:, found].sum(axis=1)
        violating[reading] = float(np.minimum(by_token[1:], by_token[:-1]).max(initial=0.0))
        onset[reading] = debounced(np.isin(top, found))
    first = onset["strict"]
    category = "" if first is None else maps.response_category[int(scores.category[first].argmax())]
    return Judgement(severity, violating, category, onset=onset, offsets=scores.offsets)


def _gen(model: Any, checkpoint: Checkpoint, rows: list[EvalRow], answers: bool) -> Judged:
    policy = checkpoint.policy
    prompts = [
        [
            {
                "role": "user",
                "content": moderation_prompt(policy, row.side, row.conversation, checkpoint.template),
            }
        ]
        for row in rows
    ]
    labels = severity_answers(policy)
    told: Judged = [
        found if isinstance(found, Failure) else gen_judgement(policy, found.probabilities)
        for found in model.score(prompts, [labels] * len(rows))
    ]
    asked = [i for i, row in enumerate(rows) if answers or row.refusal is not None]
    if asked:
        sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0)
        written = model.generate([prompts[i] for i in asked], sampling, [0] * len(asked))
        for i, answer in zip(asked, written, strict=True):
            told[i] = with_answer(policy, rows[i].side, told[i], answer)
    return told


def gen_judgement(policy: Policy, probabilities: Sequence[float]) -> Judgement:
    """From the probabilities of the policy's severities to a judgement."""
    pairs = list(zip(policy.severity_names, probabilities, strict=True))
    violating = {
        reading: float(sum(p for name, p in pairs if policy.violates(name, reading))) for reading in READINGS
    }
    return Judgement(pairs[int(np.argmax(probabilities))][0], violating)


def with_answer(policy: Policy, side: str, told: Judgement | Failure, answer: Any) -> Judgement | Failure:
    """The judgement with the first category and the refusal of the written answer, or why that cannot be read."""
    if isinstance(told, Failure):
        return told
    if isinstance(answer, Failure):
        return replace(told, unread=answer.reason)
    verdict = parse_verdict(answer.text, policy, side)
    if verdict is None:
        return replace(told, unread="the written answer cannot be read")
    names = {category.id: category.name for category in policy.categories}
    category = names[verdict.categories[0]] if verdict.categories else ""
    return replace(told, category=category, refusal=verdict.refusal)
