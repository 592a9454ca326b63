"""Which of a writer's answers to keep: a generation that is not kept has a reason; the caller counts them."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from synth.language import detectable, identify, language, script_shares
from synth.prompts import CONTRASTIVE, KEYWORD, STYLE, Ask
from synth.responses import opens_with_refusal

# Languages that a Latin text is told apart from; scripts tell the others apart
NEIGHBOURS = ("en", "es", "fr", "de", "pt", "it")
OWN_SCRIPT = 0.3  # of the letters: names and terms may stand in another
SURE = 0.95  # of another language: short questions are often mistaken

_LINE_MARK = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.)](?!\d))\s*")
_META = re.compile(
    r"\b(as an ai|language model|i (?:can't|cannot|can’t) (?:help|assist)|i'm sorry|here (?:is|are)|sure[,!]|"
    r"example \d|(?:new|another) (?:prompt|question|text))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Filters:
    """Bounds a generation must keep: words (characters for scripts without spaces count double), Jaccard of word
    bigrams to anything already there, edit similarity of twins, share of a request's words that its wrapped form keeps,
    share of a text's bigrams that stand in the instruction."""

    min_words: int = 4
    max_words: int = 40
    near_duplicate: float = 0.6
    twin_band: tuple[float, float] = (0.45, 0.97)
    kept_words: float = 0.5
    instruction_echo: float = 0.8


def first_line(raw: str) -> str:
    """The text of a generation: its first non-empty line without list marks and surrounding quotes."""
    for line in raw.splitlines():
        text = _LINE_MARK.sub("", line).strip()
        if text:
            return text.strip("\"“”'`*「」").strip()
    return ""


def words(text: str) -> int:
    """Length in words; a character of a script without spaces counts as half a word."""
    dense = sum("\u3040" <= char <= "\u9fff" or "\u0e00" <= char <= "\u0e7f" for char in text)
    return len(re.sub(r"[\u3040-\u9fff\u0e00-\u0e7f]", " ", text).split()) + dense // 2


def bigrams(text: str) -> frozenset[str]:
    """Word bigrams, case folded (character bigrams where there are no spaces)."""
    folded = text.casefold()
    tokens = re.findall(r"\w+", folded)
    if len(tokens) < 3:
        tokens = [char for char in folded if not char.isspace()]
    return frozenset(f"{a} {b}" for a, b in pairwise(tokens)) or frozenset(tokens)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity of two sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


class Taken:
    """The bigrams of the texts accepted so far, found by the bigrams they share.

    Two sets of Jaccard similarity t share one of the first n - ceil(t n) + 1 members of either, in any fixed order (the
    prefix filter of Bayardo et al. 2007). Longest first, since common words are short. So a text is compared with a few
    others, not with all.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        self.threshold = threshold
        self.sets: list[frozenset[str]] = []
        self.places: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(bigrams(text))

    def add(self, grams: frozenset[str]) -> None:
        for gram in self._first(grams):
            self.places[gram].append(len(self.sets))
        self.sets.append(grams)

    def near(self, grams: frozenset[str]) -> bool:
        """Whether one of the texts is at least as similar as the threshold."""
        met = {at for gram in self._first(grams) for at in self.places.get(gram, ())}
        return any(similarity(grams, self.sets[at]) >= self.threshold for at in met)

    def _first(self, grams: frozenset[str]) -> list[str]:
        least = math.ceil(self.threshold * len(grams) - 1e-9)
        ordered = sorted(grams, key=lambda gram: (-len(gram), gram))
        return ordered[: len(grams) - least + 1]


def rejection(
    text: str,
    ask: Ask,
    finish_reason: str,
    taken: Taken,
    filters: Filters,
    lang: str = "",
    instruction: str = "",
) -> str | None:
    """Why a generation is not kept, or None. Checked in order of price. `lang`: the language asked for ("": any);
    `instruction`: what the writer was shown."""
    if reason := _form_rejection(text, finish_reason, filters):
        return reason
    if ask.strategy == KEYWORD and ask.keyword.casefold() not in text.casefold():
        return "keyword missing"
    if ask.strategy == CONTRASTIVE:
        return twin_rejection(ask.text, text, filters) or wrong_language(text, lang)
    if ask.strategy == STYLE and (reason := style_rejection(ask.text, text, filters)):
        return reason
    grams = bigrams(text)
    if any(similarity(grams, bigrams(shot)) >= filters.near_duplicate for shot in ask.shots):
        return "echo of the context"
    if ask.strategy != STYLE and len(grams & bigrams(instruction)) >= filters.instruction_echo * len(grams):
        return "echo of the instruction"
    if taken.near(grams):
        return "near-duplicate"
    return wrong_language(text, lang)


def _form_rejection(text: str, finish_reason: str, filters: Filters) -> str | None:
    """What is wrong with a text whatever was asked for."""
    if not text:
        return "empty"
    if finish_reason == "length" and text[-1:].isalnum():
        return "cut off"
    length = words(text)
    if length < filters.min_words:
        return "too short"
    if length > filters.max_words:
        return "too long"
    if opens_with_refusal(text):
        return "refusal"
    return "talks about the task" if _META.search(text) else None


def wrong_language(text: str, lang: str) -> str | None:
    """Whether a text is not in the language asked for: by its script, else by lingua where that is sure."""
    shares = script_shares(text)
    if not lang or not shares:
        return None
    here = language(lang)
    if sum(shares.get(script, 0.0) for script in here.scripts) < OWN_SCRIPT:
        return "wrong language"
    if "Latin" not in here.scripts or not detectable(lang):
        return None
    found, confidence = identify(text, (here.base, *NEIGHBOURS))
    return "wrong language" if found != here.base and confidence >= SURE else None


def style_rejection(request: str, wrapped: str, filters: Filters) -> str | None:
    """Why `wrapped` is no wrapped form of `request`, or None: it keeps enough of its words and adds some."""
    asked, said = (set(re.findall(r"\w+", one.casefold())) for one in (request, wrapped))
    if len(asked & said) < filters.kept_words * len(asked):
        return "request lost"
    return (
        "not wrapped" if edit_similarity(request, wrapped) > filters.twin_band[1] or asked >= said else None
    )


def twin_rejection(violating: str, benign: str, filters: Filters) -> str | None:
    """Why `benign` is no twin of `violating`, or None: their edit similarity must lie in the band."""
    ratio = edit_similarity(violating, benign)
    if ratio < filters.twin_band[0]:
        return "twin too far"
    return "twin too near" if ratio > filters.twin_band[1] else None


def edit_similarity(a: str, b: str) -> float:
    """Ratcliff–Obershelp similarity of two texts, case folded: 1 for equal ones."""
    return SequenceMatcher(None, a.casefold(), b.casefold(), autojunk=False).ratio()
