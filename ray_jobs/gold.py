"""gold: the policy's human-labelled rows as a table, split by group into `fit` (voters and their combination) and
`test`, which no step but the evaluation reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_jobs.seeds import MESSAGES
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from synth.ids import stable_hash
from synth.policy import GoldRow, Policy, load_gold

GOLD = table_schema(
    [
        pa.field("side", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("history", MESSAGES),
        pa.field("response", pa.string()),
        pa.field("thinking", pa.string()),
        pa.field("severity", pa.string()),
        pa.field("categories", pa.list_(pa.string())),
        pa.field("refusal", pa.bool_()),
        pa.field("language", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("turn", pa.int64()),
        pa.field("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class GoldConfig:
    """`test_share` of the groups are held out; `limit` (0: none) keeps the first groups only, for quick recipes."""

    test_share: float = 0.35
    limit: int = 0


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    """The gold file's content, and the labels its rows are checked against."""
    path = Path(policy.source).parent / policy.gold
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return [content, policy.slice_labels()]


def step(config: GoldConfig) -> Step:
    return Step("gold", run, config, {"gold": GOLD}, reads=reads)


def run(work: Work) -> Output:
    rows = [gold_row(row, work.seed, work.config.test_share) for row in load_gold(work.policy)]
    if work.config.limit:
        groups = sorted({row["group_id"] for row in rows}, key=lambda group: stable_hash(work.seed, group))
        kept = set(groups[: work.config.limit])
        rows = [row for row in rows if row["group_id"] in kept]
    return Output({"gold": rows})


def gold_row(row: GoldRow, seed: int, test_share: float) -> dict[str, Any]:
    draw = int(stable_hash(seed, "gold split", row.group_id)[:8], 16) / 16**8
    return {
        "id": row.id,
        "parent_id": "",
        "group_id": row.group_id,
        "side": row.side,
        "prompt": row.prompt,
        "history": list(row.history),
        "response": row.response,
        "thinking": row.thinking,
        "severity": row.severity,
        "categories": list(row.categories),
        "refusal": row.refusal,
        "language": row.language,
        "reason": row.reason,
        "turn": row.turn,
        "split": "test" if draw < test_share else "fit",
    }


if __name__ == "__main__":
    from ray_jobs.job import main

    main("gold")
