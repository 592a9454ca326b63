"""What became of the quotas of one leaf in one language, and at what price."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from ray_jobs.head_features import embedded
from ray_jobs.store import table_schema
from ray_jobs.synthesis import Quota, Synthesis
from synth.ids import row_id
from synth.prompts import STRATEGIES

# One quota of a leaf in one language: what was wanted, asked for and accepted, the tokens of all generations, the mean
# cosine distance between accepted ones (null without an embedder or for fewer than two), and why it was not met.
YIELD = table_schema(
    [
        pa.field("leaf", pa.string()),
        pa.field("language", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("source", pa.string()),
        pa.field("wanted", pa.int64()),
        pa.field("asked", pa.int64()),
        pa.field("accepted", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("spread", pa.float64()),
        pa.field("why", pa.string()),
    ]
)


def yields(made: Synthesis) -> list[dict[str, Any]]:
    """A row per quota, with the first reason why one was not met; none where nothing was asked for."""
    quotas = made.wanted if made.filled else {}
    return [_row(made, quota, quotas[quota]) for quota in sorted(quotas, key=_order)]


def _row(made: Synthesis, quota: Quota, wanted: int) -> dict[str, Any]:
    rows, leaf, (strategy, severity) = made.accepted(quota), made.leaf.id, quota
    reasons = Counter(r["reason"] for r in made.rejected if (r["source"], r["intended"]) == quota)
    why = made.hindrance(quota) if not made.asked[quota] else ""
    if not why and len(rows) < wanted:
        why = f"budget ended; most often {reasons.most_common(1)[0][0]}" if reasons else "budget ended"
    return {
        "id": row_id(leaf, "yield", [made.language, strategy, severity]),
        "parent_id": "",
        "group_id": leaf,
        "leaf": leaf,
        "language": made.language,
        "intended": severity,
        "source": strategy,
        "wanted": wanted,
        "asked": made.asked[quota],
        "accepted": len(rows),
        "tokens": made.tokens[quota],
        "spread": _spread(made, [row["text"] for row in rows]),
        "why": why,
    }


def _spread(made: Synthesis, texts: list[str]) -> float | None:
    """Mean cosine distance between texts."""
    if len(texts) < 2 or "embedder" not in made.work.engines.roles:
        return None
    vectors = embedded(made.work, "embedder", texts)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    upper = np.triu_indices(len(texts), 1)
    return float(1 - (vectors @ vectors.T)[upper].mean())


def _order(quota: Quota) -> tuple[int, str]:
    return STRATEGIES.index(quota[0]), quota[1]
