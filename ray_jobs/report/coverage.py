"""Coverage: labelled samples by category, language, label and source, and the cells that have none.

A hole is a cell without a row in a language that has rows, for a category that the policy labels on that side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ray_jobs.report.source import Source

Key = tuple[str, str, str, str]  # category, language, label, source


@dataclass(frozen=True)
class Cell:
    """`shade` in percent: the root of the count's share of the fullest cell, so that small counts are seen."""

    count: int
    shade: int
    hole: bool
    first: bool


@dataclass(frozen=True)
class Grid:
    """One heat table: a row per category, a column per language and label."""

    title: str
    total: int
    languages: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...], int], ...]

    @property
    def holes(self) -> int:
        return sum(cell.hole for _, cells, _ in self.rows for cell in cells)

    @property
    def cells(self) -> int:
        return sum(len(cells) for _, cells, _ in self.rows)


def coverage(source: Source) -> list[dict[str, Any]]:
    """Per side of the policy: one grid over all sources, and one per source."""
    if not source.samples:
        return []
    columns = ["side", "leaf", "categories", "language", "severity", "source"]
    counts: dict[str, Counter[Key]] = {side: Counter() for side in source.policy.sides}
    for row in source.rows(source.samples, columns):
        category = source.category_of(row["leaf"], row["categories"])
        counts.setdefault(row["side"], Counter())[
            category, row["language"], row["severity"], row["source"]
        ] += 1
    return [side_coverage(source, side, counts[side]) for side in counts if counts[side]]


def side_coverage(source: Source, side: str, counts: Counter[Key]) -> dict[str, Any]:
    expected = [category.name for category in source.policy.categories if side in category.sides]
    whole = grid(source, "all sources", counts, expected)
    names = by_count((key[3], count) for key, count in counts.items())
    parts = [Counter({key: n for key, n in counts.items() if key[3] == name}) for name in names]
    by_source = [grid(source, name, part, []) for name, part in zip(names, parts, strict=True)]
    return {"side": side, "grid": whole, "by_source": by_source, "empty": empty_rows(whole)}


def grid(source: Source, title: str, counts: Counter[Key], expected: list[str]) -> Grid:
    """The heat table of some counts; only cells of `expected` categories can be holes."""
    cells: Counter[tuple[str, str, str]] = Counter()
    for (category, language, label, _), count in counts.items():
        cells[category, language, label] += count
    fullest = max(cells.values(), default=1)
    languages = by_count((language, count) for (_, language, _), count in cells.items())
    labels = source.policy.severity_names
    categories = list(dict.fromkeys([*expected, *sorted({category for category, _, _ in cells})]))
    rows = []
    for category in categories:
        line = tuple(
            cell(cells[category, language, label], fullest, category in expected, label == labels[0])
            for language in languages
            for label in labels
        )
        rows.append((category, line, sum(each.count for each in line)))
    return Grid(title, sum(cells.values()), tuple(languages), labels, tuple(rows))


def cell(count: int, fullest: int, expected: bool, first: bool) -> Cell:
    return Cell(count, round(75 * sqrt(count / fullest)), expected and not count, first)


def empty_rows(whole: Grid) -> list[str]:
    """Categories that lack a whole label over all languages, in words."""
    found = []
    for category, cells, total in whole.rows:
        lacking = [
            label
            for at, label in enumerate(whole.labels)
            if not sum(each.count for each in cells[at :: len(whole.labels)])
        ]
        if lacking:
            found.append(f"{category}: {'no row at all' if not total else 'no ' + ', no '.join(lacking)}")
    return found


def by_count(pairs: Iterable[tuple[str, int]]) -> list[str]:
    """Names by their summed counts, most frequent first, then by name."""
    sums: Counter[str] = Counter()
    for name, count in pairs:
        sums[name] += count
    return sorted(sums, key=lambda name: (-sums[name], name))
