"""The strategies of prompt synthesis side by side: what a budget of generations brought, and how varied it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from ray_jobs.report.source import Source
from synth.diversity import distinct

HARDEST = 10  # leaves shown: those of the lowest yield


@dataclass(frozen=True)
class StrategyLine:
    """One strategy. distinct: of n-grams for n = 1, 2, 3, on `texts` prompts, as many as of every other strategy;
    spread: mean cosine distance between accepted prompts of one leaf, severity and language."""

    strategy: str
    wanted: int
    asked: int
    accepted: int
    unmet: int
    tokens_each: float | None
    texts: int
    distinct: tuple[float | None, ...]
    spread: float | None
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float | None:
        return self.accepted / self.asked if self.asked else None


@dataclass(frozen=True)
class LeafLine:
    """A leaf's quotas together."""

    leaf: str
    asked: int
    accepted: int
    why: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        return self.accepted / max(1, self.asked)


def diversity(source: Source) -> dict[str, Any] | None:
    """None for a flow without a record of its quotas."""
    columns = ["leaf", "intended", "source", "wanted", "asked", "accepted", "tokens", "spread", "why"]
    quotas = source.rows("prompt_yields", columns)
    if not quotas:
        return None
    by_strategy: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in quotas:
        by_strategy[row["source"]].append(row)
    texts: dict[str, list[str]] = {name: [] for name in by_strategy}
    for row in sorted(source.rows("prompts", ["id", "text", "source"]), key=lambda row: row["id"]):
        if row["source"] in texts:
            texts[row["source"]].append(row["text"])
    most = min((len(found) for found in texts.values() if len(found) > 1), default=0)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for row in source.rows("prompts_rejected", ["source", "reason"]):
        reasons[row["source"]][row["reason"]] += 1
    lines = [_line(name, rows, texts[name][:most], reasons[name]) for name, rows in by_strategy.items()]
    return {"lines": lines, "texts": most, "leaves": _leaves(quotas), "pairs": pairs(source)}


def _line(name: str, quotas: list[dict[str, Any]], texts: list[str], reasons: Counter[str]) -> StrategyLine:
    asked, accepted, tokens = (sum(row[key] for row in quotas) for key in ("asked", "accepted", "tokens"))
    spreads = [(row["spread"], row["accepted"]) for row in quotas if row["spread"] is not None]
    weight = sum(count for _, count in spreads)
    return StrategyLine(
        strategy=name,
        wanted=sum(row["wanted"] for row in quotas),
        asked=asked,
        accepted=accepted,
        unmet=sum(row["accepted"] < row["wanted"] for row in quotas),
        tokens_each=tokens / accepted if accepted else None,
        texts=len(texts),
        distinct=tuple(distinct(texts, n) for n in (1, 2, 3)),
        spread=sum(spread * count for spread, count in spreads) / weight if weight else None,
        reasons=tuple(reasons.most_common()),
    )


def _leaves(quotas: list[dict[str, Any]]) -> list[LeafLine]:
    """The leaves of the lowest yield."""
    found = []
    for leaf in sorted({row["leaf"] for row in quotas}):
        rows = [row for row in quotas if row["leaf"] == leaf]
        asked, accepted = (sum(row[key] for row in rows) for key in ("asked", "accepted"))
        why = Counter(f"{row['source']}: {row['why']}" for row in rows if row["why"])
        found.append(LeafLine(leaf, asked, accepted, tuple(why.most_common(3))))
    return sorted(found, key=lambda line: (line.share, line.leaf))[:HARDEST]


def pairs(source: Source) -> dict[str, int] | None:
    """Twins that the writer made, checked by the labels of both halves: how many are violating on one side and mildest
    on the other, as they were meant. None where nothing is labelled."""
    if not source.samples:
        return None
    made = {row["pair_id"] for row in source.rows("prompts", ["pair_id"], "source = 'contrastive'")}
    halves = {
        row["id"]: row
        for row in source.rows("prompts", ["id", "pair_id", "intended"], "pair_id <> ''")
        if row["pair_id"] in made
    }
    told: dict[str, dict[str, str]] = defaultdict(dict)
    for row in source.rows(source.samples, ["parent_id", "severity", "side"], "side = 'prompt'"):
        if half := halves.get(row["parent_id"]):
            told[half["pair_id"]][half["intended"]] = row["severity"]
    whole = [labels for labels in told.values() if len(labels) == 2]
    mildest, worst = source.policy.mildest, source.policy.worst
    as_meant = sum(labels.get(mildest) == mildest and labels.get(worst) != mildest for labels in whole)
    return {"made": len(made), "labelled": len(whole), "as_meant": as_meant}
