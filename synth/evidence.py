"""How strongly one word speaks for another language than its text's: the frequencies behind mixing.py.

A score of 1 condemns a word alone, 0 clears it; between them it needs neighbours. Thresholds are differences
of Zipf frequencies (1 is a factor of ten), set on parallel translations (benchmarks/mixing.py gives the
figures).
"""

from dataclasses import dataclass

from synth.core_words import TERMS
from synth.language import Language
from synth.lexicon import Lexicon, abroad, assumed, international, leak, lexicon, looks
from synth.scripts import SPACELESS
from synth.spelling import strangeness

COPY = 0.8  # a word of the source, known to this language
COPY_UNLISTED = 0.5  # a word of the source, known to this language's relatives, whose lists hold more English
COPY_RARE = 1.1  # a word of the source, unknown to it
LEAK = (
    0.6  # a word without the source's word for it: this share of what English is rarer by here, within WORD
)
WORD = (0.9, 1.6)
THIRD = 0.6  # more for other languages: many candidates, many chances
ENDING = (
    4,
    8,
)  # letters of a native ending on a foreign stem; the longer ones if the whole is spelt strangely
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
    for size in range(max(5, len(key) - ENDING[1]), len(key)):
        stem = key[:size]
        if len(key) - size > ENDING[0] and _strange(key, sides) < 0.25:
            continue
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
    if copied and not sides.known.listed:
        own = max(own, assumed(word.key))
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
        score = gain / (
            COPY_RARE if own <= sides.known.floor else COPY if sides.known.listed else COPY_UNLISTED
        )
        return Evidence(max(score, 0.4) if copied >= 4 else score, where or "en", "copy")
    if word.name and gain + own < COMMON:
        return Evidence(0.0, where, "word")
    cautious = word.capital or (with_source and where == "en") or not (sides.known.listed or where == "en")
    least = WORD[1] if cautious else bar(sides.known)
    return max(Evidence(gain / least, where, "word"), _spelling(word, own, sides), key=lambda one: one.score)


def _spelling(word: Word, own: float, sides: Sides) -> Evidence:
    """The evidence of a word that its language's lists lack, by how it is spelt; it weighs double if another language
    has the word."""
    if word.capital or len(word.key) < 4 or own > sides.known.floor or not word.key.isalpha():
        return CLEAR
    if sides.known.floor == ROMANISED or word.script not in ("Latin", "Cyrillic"):
        return (
            CLEAR  # marks for vowels come and go in Arabic and its kin, and the others have one list a script
        )
    strange = _strange(word.key, sides, word.script)
    if strange <= 0.25:
        return CLEAR
    elsewhere = [entry for entry in abroad(word.key) if entry[0] != sides.target.base]
    where, most = max(elsewhere, key=lambda entry: entry[1], default=("", 0.0))
    return Evidence(
        strange * (1.0 if most < STRANGER else 2.0 if sides.known.listed else 1.5), where, "spelling"
    )


def _strange(key: str, sides: Sides, script: str = "Latin") -> float:
    """`strangeness` in the script of the lists: theirs of Serbian are in Latin letters."""
    written = "Latin" if sides.known.code == "sr" else script
    return strangeness(sides.known.spelt(key), sides.target.base, written)


def bar(known: Lexicon) -> float:
    """How much more common another language's word must be there than here to be foreign without a source."""
    least, most = WORD
    return min(most, max(least, LEAK * leak(known.code))) if known.words[0] else most


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
    if word.key in TERMS or (sides.known.knows(word.key) and most - sides.known.zipf(word.key) < 1.0):
        return CLEAR
    if most <= 1.0 and (copied or "-" in word.key):  # a new term or a compound that no list has
        return Evidence(0.5, "", "script")
    return Evidence(1.5, where, "copy" if copied else "script")
