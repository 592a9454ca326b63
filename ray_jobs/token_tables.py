"""The tables that token labelling writes."""

import pyarrow as pa

from ray_jobs.store import table_schema

COSTS = (
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
# `response` is the text of `part`; `boundary` counts the guard's tokens of that text, `onset` its characters; `labels`
# has a severity per token, none without a boundary; `state` is that of an undecided search (label.rollout_state).
TOKEN_LABELS = table_schema(
    [
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string()),
        pa.field("part", pa.string()),
        pa.field("language", pa.string()),
        pa.field("severity", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("boundary", pa.int64()),
        pa.field("onset", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("evidence", EVIDENCE),
        *(pa.field(name, pa.int64()) for name in COSTS),
        pa.field("lost_calls", pa.int64()),
        pa.field("state", pa.binary()),
    ]
)
TOKEN_CHECKS = table_schema(
    [
        pa.field("mode", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("boundary", pa.int64()),
        pa.field("exact_outcome", pa.string()),
        pa.field("exact_boundary", pa.int64()),
        pa.field("same", pa.bool_()),
        pa.field("generated_tokens", pa.int64()),
        pa.field("exact_generated_tokens", pa.int64()),
    ]
)
