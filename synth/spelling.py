"""How foreign the spelling of a word is to a language: what is left to go by where no word list knows the word.

Algorithm. For every language with a word list, the 4-grams of letters of its words (borders included) are counted into
a hashed table of 2**18 cells. A word's score is the mean, over its 4-grams, of log2(share in the language / mean share
in all listed languages of that script): above 0 it is spelt as the language spells. Languages without a list are judged
by lingua's n-gram models against eleven common languages where it has them, by their relatives' tables (lexicon.py)
where those are listed, and not at all otherwise. `strangeness` puts the three on one scale.

Measured on human translations of software messages, on words that the language's list lacks: at the scores at which 5 %
of Italian ones count as strange (one word in 600 of the running text), 93 % of Swahili, 96 % of Javanese and 88 % of
Basque ones do.
"""

from functools import cache, lru_cache
from math import log10

import numpy as np

from synth.core_words import CORE
from synth.language import LANGUAGES, _detector, detectable
from synth.lexicon import FOREIGN, LISTED, RELATIVES, word_list

SIZE, CELLS = 4, 18
_FACTOR, _SPREAD, _WRAP = 1_000_003, 0x9E3779B97F4A7C15, (1 << 64) - 1
COMPARED = ("en", "es", "fr", "de", "it", "pt", "nl", "id", "tr", "vi", "pl")
# scores at which a spelling is not strange at all, and wholly
LIST_SCALE, RELATIVE_SCALE, LINGUA_SCALE = (0.3, -0.4), (-0.4, -1.9), (log10(0.5), -2.0)


def _cell(gram: str) -> int:
    value = 0
    for char in gram:
        value = (value * _FACTOR + ord(char)) & _WRAP
    return ((value * _SPREAD) & _WRAP) >> (64 - CELLS)


@cache
def _counts(code: str) -> np.ndarray:
    """4-grams of the language's words by cell, float64 [2**CELLS]."""
    words = [*word_list(code, "small"), *CORE.get(code, "").split()]
    text = "".join(f"^{word}$" for word in words if len(word) > 2)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = max(0, len(points) - SIZE + 1)
    total, inside = np.zeros(count, dtype=np.uint64), np.ones(count, dtype=bool)
    for step in range(SIZE):
        total = total * np.uint64(_FACTOR) + points[step : step + count]
        if step < SIZE - 1:
            inside &= points[step : step + count] != ord("$")
    cells = (total[inside] * np.uint64(_SPREAD)) >> np.uint64(64 - CELLS)
    return np.bincount(cells.astype(np.int64), minlength=1 << CELLS).astype(np.float64)


@cache
def _table(codes: tuple[str, ...], script: str) -> np.ndarray:
    """log2 of the languages' share of every 4-gram over its mean share in the listed languages of a script."""
    mine = sum(_counts(code) / max(1.0, _counts(code).sum()) for code in codes) / len(codes)
    others = [code for code in FOREIGN if script in LANGUAGES[{"sh": "hr"}.get(code, code)].scripts]
    common = sum(_counts(code) / _counts(code).sum() for code in others) / max(1, len(others))
    unseen = 0.3 / max(1.0, np.mean([_counts(code).sum() for code in codes]))
    return np.log2((mine + unseen) / (common + unseen)).astype(np.float32)


def _tables_of(code: str) -> tuple[str, ...]:
    """The listed languages whose spelling stands for a code's."""
    listed = LISTED.get(code, code)
    return (
        (listed,) if word_list(listed, "small") else tuple(c for c in RELATIVES.get(code, ()) if c != "fil")
    )


def _scaled(value: float, scale: tuple[float, float]) -> float:
    none, whole = scale
    return min(1.0, max(0.0, (none - value) / (none - whole)))


@lru_cache(maxsize=1 << 16)
def strangeness(word: str, code: str, script: str = "Latin") -> float:
    """How foreign a word (lower case) is spelt, 0 to 1, where 1 would hardly be met in the language `code`."""
    codes = _tables_of(code)
    own = bool(codes) and codes[0] == LISTED.get(code, code)
    if not own and detectable(code):
        return _scaled(_lingua(word, code), LINGUA_SCALE)
    if not codes:
        return 0.0
    table, bordered = _table(codes, script), f"^{word}$"
    grams = [bordered[i : i + SIZE] for i in range(len(bordered) - SIZE + 1)]
    score = sum(float(table[_cell(gram)]) for gram in grams) / max(1, len(grams))
    return _scaled(score, LIST_SCALE if own else RELATIVE_SCALE)


def _lingua(word: str, code: str) -> float:
    """log10 of lingua's confidence that a word is of the language, against the common ones."""
    renamed = {"fil": "tl"}.get(code, code)
    values = _detector(tuple(sorted({code, *COMPARED}))).compute_language_confidence_values(word)
    found = (v.value for v in values if v.language.iso_code_639_1.name.lower() == renamed)
    return log10(max(1e-9, next(found, 0.0)))
