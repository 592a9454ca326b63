"""Charts as inline SVG: small pure functions from numbers to markup, no library and no script.

Every chart is drawn in a box 340 wide, so that it stands 1:1 on a phone; colours are CSS classes of the page (s0, s1,
s2 for series), which follow its dark and light scheme, and series differ by dash as well as by colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from markupsafe import Markup

WIDTH = 340
Point = tuple[float, float]


def chart(title: str, height: float, body: Sequence[Markup]) -> Markup:
    """The frame: a scalable box with a spoken title."""
    start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>')
    return start.format(WIDTH, round(height), title) + Markup("").join(body) + Markup("</svg>")


def text(x: float, y: float, words: object, anchor: str = "start", css: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, words
    )


def line(a: Point, b: Point, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(*a, *b, css)


def path(points: Sequence[Point], css: str) -> Markup:
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(steps, css)


def dot(at: Point, radius: float, css: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}"/>').format(*at, radius, css)


def box(x: float, y: float, width: float, height: float, css: str) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>').format(
        x, y, max(width, 0.0), max(height, 0.0), css
    )


def cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def intervals(rows: Sequence[tuple[str, float, float, float, str]], title: str) -> Markup:
    """(name, value, low, high, class) as a dot on its interval, one line each, on a scale from 0 to 1."""
    left, right, step = 8.0, WIDTH - 8.0, 34.0
    body, bottom = [], 14 + step * len(rows)

    def x(value: float) -> float:
        return left + (right - left) * min(max(value, 0.0), 1.0)

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(line((x(tick), 4), (x(tick), bottom), "grid"))
        anchor = "start" if tick == 0 else "end" if tick == 1 else "middle"
        body.append(text(x(tick), bottom + 13, f"{tick:g}", anchor, "tick"))
    for at, (name, value, low, high, css) in enumerate(rows):
        y = 16 + step * at
        body.append(text(left, y, cut(name, 44)))
        body.append(text(right, y, f"{value:.2f} ({low:.2f}–{high:.2f})", "end", "tick"))
        body.append(line((x(low), y + 10), (x(high), y + 10), f"bar {css}"))
        body.append(dot((x(value), y + 10), 4.5, f"dot {css}"))
    return chart(title, bottom + 18, body)


def reliability(points: Sequence[Mapping[str, float]], title: str) -> Markup:
    """Accuracy over confidence, a dot per bin as large as its rows; on the diagonal it is calibrated."""
    left, top, size = 40.0, 8.0, 240.0
    most = max((point["rows"] for point in points), default=1)

    def place(x: float, y: float) -> Point:
        return left + size * x, top + size * (1 - y)

    body = axes(left, top, size, size, "confidence", "share right")
    body += [text(left + size * at / 4, top + size + 14, f"{at / 4:g}", "middle", "tick") for at in range(5)]
    body.append(line(place(0, 0), place(1, 1), "diagonal"))
    here = [place(point["confidence"], point["accuracy"]) for point in points]
    body.append(path(here, "line s0"))
    sizes = [2.5 + 4 * (point["rows"] / most) ** 0.5 for point in points]
    body += [dot(at, radius, "dot s0") for at, radius in zip(here, sizes, strict=True)]
    return chart(title, top + size + 34, body)


def axes(left: float, top: float, width: float, height: float, x_name: str, y_name: str) -> list[Markup]:
    """A frame with ticks from 0 to 1 on the left, and both names."""
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + height * (1 - tick)
        body.append(line((left, y), (left + width, y), "grid"))
        body.append(text(left - 5, y + 4, f"{tick:g}", "end", "tick"))
    body.append(text(left + width / 2, top + height + 29, x_name, "middle", "tick"))
    body.append(text(left + 4, top + 11, y_name, "start", "tick"))
    return body


def lines(
    series: Mapping[str, Sequence[Point]],
    ticks: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]],
    names: tuple[str, str],
    title: str,
) -> Markup:
    """Curves over one x, y from 0 to 1, with their names below; `marks` are upright lines with a word."""
    left, top, width, height = 32.0, 20.0, WIDTH - 40.0, 190.0
    every = [x for points in series.values() for x, _ in points] or [0.0, 1.0]
    low, high = min(every), max(every)

    def place(x: float, y: float) -> Point:
        share = (x - low) / (high - low) if high > low else 0.5
        return left + width * share, top + height * (1 - min(max(y, 0.0), 1.0))

    body = axes(left, top, width, height, *names)
    for x, words in ticks:
        body.append(text(place(x, 0)[0], top + height + 14, words, "middle", "tick"))
    for number, (x, words) in enumerate(marks):
        at = place(x, 0)[0]
        anchor = "end" if at > left + width * 0.8 else "start"
        body.append(line((at, top), (at, top + height), "mark"))
        body.append(
            text(at + (-3 if anchor == "end" else 3), top - 8 + 11 * (number % 2), words, anchor, "tick")
        )
    for number, (name, points) in enumerate(series.items()):
        here = [place(x, y) for x, y in points if isfinite(y)]
        body.append(path(here, f"line s{number % 4}"))
        y = top + height + 46 + 16 * number
        body.append(line((left, y - 4), (left + 26, y - 4), f"line s{number % 4}"))
        body.append(text(left + 33, y, cut(name, 40)))
    return chart(title, top + height + 40 + 16 * len(series), body)


def histogram(counts: Sequence[tuple[str, int]], x_name: str, title: str) -> Markup:
    """Upright bars with their counts on top."""
    top, height, left = 16.0, 130.0, 6.0
    most, each = max((count for _, count in counts), default=0) or 1, (WIDTH - 12.0) / max(len(counts), 1)
    body = []
    for at, (name, count) in enumerate(counts):
        x, tall = left + each * at, height * count / most
        body.append(box(x + 1.5, top + height - tall, each - 3, tall, "fill s0"))
        body.append(text(x + each / 2, top + height + 13, name, "middle", "tick"))
        if count:
            body.append(text(x + each / 2, top + height - tall - 4, count, "middle", "tick"))
    body.append(line((left, top + height), (WIDTH - left, top + height), "axis"))
    body.append(text(WIDTH / 2, top + height + 29, x_name, "middle", "tick"))
    return chart(title, top + height + 36, body)


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> Markup:
    """(name, value, words) as level bars, the largest value the full width."""
    most, step = max((value for _, value, _ in rows), default=0.0) or 1.0, 34.0
    body = []
    for at, (name, value, words) in enumerate(rows):
        y = 14 + step * at
        body.append(text(4, y, cut(name, 40)))
        body.append(text(WIDTH - 4, y, words, "end", "tick"))
        body.append(box(4, y + 5, (WIDTH - 8) * value / most, 9, f"fill s{min(at, 2)}"))
    return chart(title, 4 + step * len(rows), body)
