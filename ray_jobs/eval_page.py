"""What `guardmill evaluate` found, as a paper prints it (a line per guard, a column per benchmark, F1 strict / loose),
and as one offline page with charts. Texts of rows are not in it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup, escape

from ray_jobs.report import svg

Record = dict[str, Any]
READINGS = ("strict", "loose")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def summary(result: Record) -> list[list[str]]:
    """Head and lines: per guard, F1 strict / loose on every file and side, and their means over all of them."""
    columns = [
        (number, side)
        for number, file in enumerate(result["files"])
        for side in dict.fromkeys(one["side"] for one in file["scores"])
    ]
    head = ["F1 strict / loose", *(f"{name(result, number)} {side}" for number, side in columns), "mean"]
    lines = []
    for system in result["systems"]:
        cells = [f1(result["files"][number], system["system"], side) for number, side in columns]
        known = [cell for cell in cells if cell]
        average = tuple(mean(cell[i] for cell in known) for i in range(2)) if known else None
        lines.append([system["system"], *(shown(cell) for cell in (*cells, average))])
    return [head, *lines]


def name(result: Record, number: int) -> str:
    """A file's own name, with its format where two files share it."""
    names = [Path(file["file"]).stem for file in result["files"]]
    file = result["files"][number]
    return names[number] if names.count(names[number]) == 1 else f"{file['format']}:{names[number]}"


def f1(file: Record, system: str, side: str) -> tuple[float, float] | None:
    found = {
        one["reading"]: one["f1"] for one in file["scores"] if (one["system"], one["side"]) == (system, side)
    }
    return (found["strict"], found["loose"]) if found else None


def shown(pair: tuple[float, ...] | None) -> str:
    return " / ".join(f"{value:.3f}" for value in pair) if pair else "-"


def page(result: Record) -> str:
    """The whole page."""
    style = files("ray_jobs.report").joinpath("style.css").read_text(encoding="utf-8")
    head = Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{}">'
        '<link rel="icon" href="data:,"><title>Evaluation – guardmill</title><style>{}</style></head><body><main>'
    ).format(POLICY, Markup(style))
    body = Markup("").join([Markup("<h1>Evaluation</h1>"), table(summary(result)), *sections(result)])
    return str(head + body + Markup("</main></body></html>\n"))


def table(lines: list[list[str]]) -> Markup:
    def row(cells: list[str], tag: str) -> Markup:
        return Markup("<tr>{}</tr>").format(
            Markup("").join(Markup(f"<{tag}>{{}}</{tag}>").format(cell) for cell in cells)
        )

    body = Markup("").join(row(line, "td") for line in lines[1:])
    return Markup('<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(
        row(lines[0], "th"), body
    )


def sections(result: Record) -> Iterator[Markup]:
    """Per file, what was scored and its charts."""
    for number, file in enumerate(result["files"]):
        left = "".join(f"; left out: {rows} ({reason})" for reason, rows in file["left_out"].items())
        about = f"{file['scored']} of {file['texts']} texts, read as {file['format']}{left}"
        yield Markup("<section><h2>{}</h2><p>{}</p>").format(name(result, number), about)
        for side in dict.fromkeys(one["side"] for one in file["scores"]):
            for reading in READINGS:
                yield chart(result, file, side, reading)
        for one in file["onsets"]:
            words = f"{one['system']}, {one['reading']}: tokens from the marked span to the first flagged one"
            yield figure(words, svg.histogram(list(one["bins"].items()), "tokens", words))
        yield Markup("</section>")


def chart(result: Record, file: Record, side: str, reading: str) -> Markup:
    order = {system["system"]: f"s{min(at, 2)}" for at, system in enumerate(result["systems"])}
    rows = [
        (one["system"], one["f1"], one["low"], one["high"], order[one["system"]])
        for one in file["scores"]
        if (one["side"], one["reading"]) == (side, reading)
    ]
    words = f"F1 on {side}s, {reading}, with 95 % intervals"
    return figure(words, svg.intervals(rows, words))


def figure(words: str, drawn: Markup) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(drawn, escape(words))
