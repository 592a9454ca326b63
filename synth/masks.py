"""What in a text belongs to no language: code, placeholders, addresses, numbers with units, acronyms.

Such spans count neither as foreign (mixing.py) nor as translatable (translate.py).
"""

import re
from functools import lru_cache

_PARTS = (
    r"```.*?```", r"`[^`\n]+`", r"\{\{.*?\}\}", r"\$?\{[^{}\s]*\}", r"%\([A-Za-z_]\w*\)[sdif]", r"%[sdif]\b",
    r"</?[A-Za-z][^<>\n]*>", r"\[[A-Z][A-Z0-9_ ]*\]", r"\\[A-Za-z]+",
    r"(?:https?|ftp)://[^\s<>\"'，。）】]+", r"www\.[^\s<>\"'，。）】]+",
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", r"(?<![\w/])[@#][A-Za-z0-9_]+",
    r"(?<![A-Za-z0-9_])(?:[A-Za-z0-9-]+\.)+(?:com|org|net|io|gov|edu|info|html?|pdf|exe|py|js|txt|jpe?g|png|csv|zip)\b",
    r"(?<![\w.])[\w-]*(?:/[\w.-]+){2,}",
    r"(?<![A-Za-z0-9_])[A-Za-z]+_\w+", r"(?<![A-Za-z0-9_])\w+\(\)", r"(?<![A-Za-z0-9_])[a-z]+[A-Z][A-Za-z]*",
)  # fmt: skip
CODE = re.compile("|".join(_PARTS), re.DOTALL)
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])[A-Za-z]{0,3}[-–]?\d[\d.,:/×x-]*(?:\s?(?:%|°[CF]?|[kKMGTmcnµμ]?(?:g|m|l|L|s|Hz|W|V|A|B|b|Pa|J|m²)|km/h"
    r"|kg|cm|mm|km|ml|mg|lbs?|oz|ft|mph|GB|MB|KB|TB|px|USD|EUR|am|pm|th|st|nd|rd))?(?![A-Za-z])|"
    r"(?<![A-Za-z0-9_])[A-Za-z]*\d[A-Za-z0-9-]*"
)
ACRONYM = re.compile(
    r"(?<![A-Za-z])(?:[A-Z]\.){2,}|(?<![A-Za-z])(?<![A-Z] )[A-Z][A-Z&/-]{0,5}[A-Z]s?(?![A-Za-z])(?! [A-Z]{2})"
)

# what a text must hold for a pattern to be worth its time: most texts hold none of it
_SIGNS = (
    (CODE, re.compile(r"[`{<\[\\@#%_/$]|[A-Za-z0-9]\.[A-Za-z]|\(\)|[a-z][A-Z]")),
    (NUMBER, re.compile(r"\d")),
    (ACRONYM, re.compile(r"[A-Z]{2}|[A-Z]\.[A-Z]")),
)


@lru_cache(maxsize=256)
def _phrases(ignore: tuple[str, ...]) -> re.Pattern[str] | None:
    words = sorted({w.strip() for w in ignore if w.strip()}, key=lambda w: (-len(w), w))
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)", re.I) if words else None


def masked(text: str, ignore: tuple[str, ...] = ()) -> list[tuple[int, int]]:
    """Spans (start, end) of a text that belong to no language, by start; `ignore` are phrases to count among
    them."""
    patterns = [pattern for pattern, sign in _SIGNS if sign.search(text)]
    if (phrases := _phrases(ignore)) is not None:
        patterns.append(phrases)
    return sorted(match.span() for pattern in patterns for match in pattern.finditer(text))


def blanked(text: str, ignore: tuple[str, ...] = ()) -> str:
    """The text with masked spans overwritten by spaces: every offset stays what it was."""
    parts, last = [], 0
    for start, end in masked(text, ignore):
        if end > last:
            parts += [text[last : max(start, last)], " " * (end - max(start, last))]
            last = end
    return "".join([*parts, text[last:]])
