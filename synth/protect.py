"""Spans of a text that a translation must hand through unchanged: code, placeholders, addresses, quoted
strings.

`protect` swaps each for a numbered mark that translators leave alone, `restore` swaps them back and says
which the translator lost. Numbers are left in place (marks for every number disturb a translation more than
they help) and are compared afterwards: `lost_numbers`.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from synth.masks import CODE

QUOTED = re.compile(
    r"\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”|„[^“”\n]{1,200}[“”]|«[^»\n]{1,200}»|「[^」\n]{1,200}」"
)
_MARK = re.compile(r"[⟦〚\[]{1,2}\s*(\d+)\s*[⟧〛\]]{1,2}")
_NUMBER = re.compile(r"\d(?:[\d.,\u066b\u066c\u00a0\u202f' ]*\d)?")


@dataclass(frozen=True)
class Protected:
    """text: with marks; pieces: what they stand for, in order."""

    text: str
    pieces: tuple[str, ...]


def mark(number: int) -> str:
    return f"⟦{number}⟧"


def protect(text: str) -> Protected:
    """Put marks in place of code, placeholders and addresses, and of quotations (unless most of the text is
    one)."""
    spans = [match.span() for match in CODE.finditer(text)]
    quotes = [match.span() for match in QUOTED.finditer(text)]
    if 2 * sum(end - start for start, end in quotes) <= len(text):
        spans += quotes
    spans += [match.span() for match in re.finditer("⟦[^⟧]*⟧", text)]
    parts: list[str] = []
    pieces: list[str] = []
    last = 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start < last:
            continue
        parts += [text[last:start], mark(len(pieces))]
        pieces.append(text[start:end])
        last = end
    return Protected("".join([*parts, text[last:]]), tuple(pieces))


def restore(translated: str, pieces: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(text with marks replaced by the pieces, the pieces that no mark stood for). Unknown marks stay as they
    are."""
    seen: set[int] = set()

    def piece(match: re.Match[str]) -> str:
        number = int(match.group(1))
        if number >= len(pieces):
            return match.group(0)
        seen.add(number)
        return pieces[number]

    text = _MARK.sub(piece, translated)
    return text, tuple(p for number, p in enumerate(pieces) if number not in seen)


def lost_pieces(source: str, target: str) -> tuple[str, ...]:
    """Code, placeholders and addresses of the source that the target lacks."""
    wanted = Counter(match.group(0) for match in CODE.finditer(source))
    return tuple(sorted(piece for piece, count in wanted.items() if target.count(piece) < count))


def numbers(text: str) -> Counter[str]:
    """The numbers of a text, in ASCII digits without separators: "1,000" and "1.000" and "١٠٠٠" are one
    number."""
    plain = "".join(str(unicodedata.digit(c)) if unicodedata.digit(c, None) is not None else c for c in text)
    found = (re.sub(r"\D", "", match.group(0)) for match in _NUMBER.finditer(plain))
    return Counter(number for number in found if number)


def lost_numbers(source: str, target: str) -> tuple[str, ...]:
    """Numbers of two and more digits in the source that the target lacks; single digits may be written as
    words."""
    return tuple(sorted(n for n in numbers(source) - numbers(target) if len(n) > 1))
