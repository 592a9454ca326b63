"""token_labels: the token at which a flagged response turns (METHOD §5; label.rollout is the search).

All responses advance together in waves: one wave is the union of what the active searches ask next, grouped by model
and sorted so that shared prefixes are neighbours. A rollout and the guard's verdict on it belong to one wave. After
each wave the searches' states are recorded, so that a crash costs the wave in flight. Draws depend on row, prefix and
draw number alone. Responses of the mildest severity cost nothing: every token of theirs is safe.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from label.rollout import next_requests, outcome, start, update
from label.rollout_plan import Plan
from label.rollout_state import GUARD, JUDGE, ROLLOUT, Request, Result, from_bytes, to_bytes
from label.token_labels import (
    cost_row,
    evidence_rows,
    label_tokens,
    prefixes_of,
    safe_labels,
    sentence_ends,
)
from ray_jobs.engine import Failure, Sampling
from ray_jobs.step import Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.token_calls import Search, guard_verdicts, judge, rollouts
from synth.ids import row_id, stable_hash
from synth.policy import Policy

EVIDENCE = pa.list_(
    pa.struct(
        [
            ("prefix", pa.int64()),
            ("token", pa.int64()),
            ("char_end", pa.int64()),
            ("violations", pa.int64()),
            ("draws", pa.int64()),
            ("judge", pa.float64()),
        ]
    )
)
TOKEN_LABELS = table_schema(
    [
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string()),
        pa.field("language", pa.string()),
        pa.field("severity", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("boundary", pa.int64()),
        pa.field("onset", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("evidence", EVIDENCE),
        *(
            pa.field(name, pa.int64())
            for name in (
                "rollouts",
                "guard_calls",
                "judge_calls",
                "generated_tokens",
                "paper_rollouts",
                "paper_generated_tokens",
                "saved_by_curtailment",
                "saved_by_judge_first",
                "saved_by_left_to_right",
            )
        ),
    ]
)
COSTS = TOKEN_LABELS.names[-10:-1]


@dataclass(frozen=True)
class TokenLabelsConfig:
    """`plan` is the search's (k, threshold, mode, costs). `responses` bounds how many flagged responses are searched
    (0: all); `max_tokens` is where a longer response is left unlabelled, as an outcome of its own."""

    plan: Plan = field(default_factory=Plan)
    responses: int = 0
    max_tokens: int = 512
    template: str = "moderation_short"
    sampling: Sampling = Sampling(max_tokens=16, temperature=0.8)


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return [policy.slice_labels(), policy.slice_templates("judge", "moderation_short", "moderation_full")]


def step(config: TokenLabelsConfig) -> Step:
    return Step(
        "token_labels",
        run,
        config,
        {"token_labels": TOKEN_LABELS},
        sides=("distilled",),
        roles=("rollout", "guard", "judge", "backbone"),
        reads=reads,
    )


def run(work: Work) -> Output:
    """Label all responses of the distilled table."""
    rows = [
        row for row in work.read("distilled").to_pylist() if row["side"] == "response" and row["response"]
    ]
    flagged = sorted(
        (row for row in rows if row["severity"] != work.policy.mildest),
        key=lambda row: stable_hash("token labels", row["group_id"], row["id"]),
    )
    limit = work.config.responses or len(flagged)
    output = Output({"token_labels": []}, dropped=+Counter({"over the recipe's limit": len(flagged) - limit}))
    safe = [row for row in rows if row["severity"] == work.policy.mildest]
    searches, long = begin(work, flagged[:limit])
    output.dropped.update(+Counter({"longer than the recipe's limit": long}))
    waves(work, searches, output.failed)
    table: list[dict[str, Any]] = output.tables["token_labels"]  # type: ignore[assignment]
    table += [label_row(work, search) for search in searches]
    table += [safe_row(work, row) for row in safe]
    return output


def tokenizer(work: Work) -> Any:
    """The guard's tokenizer: boundaries are borders of its tokens."""
    from transformers import AutoTokenizer

    from ray_jobs.engine.weights import locate

    return AutoTokenizer.from_pretrained(locate(work.engines.roles["backbone"].name))


def begin(work: Work, rows: list[dict[str, Any]]) -> tuple[list[Search], int]:
    """A search per response, where the last recorded wave left it; and how many responses are too long."""
    split, plan = tokenizer(work), work.config.plan
    recorded = work.store.get_json(wave_path(work)) or {}
    searches, long = [], 0
    for row in rows:
        offsets = split(row["response"], add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        if len(offsets) > work.config.max_tokens:
            long += 1
            continue
        prefixes = prefixes_of(row["response"], offsets)
        known = recorded.get(row["id"])
        state = from_bytes(plan, base64.b64decode(known)) if known else None
        fresh = start(len(prefixes), plan, sentence_ends(prefixes) if plan.mode == "bisect" else ())
        searches.append(Search(row, prefixes, state or fresh))
    return searches, long


def wave_path(work: Work) -> str:
    return f"ledger/token_labels/waves-{work.identity}.json"


def waves(work: Work, searches: list[Search], failed: list[Failed]) -> None:
    """Advance all searches until each has an outcome."""
    while True:
        asked = [(search, next_requests(search.state)) for search in searches]
        asked = [(search, requests) for search, requests in asked if requests]
        if not asked:
            return
        answers = answer(work, asked, failed)
        for search, _ in asked:
            search.state = update(search.state, answers[search.row["id"]])
        states = {s.row["id"]: base64.b64encode(to_bytes(s.state)).decode() for s in searches}
        work.store.put_json(wave_path(work), states)


def answer(
    work: Work, asked: list[tuple[Search, list[Request]]], failed: list[Failed]
) -> dict[str, list[Result]]:
    """The answers to one wave, by row id. A guard request of an earlier wave's rollout repeats that rollout, whose
    seed gives the same text."""
    draws = [(s, r) for s, requests in asked for r in requests if r.kind in (ROLLOUT, GUARD)]
    judged = [(s, r) for s, requests in asked for r in requests if r.kind == JUDGE]
    results: dict[str, list[Result]] = defaultdict(list)
    draws.sort(key=lambda draw: (draw[0].row["id"], draw[1].prefix, draw[1].draw))
    told = guard_verdicts(work, draws, rollouts(work, draws))
    for (search, request), (violates, tokens, agrees, problem) in zip(draws, told, strict=True):
        key, where = search.row["id"], (request.prefix, request.draw)
        if request.kind == ROLLOUT:
            results[key].append(Result(ROLLOUT, *where, tokens=tokens, failed=bool(problem)))
        if problem:
            failed.append(Failed(key, search.row["group_id"], problem))
        if request.kind == GUARD or not problem:
            results[key].append(Result(GUARD, *where, flag=violates, agrees=agrees, failed=bool(problem)))
    for (search, request), probability in zip(judged, judge(work, judged), strict=True):
        lost = isinstance(probability, Failure)
        if isinstance(probability, Failure):
            failed.append(Failed(search.row["id"], search.row["group_id"], f"judge: {probability.reason}"))
        value = 0.0 if isinstance(probability, Failure) else probability
        flag = value >= 0.5
        results[search.row["id"]].append(
            Result(JUDGE, request.prefix, flag=flag, probability=value, failed=lost)
        )
    return results


def label_row(work: Work, search: Search) -> dict[str, Any]:
    """A searched response as a row: its boundary, the evidence, and what it cost."""
    ended = outcome(search.state)
    assert ended is not None
    labels = label_tokens(search.prefixes, ended, search.row["severity"], work.policy.mildest)
    evidence = [
        {
            **{name: told[name] for name in ("prefix", "token", "char_end", "violations", "draws")},
            "judge": told["judge_probability"],
        }
        for told in evidence_rows(search.prefixes, search.state)
    ]
    row = common(search.row, labels.outcome, labels.boundary_token, labels.boundary_char)
    return row | {"tokens": search.prefixes.tokens, "evidence": evidence} | cost_row(search.state)


def safe_row(work: Work, row: dict[str, Any]) -> dict[str, Any]:
    return common(row, safe_labels(0, work.policy.mildest).outcome, None, None) | {
        "tokens": None,
        "evidence": [],
        **dict.fromkeys(COSTS, 0),
    }


def common(row: dict[str, Any], ended: str, boundary: int | None, onset: int | None) -> dict[str, Any]:
    return {
        "id": row_id(row["id"], "token labels", ""),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        **{name: row[name] for name in ("prompt", "response", "language", "severity")},
        "outcome": ended,
        "boundary": boundary,
        "onset": onset,
    }
