"""Training curves of several runs in one figure: a standalone SVG, small panels side by side, no library.

Each panel shows one figure per step: a line per run, told apart by colour and by dash, smoothed by a centred mean of
`WINDOW` steps over the thin unsmoothed values. Rates stand on a scale from 0 to 1, everything else on its own range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

PANELS = (
    ("reward", "reward"),
    ("refusal_rate", "refusals (guard)"),
    ("safety_rate", "safe (guard)"),
    ("helpfulness", "helpfulness score"),
    ("tokens", "tokens per answer"),
)
COLOURS = ("#1f6fb2", "#c8501e", "#2c8a4b", "#7a4fa3")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
WINDOW = 5
WIDTH, HEIGHT, LEFT, TOP, GAP = 220, 150, 46, 44, 26
Points = list[tuple[float, float]]


def curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    title: str,
    panels: Sequence[tuple[str, str]] = PANELS,
) -> str:
    """The figure of all `runs` (histories by name); a panel that no run has values for is left out."""
    there = [(key, name) for key, name in panels if any(points(run, key) for run in runs.values())]
    width = LEFT + len(there) * (WIDTH + GAP + 20)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 34 + 18 * len(runs)}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="12" y="18" font-size="14">{escape(title)}</text>',
    ]
    for at, (key, name) in enumerate(there):
        body += panel(
            LEFT + at * (WIDTH + GAP + 20), {run: points(rows, key) for run, rows in runs.items()}, key, name
        )
    for number, run in enumerate(runs):
        y = TOP + HEIGHT + 40 + 18 * number
        body.append(line([(LEFT, y - 4), (LEFT + 36, y - 4)], number, 2))
        body.append(f'<text x="{LEFT + 44}" y="{y}">{escape(run)}</text>')
    return "\n".join([*body, "</svg>", ""])


def points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    found = [(float(row["step"]), row.get(key)) for row in rows]
    return [(step, float(value)) for step, value in found if value is not None and isfinite(value)]


def smooth(values: Points) -> Points:
    half = WINDOW // 2
    near = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [(step, sum(v for _, v in part) / len(part)) for (step, _), part in zip(values, near, strict=True)]


def panel(left: float, runs: Mapping[str, Points], key: str, name: str) -> list[str]:
    """One panel with its axes, its left edge at `left`."""
    every = [point for values in runs.values() for point in values]
    last = max(step for step, _ in every)
    low, high = (0.0, 1.0) if key.endswith("_rate") else bounds([value for _, value in every])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return left + WIDTH * point[0] / last, TOP + HEIGHT * (1 - (point[1] - low) / (high - low))

    body = [f'<text x="{left}" y="{TOP - 8}" font-weight="bold">{escape(name)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = TOP + HEIGHT * (1 - share)
        body.append(f'<path d="M{left} {y}h{WIDTH}" stroke="#ddd"/>')
        body.append(
            f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{low + share * (high - low):.3g}</text>'
        )
    body.append(f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 14}" text-anchor="end">step {last:.0f}</text>')
    for number, values in enumerate(runs.values()):
        if values:
            body.append(line([place(point) for point in values], number, 0.6, 0.35))
            body.append(line([place(point) for point in smooth(values)], number, 2))
    return body


def bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def line(at: Points, number: int, width: float, opacity: float = 1.0) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash and opacity == 1.0 else ""
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" opacity="{opacity}"{dashed}'
    return f'<polyline points="{path}" {style}/>'
