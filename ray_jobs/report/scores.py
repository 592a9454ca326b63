"""The evaluation: every system per side and reading with its intervals, and F1 over the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from label.scores import violations
from ray_jobs.report import svg
from ray_jobs.report.source import Source
from ray_jobs.report.verdict import TITLES
from synth.policy import READINGS

COLUMNS = ["system", "side", "reading", "rows", "violating", "precision", "recall", "f1", "low", "high"]
STYLES = {"gen_guard": "s0", "stream_guard": "s1", "tfidf": "s2"}
SWEPT = ("gen_guard", "stream_guard", "tfidf")


def evaluation(source: Source) -> list[dict[str, Any]]:
    """Per side: a table line per system with both readings, and a chart of F1 per reading."""
    rows = source.rows("evaluation", COLUMNS)
    return [
        evaluation_side(source, side, [row for row in rows if row["side"] == side])
        for side in sides(source, rows)
    ]


def sides(source: Source, rows: list[dict[str, Any]]) -> list[str]:
    told = {row["side"] for row in rows}
    return [side for side in source.policy.sides if side in told]


def evaluation_side(source: Source, side: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    systems = list(dict.fromkeys(row["system"] for row in rows))
    by = {(row["system"], row["reading"]): row for row in rows}
    readings = [reading for reading in reversed(READINGS) if any(row["reading"] == reading for row in rows)]
    lines = [(TITLES.get(name, name), [by.get((name, reading)) for reading in readings]) for name in systems]
    charts = [
        interval_chart(side, reading, [row for row in rows if row["reading"] == reading])
        for reading in readings
    ]
    return {
        "side": side,
        "readings": readings,
        "rows": max(row["rows"] for row in rows),
        "violating": {
            row["reading"]: row["violating"] for row in sorted(rows, key=lambda row: row["violating"])
        },
        "lines": lines,
        "charts": list(zip(readings, charts, strict=True)),
        "sweep": sweep(source, side),
    }


def interval_chart(side: str, reading: str, rows: list[dict[str, Any]]) -> Any:
    named = [
        (
            TITLES.get(row["system"], row["system"]),
            row["f1"],
            row["low"],
            row["high"],
            STYLES.get(row["system"], "s3"),
        )
        for row in rows
    ]
    return svg.intervals(named, f"F1 on {side}s, {reading} reading")


def sweep(source: Source, side: str) -> Any:
    """F1, strict reading, where a row is flagged once its violating severities together reach a threshold."""
    where = f"side = '{side}'"
    rows = source.rows("predictions", ["system", "truth", "probabilities"], where)
    mass = violations(source.policy, source.policy.severity_names, "strict").astype(float)
    series = {}
    for system in SWEPT:
        here = [row for row in rows if row["system"] == system]
        if not here:
            continue
        risk = np.array([row["probabilities"] for row in here]) @ mass
        if len(np.unique(np.round(risk, 6))) <= 2:
            continue  # verdicts without degrees, which have no threshold
        truth = violations(source.policy, [row["truth"] for row in here], "strict")
        series[TITLES[system]] = threshold_curve(truth, risk)
    if not series:
        return None
    ticks = [(at / 10, f"{at / 10:g}") for at in range(0, 11, 2)]
    return svg.lines(series, ticks, [(0.5, "0.5")], ("threshold", "F1"), f"F1 over the threshold, {side}s")


def threshold_curve(truth: NDArray[np.bool_], risk: NDArray[np.float64]) -> list[tuple[float, float]]:
    """(threshold, F1) from 0 to 1 in steps of 0.02."""
    curve = []
    for threshold in np.linspace(0.0, 1.0, 51):
        said = risk >= threshold
        curve.append(
            (float(threshold), 2 * float((truth & said).sum()) / max(int(truth.sum() + said.sum()), 1))
        )
    return curve
