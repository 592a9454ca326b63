"""The page itself: templates, filters, and what makes hostile text harmless in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import isfinite
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ray_jobs.report.verdict import signed

# C0 controls but tab and line ends, DEL and C1: shown as their pictures or as U+FFFD, never passed on.
CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)}
CONTROLS |= dict.fromkeys(range(127, 160), 0xFFFD)
IN_JSON = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render_page(sections: Mapping[str, Any]) -> str:
    """One HTML file. The script's own hash is the only one that its security policy lets run."""
    script = files(__package__).joinpath("lookup.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            sections,
            style=Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=digest,
        )
    )


def environment() -> Environment:
    """Autoescaping whatever the template's name; an unknown name is an error."""
    found = Environment(
        loader=PackageLoader("ray_jobs.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        n=number,
        f2=decimals,
        pct=percent,
        span=span,
        duration=duration,
        shown=shown,
        embedded=embedded,
        beside=beside,
        signed=signed,
    )
    return found


def embedded(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element or a line."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(IN_JSON))


def shown(text: str | None, most: int = 600) -> str:
    """Text of a row for people: cut to `most` characters, control characters visible. Escaping comes after."""
    words = (text or "").translate(CONTROLS)
    return words if len(words) <= most else f"{words[:most]}…"


def beside(names: Sequence[str], rows: Sequence[Any]) -> list[tuple[str, Any]]:
    """Each row with its name."""
    return list(zip(names, rows, strict=True))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def decimals(value: float | None) -> str:
    return "–" if value is None or not isfinite(value) else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "–" if value is None or not isfinite(value) else f"{100 * value:.0f} %"


def span(bounds: tuple[float, float] | list[float] | None) -> str:
    return "–" if bounds is None else f"{decimals(bounds[0])}–{decimals(bounds[1])}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
