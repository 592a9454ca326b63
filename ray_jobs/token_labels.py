"""token_labels: the token at which a flagged response turns (METHOD §5; label.rollout is the search).

All responses advance together in waves (ray_jobs.token_waves); thinking text and answer are searched apart. Draws
depend on row, part, prefix and draw number alone. What ends without a boundary is an outcome of its own: `none`;
`capped` (the plan's limit) and `failed` (calls failed where they were needed), kept with their state, the latter
in the quarantine too; `long` (more tokens than the recipe allows: nothing is spent). A text that does not fit a
model's context fails. Texts of the mildest severity cost nothing: every token of theirs is safe.

An approximate mode is checked in every run: a sample of its responses is searched by `exact` too, over the same draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from label.rollout import outcome, start
from label.rollout_plan import Plan
from label.rollout_state import CAPPED, FAILED, Outcome, to_bytes
from label.token_labels import (
    ANSWER,
    LONG,
    THINKING,
    Part,
    Prefixes,
    TokenLabels,
    cost_row,
    evidence_rows,
    label_tokens,
    prefixes_of,
    safe_labels,
    sentence_ends,
    split_thinking,
)
from ray_jobs.engine import Sampling
from ray_jobs.step import Failed, Output, Step, Work
from ray_jobs.token_calls import Search
from ray_jobs.token_tables import COSTS, TOKEN_CHECKS, TOKEN_LABELS
from ray_jobs.token_waves import Ledger, Wave, advance
from synth.ids import row_id, stable_hash
from synth.policy import Policy

EXACT = "exact:"  # before the key of a search that checks another one


@dataclass(frozen=True)
class TokenLabelsConfig:
    """`plan` is the search's (k, threshold, mode, costs). `responses` bounds how many flagged responses are searched
    (0: all); `max_tokens` is where a longer text is left unlabelled; `checked` searches of an approximate mode are
    repeated exactly. From `batch` open searches on, none looks ahead (this steers cost and waves, never a label)."""

    plan: Plan = field(default_factory=Plan)
    responses: int = 0
    max_tokens: int = 512
    template: str = "moderation_short"
    sampling: Sampling = Sampling(max_tokens=16, temperature=0.8)
    checked: int = 50
    batch: int = field(default=256, metadata={"identity": False})


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return [policy.slice_labels(), policy.slice_templates("judge", "moderation_short", "moderation_full")]


def step(config: TokenLabelsConfig) -> Step:
    return Step(
        "token_labels",
        run,
        config,
        {"token_labels": TOKEN_LABELS, "token_label_checks": TOKEN_CHECKS},
        sides=("distilled",),
        roles=("rollout", "guard", "judge", "backbone"),
        reads=reads,
        revision=2,
    )


def run(work: Work) -> Output:
    """Label all responses of the distilled table."""
    rows = [row for row in work.read("distilled").to_pylist() if row["side"] == "response"]
    flagged = sorted(
        (row for row in rows if row["severity"] != work.policy.mildest),
        key=lambda row: stable_hash("token labels", row["group_id"], row["id"]),
    )
    limit = work.config.responses or len(flagged)
    mild = (row for row in rows if row["severity"] == work.policy.mildest)
    output = label_rows(work, [*flagged[:limit], *mild])
    output.dropped.update(+Counter({"over the recipe's limit": len(flagged) - limit}))
    return output


def label_rows(
    work: Work, rows: Iterable[dict[str, Any]], told: Callable[[Wave], None] = lambda wave: None
) -> Output:
    """Label every part of every row (a sample: id, group_id, prompt, history, response, thinking, severity)."""
    split, ledger = tokenizer(work), Ledger.load(work)
    searches: list[Search] = []
    table: list[dict[str, Any]] = []
    for row in rows:
        for part in parts(row):
            given = {"add_special_tokens": False, "return_offsets_mapping": True}
            prefixes = prefixes_of(part.text, split(part.text, **given)["offset_mapping"])
            if row["severity"] == work.policy.mildest:
                table.append(free_row(row, part, prefixes, safe_labels(prefixes.tokens, row["severity"])))
            elif prefixes.tokens > work.config.max_tokens:
                reason = f"{prefixes.tokens} tokens, the limit is {work.config.max_tokens}"
                table.append(free_row(row, part, prefixes, TokenLabels((), None, None, LONG, reason)))
            else:
                searches.append(
                    begin(f"{row['id']}/{part.name}", row, part, prefixes, work.config.plan, ledger)
                )
    checks = list(exact_checks(work, searches, ledger))
    advance(work, [*searches, *checks], ledger, told)
    table = [label_row(work, search) for search in searches] + table
    kept: dict[str, Any] = {"token_labels": table, "token_label_checks": list(compared(searches, checks))}
    return Output(kept, failed=[lost for search in searches for lost in failures(search)])


def tokenizer(work: Work) -> Any:
    """The guard's tokenizer: boundaries are borders of its tokens."""
    from transformers import AutoTokenizer

    from ray_jobs.engine.weights import locate

    return AutoTokenizer.from_pretrained(locate(work.engines.roles["backbone"].name))


def parts(row: dict[str, Any]) -> tuple[Part, ...]:
    """Thinking text and answer, whether they come apart or in one text; an empty response is an empty answer."""
    if row.get("thinking"):
        found = (Part(THINKING, row["thinking"], 0), Part(ANSWER, row["response"] or "", 0))
        return found if row["response"] else found[:1]
    return split_thinking(row["response"] or "") or (Part(ANSWER, "", 0),)


def begin(
    key: str, row: dict[str, Any], part: Part, prefixes: Prefixes, plan: Plan, ledger: Ledger
) -> Search:
    """A search where the last recorded wave left it, or a new one."""
    state = ledger.state(key, plan)
    if state is not None:
        return Search(key, row, part, prefixes, state, ledger.problems.get(key, []))
    ends = sentence_ends(prefixes) if plan.mode == "bisect" else ()
    return Search(key, row, part, prefixes, start(len(prefixes), plan, ends))


def exact_checks(work: Work, searches: list[Search], ledger: Ledger) -> Iterator[Search]:
    """Exact searches of a sample, where the mode is an approximate one."""
    if work.config.plan.mode in ("bisect", "recycle"):
        plan = replace(work.config.plan, mode="exact")
        sample = sorted(searches, key=lambda search: stable_hash("token label check", search.key))
        for one in sample[: work.config.checked]:
            yield begin(EXACT + one.key, one.row, one.part, one.prefixes, plan, ledger)


def ended(search: Search) -> Outcome:
    found = outcome(search.state)
    assert found is not None
    return found


def label_row(work: Work, search: Search) -> dict[str, Any]:
    """A searched text as a row: its boundary, the evidence, and what it cost."""
    found = ended(search)
    labels = label_tokens(search.prefixes, found, search.row["severity"], work.policy.mildest)
    evidence = [
        {
            **{name: told[name] for name in ("prefix", "token", "char_end", "violations", "draws")},
            "judge": told["judge_probability"],
        }
        for told in evidence_rows(search.prefixes, search.state)
    ]
    row = free_row(search.row, search.part, search.prefixes, labels) | cost_row(search.state)
    undecided = to_bytes(search.state) if found.kind in (CAPPED, FAILED) else None
    return row | {"evidence": evidence, "lost_calls": len(search.problems), "state": undecided}


def free_row(row: dict[str, Any], part: Part, prefixes: Prefixes, labels: TokenLabels) -> dict[str, Any]:
    """The row of a text on which nothing was spent."""
    return {
        "id": row_id(row["id"], "token labels", part.name),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        **{name: row[name] for name in ("prompt", "language", "severity")},
        "response": part.text,
        "part": part.name,
        "outcome": labels.outcome,
        "reason": labels.reason,
        "boundary": labels.boundary_token,
        "onset": labels.boundary_char,
        "tokens": prefixes.tokens,
        "labels": list(labels.labels),
        "evidence": [],
        **dict.fromkeys(COSTS, 0),
        "lost_calls": 0,
        "state": None,
    }


def failures(search: Search) -> Iterator[Failed]:
    """A search that ended for want of answers, once; calls that failed where they did not matter are no failure."""
    found = ended(search)
    if found.kind == FAILED:
        yield Failed(
            search.row["id"],
            search.row["group_id"],
            f"{found.reason}: {search.problems[-1]}",
            "\n".join(search.problems),
        )


def compared(searches: list[Search], checks: list[Search]) -> Iterator[dict[str, Any]]:
    """Each checked search beside its exact one."""
    by_key = {search.key: search for search in searches}
    for check in checks:
        one = by_key[check.key.removeprefix(EXACT)]
        mine, exact = ended(one), ended(check)
        label = row_id(one.row["id"], "token labels", one.part.name)
        yield {
            "id": row_id(label, "token label check", ""),
            "parent_id": label,
            "group_id": one.row["group_id"],
            "mode": one.state.plan.mode,
            "outcome": mine.kind,
            "boundary": token_of(one, mine),
            "exact_outcome": exact.kind,
            "exact_boundary": token_of(check, exact),
            "same": (mine.kind, mine.boundary) == (exact.kind, exact.boundary),
            "generated_tokens": one.state.spent.tokens,
            "exact_generated_tokens": check.state.spent.tokens,
        }


def token_of(search: Search, found: Outcome) -> int | None:
    return search.prefixes.boundary(found.boundary)[0] if found.boundary >= 0 else None


if __name__ == "__main__":
    from ray_jobs.job import main

    main("token_labels")
