"""Prompt synthesis as pure functions: what to ask the writer, and which of its answers to keep.

Three strategies (Qwen3Guard report §3.1): *Self-Instruct* per leaf (Wang et al. 2023: a few seeds in context, own and
accepted ones mixed, drawn anew for every generation), *keyword-guided* (each generation conditioned on one of the
leaf's related terms, and the term must occur) and *contrastive* (a harmless twin of a violating prompt with nearly the
same surface). Deviation from Self-Instruct: near-duplicates are found by word-bigram Jaccard instead of ROUGE-L, which
is the measure that the later dedup step uses as well.

A generation that is not kept has a reason; the caller counts them.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from synth.ids import seed_for
from synth.policy import Leaf, Pair

SELF_INSTRUCT, KEYWORD, CONTRASTIVE = "self_instruct", "keyword", "contrastive"

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
    bigrams to anything already there, edit similarity of twins."""

    min_words: int = 4
    max_words: int = 40
    near_duplicate: float = 0.6
    twin_band: tuple[float, float] = (0.45, 0.97)


def draw_shots(
    own: Sequence[Source], accepted: Sequence[Source], count: int, rng: random.Random
) -> list[Source]:
    """Up to `count` sources for one context: one accepted generation to three seeds at most, seeds last, so that
    the anchor (the last, whose group the generation joins) is always a seed."""
    generated = rng.sample(list(accepted), min(count // 4, len(accepted)))
    seeds = rng.sample(list(own), min(count - len(generated), len(own)))
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


def rejection(
    text: str, ask: Ask, finish_reason: str, taken: Sequence[frozenset[str]], filters: Filters
) -> str | None:
    """Why a generation is not kept, or None. Checked in order of price."""
    if not text:
        return "empty"
    if finish_reason == "length" and text[-1:].isalnum():
        return "cut off"
    length = words(text)
    if length < filters.min_words:
        return "too short"
    if length > filters.max_words:
        return "too long"
    if _META.search(text):
        return "talks about the task"
    if ask.strategy == KEYWORD and ask.keyword.casefold() not in text.casefold():
        return "keyword missing"
    if ask.strategy == CONTRASTIVE:
        return twin_rejection(ask.text, text, filters)
    grams = bigrams(text)
    if any(similarity(grams, bigrams(shot)) >= filters.near_duplicate for shot in ask.shots):
        return "echo of the context"
    if any(similarity(grams, other) >= filters.near_duplicate for other in taken):
        return "near-duplicate"
    return None


def twin_rejection(violating: str, benign: str, filters: Filters) -> str | None:
    """Why `benign` is no twin of `violating`, or None: their edit similarity must lie in the band."""
    ratio = edit_similarity(violating, benign)
    if ratio < filters.twin_band[0]:
        return "twin too far"
    return "twin too near" if ratio > filters.twin_band[1] else None


def edit_similarity(a: str, b: str) -> float:
    """Ratcliff–Obershelp similarity of two texts, case folded: 1 for equal ones."""
    return SequenceMatcher(None, a.casefold(), b.casefold(), autojunk=False).ratio()
