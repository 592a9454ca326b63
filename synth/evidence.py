"""How strongly one word speaks for another language than its text's: the frequencies behind mixing.py.

A score of 1 condemns a word alone, 0 clears it; between them it needs neighbours. Thresholds are differences
of Zipf frequencies (1 is a factor of ten), set on parallel translations (benchmarks/mixing.py gives the
figures).
"""

from dataclasses import dataclass

from synth.language import Language
from synth.lexicon import TERMS, Lexicon, abroad, international, lexicon, looks
from synth.scripts import SPACELESS

COPY = 0.8  # a word of the source, known to this language
COPY_RARE = 1.1  # a word of the source, unknown to it
WORD = 1.6  # an English word, without the source's word for it
THIRD = 0.4  # more for other languages: many candidates, many chances
STRANGER = 3.5  # a foreign word is common at home
COMMON = 6.0  # from here on a capitalised word is no name
ROMANISED = 5.5  # assumed of every word where a language stands in Latin letters that are not its own
LOOKS = 0.75  # how far a word must look foreign where its language has no list

SCRIPT_LANGUAGE = {
    "Han": "zh", "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko", "Thai": "th", "Greek": "el", "Hebrew": "he",
    "Bengali": "bn", "Tamil": "ta", "Telugu": "te", "Devanagari": "hi", "Armenian": "hy", "Georgian": "ka",
    "Cyrillic": "ru", "Arabic": "ar", "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Gujarati": "gu",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Word:
    """A word at start..end; key: lower case; name: capitalised where no sentence begins; capital: at all."""

    start: int
    end: int
    key: str
    script: str
    name: bool
    capital: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    score: float
    language: str = ""
    why: str = ""


CLEAR = Evidence(0.0)


@dataclass(frozen=True)
class Sides:
    """The language of a text, the scripts it may stand in there, and what words it uses."""

    target: Language
    home: frozenset[str]
    known: Lexicon
    stems: frozenset[str] = frozenset()  # long lower-case words of the source


def _native_ending(key: str, sides: Sides) -> bool:
    """Whether a word that nobody uses is one of the source's (or its stem, without an e) with another
    ending."""
    for size in range(max(5, len(key) - 4), len(key)):
        stem = key[:size]
        if (stem in sides.stems or stem + "e" in sides.stems) and not international(stem):
            stem = stem if stem in sides.stems else stem + "e"
            return lexicon("en").zipf(stem) - sides.known.zipf(stem) >= COPY
    return False


def _chinese(word: Word, target: Language) -> bool:
    """Whether characters in a Japanese text are such as only Chinese uses: Japanese encodings lack them."""
    if target.base != "ja" or word.script != "Han":
        return False
    try:
        word.key.encode("cp932")
    except UnicodeEncodeError:
        return True
    return False


def judge(plain: str, word: Word, copied: int, with_source: bool, sides: Sides) -> Evidence:
    """The evidence of a word; copied: the length of the run it shares with the source, 0 for none."""
    if word.script not in sides.home:
        return _other_script(plain, word, copied, with_source, sides)
    if _chinese(word, sides.target):
        return Evidence(1.5, "zh", "script")
    if (
        word.script in SPACELESS
        or len(word.key) < 2
        or word.key in TERMS
        or (not copied and international(word.key))
    ):
        return CLEAR
    own = sides.known.zipf(word.key)
    if (
        not copied
        and sides.stems
        and not word.capital
        and own <= sides.known.floor
        and _native_ending(word.key, sides)
    ):
        return Evidence(1.0, "", "stem")
    gain, where = _abroad(word, own, sides)
    if copied:
        english = lexicon("en").zipf(word.key)
        gain = max(gain, english - own)
        score = gain / (COPY if own > sides.known.floor else COPY_RARE)
        return Evidence(max(score, 0.4) if copied >= 4 else score, where or "en", "copy")
    if word.name and gain + own < COMMON:
        return Evidence(0.0, where, "word")
    return Evidence(gain / WORD, where, "word")


def _abroad(word: Word, own: float, sides: Sides) -> tuple[float, str]:
    """(the greatest gain in frequency that another language offers, that language)."""
    best, where = 0.0, ""
    for code, zipf in abroad(word.key):
        if code == sides.target.base or zipf < STRANGER:
            continue
        gain = zipf - own - _doubt(word, code, sides.known)
        if gain > best:
            best, where = gain, code
    if best > 0.5 and not sides.known.listed and looks(word.key, where, sides.target.base) < LOOKS:
        return 0.0, ""
    return best, where


def _doubt(word: Word, code: str, known: Lexicon) -> float:
    """What a language has to offer more: short words occur in many languages, and unlisted ones lack their
    own."""
    size = len(word.key)
    if code == "en":
        return 0.6 if size <= 2 else 0.0
    if not known.listed:
        return 9.0 if size < 5 else THIRD + 1.0
    return 9.0 if size <= 2 else THIRD + (0.6 if size == 3 else 0.0)


def _other_script(plain: str, word: Word, copied: int, with_source: bool, sides: Sides) -> Evidence:
    """A word in a script that its text's language is not written in."""
    where = SCRIPT_LANGUAGE.get(word.script, "")
    if word.script != "Latin":
        gloss = (
            sides.target.base == "ko"
            and word.script == "Han"
            and plain[word.start - 1 : word.start] in ("(", "（")
        )
        return CLEAR if gloss else Evidence(2.0, where, "script")
    if len(word.key) < 2:
        return Evidence(0.3, "", "script")
    where, most = max(abroad(word.key), key=lambda entry: entry[1], default=("", 0.0))
    if (english := lexicon("en").zipf(word.key)) >= most:
        where, most = "en", english
    if word.capital and most < COMMON:
        return Evidence(0.3, where, "script")
    if international(word.key) or (sides.known.knows(word.key) and most - sides.known.zipf(word.key) < 1.0):
        return CLEAR
    if most <= 1.0 and (copied or "-" in word.key):  # a new term or a compound that no list has
        return Evidence(0.5, "", "script")
    return Evidence(1.5, where, "copy" if copied else "script")
