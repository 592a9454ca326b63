"""Prompt synthesis as pure functions: what to ask the writer, and which of its answers to keep.

Three strategies (Qwen3Guard report §3.1): *Self-Instruct* per leaf (Wang et al. 2023: a few seeds in context, own and
accepted ones mixed, drawn anew for every generation), *keyword-guided* (each generation conditioned on one of the
leaf's related terms, and the term must occur) and *contrastive* (a harmless twin of a violating prompt with nearly the
same surface). Deviation from Self-Instruct: near-duplicates are found by word-bigram Jaccard instead of ROUGE-L, which
is the measure that the later dedup step uses as well.

Two more that the report leaves open: *style* (a violating prompt rewritten in the style of a leaf that wraps others, as
jailbreaks do) and *multi-turn* (a violating last turn behind an earlier exchange of the same leaf that is harmless, or
leads up to it).

A generation that is not kept has a reason; the caller counts them.
"""

import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from synth.ids import seed_for
from synth.language import detectable, identify, language, script_shares
from synth.policy import Leaf, Pair
from synth.responses import opens_with_refusal

SELF_INSTRUCT, KEYWORD, CONTRASTIVE = "self_instruct", "keyword", "contrastive"
STYLE, MULTI_TURN = "style", "multi_turn"
STRATEGIES = (SELF_INSTRUCT, KEYWORD, CONTRASTIVE, STYLE, MULTI_TURN)
# Languages that a Latin text is told apart from; scripts tell the others apart
NEIGHBOURS = ("en", "es", "fr", "de", "pt", "it")
_DENSE = re.compile(r"[\u3040-\u9fff\u0e00-\u0e7f]")
OWN_SCRIPT = 0.3  # of the letters: names and terms may stand in another
SURE = 0.95  # of another language: short questions are often mistaken

_LINE_MARK = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.)](?!\d))\s*")
_META = re.compile(
    r"\b(as an ai|language model|i (?:can't|cannot|can’t) (?:help|assist)|i'm sorry|here (?:is|are)|sure[,!]|"
    r"example \d|(?:new|another) (?:prompt|question|text))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ask:
    """One generation to be made: the strategy, the severity it aims at, the row it descends from, its context."""

    strategy: str
    severity: str
    parent_id: str
    group_id: str
    shots: tuple[str, ...] = ()
    keyword: str = ""
    text: str = ""
    pairs: tuple[Pair, ...] = ()
    style: Leaf | None = None
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """A row that generations may descend from."""

    id: str
    group_id: str
    text: str
    severity: str


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


def draw_shots(
    own: Sequence[Source], accepted: Sequence[Source], count: int, rng: random.Random
) -> list[Source]:
    """Up to `count` sources for one context: one accepted generation to three seeds at most, seeds last, so that
    the anchor (the last, whose group the generation joins) is always a seed."""
    generated = rng.sample(accepted, min(count // 4, len(accepted)))
    seeds = rng.sample(own, min(count - len(generated), len(own)))
    return generated + seeds


def ask_self_instruct(
    own: Sequence[Source], accepted: Sequence[Source], severity: str, shots: int, seed: int, index: int
) -> Ask:
    """A Self-Instruct generation for one severity of a leaf; draw `index` fixes its context."""
    rng = random.Random(seed_for(seed, f"{own[0].id}:{severity}", index))
    drawn = draw_shots(own, accepted, shots, rng)
    anchor = drawn[-1]
    return Ask(SELF_INSTRUCT, severity, anchor.id, anchor.group_id, tuple(source.text for source in drawn))


def ask_keyword(own: Sequence[Source], keyword: str, severity: str, shots: int, seed: int, index: int) -> Ask:
    """A generation that must use `keyword`."""
    rng = random.Random(seed_for(seed, f"{own[0].id}:{keyword}", index))
    drawn = draw_shots(own, (), shots, rng)
    texts = tuple(source.text for source in drawn)
    return Ask(KEYWORD, severity, drawn[-1].id, drawn[-1].group_id, texts, keyword=keyword)


def ask_contrast(source: Source, leaf: Leaf, language: str, mildest: str, seed: int, index: int) -> Ask:
    """A harmless twin for the violating prompt `source`, shown the leaf's own pairs."""
    rng = random.Random(seed_for(seed, source.id, index))
    pairs = [pair for pair in leaf.pairs if pair.language == language]
    shown = tuple(rng.sample(pairs, min(4, len(pairs))))
    return Ask(CONTRASTIVE, mildest, source.id, source.group_id, text=source.text, pairs=shown)


def ask_style(source: Source, style: Leaf, lang: str, worst: str, shots: int, seed: int, index: int) -> Ask:
    """`source` rewritten in the style of a leaf that wraps others, shown that leaf's own violating seeds."""
    rng = random.Random(seed_for(seed, f"{source.id}:{style.id}", index))
    seeds = [one.text for one in style.seeds if one.language == lang and one.severity == worst]
    shown = tuple(rng.sample(seeds, min(shots, len(seeds))))
    return Ask(STYLE, worst, source.id, source.group_id, shown, text=source.text, style=style)


def ask_follow_up(
    own: Sequence[Source],
    openings: Sequence[tuple[tuple[str, str], ...]],
    severity: str,
    shots: int,
    seed: int,
    index: int,
) -> Ask:
    """A last turn of `severity` behind one of the leaf's openings."""
    rng = random.Random(seed_for(seed, f"{own[0].id}:turns:{severity}", index))
    drawn = draw_shots(own, (), shots, rng)
    texts = tuple(source.text for source in drawn)
    history = openings[index % len(openings)]
    return Ask(MULTI_TURN, severity, drawn[-1].id, drawn[-1].group_id, texts, history=history)


def openings(leaf: Leaf, lang: str, severities: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Earlier exchanges of a leaf: a milder seed, harmless or leading up to the worst, that the leaf's helpful answer
    fits best (they share a word of substance), and that answer. severities: from mild to worst."""
    seeds = [one for one in leaf.seeds if one.language == lang and one.severity in severities[:-1]]
    found: list[tuple[tuple[str, str], ...]] = []
    for answer in (sketch.benign for sketch in leaf.sketches if sketch.language == lang):
        shared = {one.text: len(_substance(one.text) & _substance(answer)) for one in seeds}
        best = max(shared.values(), default=0)
        found += [
            (("user", text), ("assistant", answer)) for text, count in shared.items() if count == best > 0
        ]
    return found


def _substance(text: str) -> set[str]:
    """The beginnings of a text's longer words; pairs of characters where there are no spaces."""
    words = [word for word in re.findall(r"\w+", text.casefold()) if len(word) > 3]
    dense = [word for word in words if _DENSE.search(word)]
    return {word[:5] for word in words if word not in dense} | {
        word[at : at + 2] for word in dense for at in range(len(word) - 1)
    }


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
