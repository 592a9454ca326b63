"""The script of every character, and the languages by the scripts they are written in. No dependency has this
small.

Blocks follow the Unicode standard; characters outside them (digits, punctuation, symbols, emoji) belong to no
script.
"""

import re
from bisect import bisect_right
from functools import lru_cache

_BLOCKS = (
    (0x41, 0x5A, "Latin"), (0x61, 0x7A, "Latin"), (0xAA, 0xAA, "Latin"), (0xBA, 0xBA, "Latin"),
    (0xC0, 0xD6, "Latin"), (0xD8, 0xF6, "Latin"), (0xF8, 0x2AF, "Latin"), (0x370, 0x373, "Greek"),
    (0x376, 0x37D, "Greek"), (0x37F, 0x386, "Greek"), (0x388, 0x3FF, "Greek"), (0x400, 0x52F, "Cyrillic"),
    (0x531, 0x588, "Armenian"), (0x591, 0x5F4, "Hebrew"), (0x610, 0x61A, "Arabic"), (0x620, 0x65F, "Arabic"),
    (0x66E, 0x6D3, "Arabic"), (0x6D5, 0x6EF, "Arabic"), (0x6FA, 0x6FF, "Arabic"), (0x710, 0x74F, "Syriac"),
    (0x750, 0x77F, "Arabic"), (0x780, 0x7B1, "Thaana"), (0x8A0, 0x8FF, "Arabic"),
    (0x900, 0x963, "Devanagari"), (0x971, 0x97F, "Devanagari"), (0x980, 0x9E3, "Bengali"),
    (0x9F0, 0x9FE, "Bengali"), (0xA01, 0xA65, "Gurmukhi"), (0xA70, 0xA76, "Gurmukhi"),
    (0xA81, 0xAE3, "Gujarati"), (0xB01, 0xB63, "Oriya"), (0xB82, 0xBE5, "Tamil"), (0xC00, 0xC65, "Telugu"),
    (0xC80, 0xCE5, "Kannada"), (0xD00, 0xD65, "Malayalam"), (0xD81, 0xDE5, "Sinhala"), (0xE01, 0xE3A, "Thai"),
    (0xE40, 0xE4E, "Thai"), (0xE81, 0xECD, "Lao"), (0xEDC, 0xEDF, "Lao"), (0xF40, 0xFBC, "Tibetan"),
    (0x1000, 0x103F, "Myanmar"), (0x1050, 0x108F, "Myanmar"), (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"), (0x1200, 0x135F, "Ethiopic"), (0x1780, 0x17D3, "Khmer"),
    (0x1820, 0x18AA, "Mongolian"), (0x1C90, 0x1CBF, "Georgian"), (0x1E00, 0x1EFF, "Latin"),
    (0x1F00, 0x1FFF, "Greek"), (0x2C60, 0x2C7F, "Latin"), (0x2DE0, 0x2DFF, "Cyrillic"),
    (0x3005, 0x3007, "Han"), (0x3041, 0x309F, "Hiragana"), (0x30A1, 0x30FA, "Katakana"),
    (0x30FC, 0x30FF, "Katakana"), (0x3131, 0x318E, "Hangul"), (0x31F0, 0x31FF, "Katakana"),
    (0x3400, 0x4DBF, "Han"), (0x4E00, 0x9FFF, "Han"), (0xA640, 0xA69F, "Cyrillic"), (0xA720, 0xA7FF, "Latin"),
    (0xAA60, 0xAA7F, "Myanmar"), (0xAB30, 0xAB6F, "Latin"), (0xAC00, 0xD7A3, "Hangul"),
    (0xF900, 0xFAFF, "Han"), (0xFB00, 0xFB06, "Latin"), (0xFB1D, 0xFB4F, "Hebrew"),
    (0xFB50, 0xFDFF, "Arabic"), (0xFE70, 0xFEFC, "Arabic"), (0xFF21, 0xFF3A, "Latin"),
    (0xFF41, 0xFF5A, "Latin"), (0xFF66, 0xFF9D, "Katakana"), (0x20000, 0x323AF, "Han"),
)  # fmt: skip
_FIRST = [first for first, _, _ in _BLOCKS]

SPACELESS = frozenset({"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"})


@lru_cache(maxsize=1 << 16)
def script_of(char: str) -> str:
    """The script of a character: "Latin", "Han", …; "" for digits, punctuation, symbols and anything
    unlisted."""
    point = ord(char)
    at = bisect_right(_FIRST, point) - 1
    return _BLOCKS[at][2] if at >= 0 and point <= _BLOCKS[at][1] else ""


def script_shares(text: str) -> dict[str, float]:
    """Each script's share of the letters of a text, the greatest first; empty for a text without letters."""
    counts: dict[str, int] = {}
    for char in text:
        if script := script_of(char):
            counts[script] = counts.get(script, 0) + 1
    total = sum(counts.values())
    return {script: counts[script] / total for script in sorted(counts, key=lambda s: (-counts[s], s))}


def _pattern() -> re.Pattern[str]:
    classes: dict[str, str] = {}
    for first, last, script in _BLOCKS:
        classes[script] = classes.get(script, "") + f"{chr(first)}-{chr(last)}"
    inside = "[\u0300-\u036f'’\u200c\u200d]"
    runs = (
        f"(?P<{script}>[{chars}](?:[{chars}]|{inside}+(?=[{chars}])|[\u0300-\u036f])*)"
        for script, chars in classes.items()
    )
    return re.compile("|".join(runs))


_RUNS = _pattern()


def script_runs(text: str) -> list[tuple[int, int, str]]:
    """Maximal runs (start, end, script) of letters of one script. Marks and apostrophes stay inside a run."""
    return [(match.start(), match.end(), match.lastgroup or "") for match in _RUNS.finditer(text)]
