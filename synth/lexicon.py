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
from functools import cache, lru_cache
from math import log10
from statistics import median

from synth.core_words import CORE, TERMS
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
    for code in CORE:
        for word in _core(code):
            if len(word) > 3 and word not in found:
                found[word] = [(code, 5.0)]
    return {word: tuple(entries) for word, entries in found.items()}


def abroad(word: str) -> tuple[tuple[str, float], ...]:
    """The languages among `FOREIGN` in which a word (lower case) is in use, with Zipf frequencies."""
    return _abroad().get(word, ())


@dataclass(frozen=True)
class Lexicon:
    """What words a language uses. `floor` is the frequency assumed of a word that no list has; `listed` is
    false where the language has no list of its own."""

    code: str
    words: tuple[dict[str, float], ...]
    floor: float
    learnt: dict[str, float] = field(default_factory=dict)
    listed: bool = True

    def zipf(self, word: str) -> float:
        """Frequency of a word in lower case; the floor if unknown."""
        word = self.spelt(word)
        return max(self.floor, self.learnt.get(word, 0.0), *(known.get(word, 0.0) for known in self.words))

    def spelt(self, word: str) -> str:
        """The word as the lists spell it: theirs of Serbian are in Latin letters."""
        return word.translate(_SERBIAN) if self.code == "sr" else word

    def knows(self, word: str) -> bool:
        word = self.spelt(word)
        return word in self.learnt or any(word in known for known in self.words)


def _core(code: str) -> dict[str, float]:
    return dict.fromkeys(CORE.get(code, "").split(), 6.0)


@cache
def lexicon(code: str) -> Lexicon:
    """The lexicon of a base language code, from its own list or its relatives'."""
    own = word_list(code, "best")
    relatives = [word_list(c, "small") for c in RELATIVES.get(code, ())]
    if not own:
        return Lexicon(code, (_core(code), *relatives), 2.0, listed=False)
    return Lexicon(code, (own, *relatives), 1.0 if len(own) > 100_000 else 2.2)


@cache
def leak(code: str) -> float:
    """How much rarer English is in a language's lists than at home: the median over the 40 commonest English words.

    The lists were counted over the web, where English leaks in: by 1.7 in Indonesian, 2.3 in Italian."""
    english = word_list("en", "small")
    known = lexicon(code)
    return median(
        english[word] - known.zipf(word) for word in sorted(english, key=lambda w: -english[w])[:40]
    )


@cache
def assumed(word: str) -> float:
    """The frequency assumed of a word in a language without a list: the eighth highest among the listed languages.

    Words of under four letters are in too many lists by chance, and get 0."""
    found = sorted((zipf for _, zipf in abroad(word)), reverse=True)
    return found[7] if len(word) > 3 and len(found) > 7 else 0.0


@cache
def international(word: str) -> bool:
    """Whether at least seven languages use a word about as much as the one that uses it most ("virus")."""
    if word in TERMS:
        return True
    entries = abroad(word)
    most = max((zipf for _, zipf in entries), default=0.0)
    return sum(zipf >= most - 0.8 for _, zipf in entries) >= 7


@lru_cache(maxsize=1 << 16)
def looks(word: str, code: str, other: str) -> float:
    """How far a word's letters speak for `code` against `other`, 0 to 1; 1.0 where lingua does not know them
    both."""
    from synth.language import detectable, pair_confidence

    return pair_confidence(word, code, other) if detectable(code) and detectable(other) else 1.0


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
    return Lexicon(code, base.words, base.floor, learnt, base.listed)
