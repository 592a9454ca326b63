"""How the labels came about: vote calibration, the loose and strict readings, distillation, token labels."""

from __future__ import annotations

import json
from collections import Counter
from math import log2
from typing import Any

from label.audit import summary
from label.vote import Combiner
from ray_jobs.report import svg
from ray_jobs.report.source import Source, quoted
from ray_jobs.report.verdict import signed
from ray_jobs.vote_leaves import LeafVotes, by_leaf

CHANGE = ["row", "action", "old", "new", "probability_old", "probability_new"]
COSTS = [
    "rollouts",
    "generated_tokens",
    "guard_calls",
    "judge_calls",
    "paper_rollouts",
    "paper_generated_tokens",
    "saved_by_curtailment",
    "saved_by_judge_first",
    "saved_by_left_to_right",
]


def votes(source: Source) -> list[dict[str, Any]]:
    """Per side: where the labels come from, and the audit on the gold set (label.audit)."""
    return [vote_side(source, row) for row in source.rows("combiner", ["side", "combiner", "audit"])]


def vote_side(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    combiner = Combiner.from_dict(json.loads(row["combiner"]))
    audit = json.loads(row["audit"] or "{}") or {}
    told = {"side": row["side"], "summary": summary(combiner), "labels": combiner.severities, "audit": audit}
    if not audit:
        return told
    best = audit["best_voter_name"]
    compared = [
        ("Combination of all voters", audit["combination"], "s0"),
        (f"Best single voter ({best})", audit["best_voter"], "s1"),
        ("Majority of the voters", audit["majority"], "s2"),
    ]
    rows = [(name, each["f1"], *each["interval"], css) for name, each, css in compared]
    return told | {
        "f1": svg.intervals(rows, f"F1 on gold {row['side']}s"),
        "reliability": svg.reliability(audit["reliability"], f"Reliability of the labels of {row['side']}s"),
        "words": combination_words(audit),
    }


def leaves(source: Source) -> list[tuple[LeafVotes, str]]:
    """Every leaf's votes, worst first, and the name of its category."""
    if "votes" not in source.versions:
        return []
    found = by_leaf(source.store, source.policy.severity_names, source.versions["votes"])
    return [(one, source.category_of(one.leaf)) for one in found]


def combination_words(audit: dict[str, Any]) -> list[str]:
    """Whether combining was worth it, by the intervals of the differences."""
    told = []
    for name, key in (("the best single voter", "best_voter"), ("the majority", "majority")):
        low, high = audit[key]["combination_minus_this"]
        interval = f"the 95 % interval of the difference is {signed(low)} to {signed(high)}"
        if audit["combination"]["f1"] <= audit[key]["f1"]:
            told.append(f"The combination does NOT beat {name}: {interval}.")
        elif low > 0:
            told.append(f"The combination beats {name}: {interval}.")
        else:
            told.append(f"The combination is ahead of {name}, but these rows do not settle it: {interval}.")
    return told


def controversial(source: Source) -> list[dict[str, Any]]:
    """Per side: the curve that the ratios were chosen from, and what cross-annotation changed."""
    if "controversial" not in source.versions:
        return []
    ratios = {
        row["side"]: json.loads(row["ratios"])
        for row in source.rows("controversial_ratios", ["side", "ratios"])
    }
    columns = ["side", "fold", "loose", "strict", "voted", "severity"]
    rows = source.rows("controversial", columns)
    return [
        controversial_side(source, side, [row for row in rows if row["side"] == side], ratios.get(side))
        for side in source.policy.sides
    ]


def controversial_side(
    source: Source, side: str, rows: list[dict[str, Any]], ratios: dict[str, Any] | None
) -> dict[str, Any]:
    judged = [row for row in rows if row["loose"] is not None]
    told: dict[str, Any] = {
        "side": side,
        "rows": len(rows),
        "judged": len(judged),
        "crossed": sum(row["loose"] >= 0.5 > row["strict"] for row in judged),
        "moves": moves(source, Counter((row["voted"], row["severity"]) for row in rows)),
        "labels": source.policy.severity_names,
        "ratios": ratios,
    }
    if ratios and ratios["points"]:
        told["curve"] = ratio_curve(ratios, side)
    return told


def ratio_curve(ratios: dict[str, Any], side: str) -> Any:
    """F1 of either class and the share flagged, over the ratio of safe to violating rows in training."""
    points = sorted(ratios["points"], key=lambda point: point["ratio"])
    named = (("f1_violating", "F1, violating"), ("f1_safe", "F1, safe"), ("flagged", "share flagged"))
    series = {name: [(log2(p["ratio"]), p[key]) for p in points] for key, name in named}
    ticks = [(log2(p["ratio"]), ratio_words(p["ratio"])) for p in points[:: 1 if len(points) < 6 else 2]]
    marks = [(log2(ratios["strict"]), "strict"), (log2(ratios["loose"]), "loose")]
    axes = ("safe rows per violating row in training", "")
    return svg.lines(series, ticks, marks, axes, f"Loose and strict ratios, {side}s")


def ratio_words(ratio: float) -> str:
    return f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}"


def moves(source: Source, counts: Counter[tuple[str, str]]) -> list[tuple[str, list[int]]]:
    """Old label by new label."""
    names = source.policy.severity_names
    return [(old, [counts[old, new] for new in names]) for old in names]


def distilled(source: Source) -> dict[str, Any] | None:
    """What the teacher changed: counts by action, old label by new label, and some of the rows."""
    if "distilled" not in source.versions:
        return None
    changes = source.rows("label_changes", CHANGE)
    actions = Counter(row["action"] for row in changes)
    relabelled = Counter((row["old"], row["new"]) for row in changes if row["action"] == "relabel")
    origins = Counter(row["origin"] for row in source.rows("distilled", ["origin"]))
    return {
        "rows": source.count("distilled"),
        "actions": sorted(actions.items()),
        "moves": moves(source, relabelled) if relabelled else [],
        "labels": source.policy.severity_names,
        "origins": sorted(origins.items(), key=lambda item: (-item[1], item[0])),
        "shown": with_texts(source, sorted(changes, key=surprise)[:8]),
    }


def surprise(row: dict[str, Any]) -> tuple[float, str]:
    return row["probability_old"] - row["probability_new"], row["row"]


def with_texts(source: Source, changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Changed rows with what was labelled; dropped ones are in the step's input only."""
    name = next((name for name in ("controversial", "votes") if name in source.versions), "")
    if not changes or not name:
        return []
    wanted = ", ".join(quoted(row["row"]) for row in changes)
    found = source.rows(name, ["id", "side", "prompt", "response"], f"id in ({wanted})")
    texts = {row["id"]: row["response"] or row["prompt"] for row in found}
    return [row | {"text": texts.get(row["row"], "")} for row in changes]


def token_labels(source: Source) -> dict[str, Any] | None:
    """Where responses turn, and what finding it cost beside the paper's way."""
    if "token_labels" not in source.versions:
        return None
    rows = source.rows("token_labels", ["response", "onset", "boundary", "outcome", *COSTS])
    shares = [
        row["onset"] / len(row["response"]) for row in rows if row["onset"] is not None and row["response"]
    ]
    cost = {name: sum(row[name] or 0 for row in rows) for name in COSTS}
    paper = cost["paper_rollouts"]
    return {
        "rows": len(rows),
        "outcomes": sorted(
            Counter(row["outcome"] for row in rows).items(), key=lambda item: (-item[1], item[0])
        ),
        "share_chart": tenths(shares) if shares else None,
        "token_chart": token_bins([row["boundary"] for row in rows if row["boundary"] is not None]),
        "cost": cost,
        "saved": 1 - cost["rollouts"] / paper if paper else None,
        "cost_chart": cost_chart(cost) if paper else None,
    }


def cost_chart(cost: dict[str, int]) -> Any:
    """The paper's rollouts, and where each of them went."""
    named = (
        ("paper: every prefix, all continuations", "paper_rollouts"),
        ("made here", "rollouts"),
        ("saved: enough draws to decide", "saved_by_curtailment"),
        ("saved: the judge said no first", "saved_by_judge_first"),
        ("saved: after the boundary", "saved_by_left_to_right"),
    )
    rows = [(words, float(cost[name]), f"{cost[name]:,}") for words, name in named]
    return svg.bars(rows, "Rollouts")


def tenths(shares: list[float]) -> Any:
    """Onsets by where in the response they stand."""
    counts = Counter(min(int(share * 10), 9) for share in shares)
    named = [(f"{tenth * 10}%", counts[tenth]) for tenth in range(10)]
    return svg.histogram(
        named, "where in the response it turns (share of its characters)", "Onset in the response"
    )


def token_bins(boundaries: list[int]) -> Any:
    """Onsets by token index, in bins that double."""
    if not boundaries:
        return None
    counts = Counter(0 if at < 1 else at.bit_length() for at in boundaries)
    named = [(bin_name(number), counts[number]) for number in range(max(counts) + 1)]
    return svg.histogram(named, "token at which it turns", "Onset token")


def bin_name(number: int) -> str:
    low, high = 2 ** (number - 1) if number else 0, 2**number - 1
    return str(low) if low >= high else f"{low}–{high}"
