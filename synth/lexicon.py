"""How common a word is in a language, on the Zipf scale (log10 of occurrences per 10**9 words; "the" is 7.7).

The lists are wordfreq's (Speer 2022; 42 languages, counted over subtitles, news, books, the web and social
media). They hold loan words at the frequency at which the language uses them, and a foreign word that leaks
in at a far lower one than at home: the difference of the two is what tells a copied word from a borrowed one.

Where a language has no list its relatives stand in (`RELATIVES`), and `learn` counts the words of a whole
column of texts, in which stray foreign words are rare and the language's own are not.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from math import log10

from synth.scripts import SPACELESS, script_runs

LISTED = {"sr": "sh", "hr": "sh", "bs": "sh"}
RELATIVES = {
    "jv": ("id", "ms"), "su": ("id", "ms"), "ceb": ("fil",), "gl": ("pt", "es"), "ast": ("es",),
    "oc": ("ca", "fr"), "af": ("nl",), "lb": ("de",), "fy": ("nl",), "nn": ("nb",), "fo": ("is",),
    "be": ("ru", "uk"), "la": ("it",), "mr": ("hi",), "ne": ("hi",), "kk": ("ru",), "ky": ("ru",),
    "az": ("tr",), "tk": ("tr",), "ps": ("fa",), "eo": ("es", "it"), "ht": ("fr",), "id": ("ms",),
    "ms": ("id",), "ur": ("fa",), "sa": ("hi",), "ia": ("it", "es"),
}  # fmt: skip
FOREIGN = (
    "en", "es", "fr", "de", "it", "pt", "nl", "id", "tr", "vi", "pl", "ro", "sv", "ca", "cs", "da", "fi",
    "hu", "nb", "fil", "sh", "ru", "uk", "bg", "mk", "ar", "fa", "ur", "hi",
)  # fmt: skip

_SERBIAN = str.maketrans(
    dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš", strict=True))
    | {"љ": "lj", "њ": "nj", "џ": "dž"}
)


@cache
def word_list(code: str, size: str) -> dict[str, float]:
    """Zipf frequencies of wordfreq's list ("small": from 3.0 up, "best": from 1.0 up where there is such a
    list)."""
    import wordfreq

    code = LISTED.get(code, code)
    if code not in wordfreq.available_languages(size):
        return {}
    return {word: log10(share) + 9 for word, share in wordfreq.get_frequency_dict(code, size).items()}


@cache
def _abroad() -> dict[str, tuple[tuple[str, float], ...]]:
    """Every word of the candidates' short lists: the languages that have it, with frequencies."""
    found: dict[str, list[tuple[str, float]]] = {}
    for code in FOREIGN:
        for word, zipf in word_list(code, "small").items():
            found.setdefault(word, []).append((code, zipf))
    return {word: tuple(entries) for word, entries in found.items()}


def abroad(word: str) -> tuple[tuple[str, float], ...]:
    """The languages among `FOREIGN` in which a word (lower case) is in use, with Zipf frequencies."""
    return _abroad().get(word, ())


@dataclass(frozen=True)
class Lexicon:
    """What words a language uses. `floor` is the frequency assumed of a word that no list has."""

    code: str
    words: tuple[dict[str, float], ...]
    floor: float
    learnt: dict[str, float] = field(default_factory=dict)

    def zipf(self, word: str) -> float:
        """Frequency of a word in lower case; the floor if unknown."""
        word = self._listed(word)
        return max(self.floor, self.learnt.get(word, 0.0), *(known.get(word, 0.0) for known in self.words))

    def _listed(self, word: str) -> str:
        """The word as the lists spell it: theirs of Serbian are in Latin letters."""
        return word.translate(_SERBIAN) if self.code == "sr" else word

    def knows(self, word: str) -> bool:
        word = self._listed(word)
        return word in self.learnt or any(word in known for known in self.words)


@cache
def lexicon(code: str) -> Lexicon:
    """The lexicon of a base language code, from its own list or its relatives'."""
    own = word_list(code, "best")
    if not own:
        return Lexicon(code, tuple(word_list(c, "best") for c in RELATIVES.get(code, ())) or ({},), 2.0)
    deep = len(own) > 100_000
    return Lexicon(
        code, (own, *(word_list(c, "small") for c in RELATIVES.get(code, ()))), 1.0 if deep else 2.2
    )


def learn(code: str, texts: Iterable[str], least: int = 3) -> Lexicon:
    """The lexicon of a code, extended by the words of many texts in it (each text counts a word once)."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        found = {
            text[a:b].casefold()
            for a, b, script in script_runs(text)
            if script not in SPACELESS and text[a].islower()
        }
        counts.update(found)
        total += len(found)
    base = lexicon(code)
    learnt = {word: log10(n / total) + 9 for word, n in counts.items() if n >= least}
    return Lexicon(code, base.words, base.floor, learnt)
