"""How varied a set of texts is: distinct-n (Li et al. 2016), the share of different n-grams among all of them.

distinct-n falls as a set grows, so sets are compared on equally many texts. Words, or characters where there are no
spaces.
"""

import re
from collections.abc import Sequence

from synth.scripts import SPACELESS, script_of

_WORD = re.compile(r"\w+")


def units(text: str) -> list[str]:
    """The words of a text, case folded; of scripts without spaces the characters."""
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        found += list(word) if script_of(word[0]) in SPACELESS else [word]
    return found


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams as a share of all n-grams of the texts; None where there is none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = units(text)
        grams += zip(*(words[at:] for at in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else None
