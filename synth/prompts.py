"""Prompt synthesis as pure functions: what to ask the writer (prompt_filters says which of its answers to keep).

Three strategies (Qwen3Guard report §3.1): *Self-Instruct* per leaf (Wang et al. 2023: a few seeds in context, own and
accepted ones mixed, drawn anew for every generation), *keyword-guided* (each generation conditioned on one of the
leaf's related terms, and the term must occur) and *contrastive* (a harmless twin of a violating prompt with nearly the
same surface). Deviation from Self-Instruct: near-duplicates are found by word-bigram Jaccard instead of ROUGE-L, which
is the measure that the later dedup step uses as well.

Two more that the report leaves open: *style* (a violating prompt rewritten in the style of a leaf that wraps others, as
jailbreaks do) and *multi-turn* (a violating last turn behind an earlier exchange of the same leaf that is harmless, or
leads up to it).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from synth.ids import seed_for
from synth.policy import Leaf, Pair

SELF_INSTRUCT, KEYWORD, CONTRASTIVE = "self_instruct", "keyword", "contrastive"
STYLE, MULTI_TURN = "style", "multi_turn"
STRATEGIES = (SELF_INSTRUCT, KEYWORD, CONTRASTIVE, STYLE, MULTI_TURN)
_DENSE = re.compile(r"[\u3040-\u9fff\u0e00-\u0e7f]")


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
