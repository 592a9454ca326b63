"""Mixed language by span: words of another language inside a text, with and without its source.

Algorithm. What belongs to no language (masks.py) is set aside. A run of letters in a script that the language
is not written in is foreign by `script`. For every other word (scripts with spaces only) the evidence is how
much more common it is in another language than in this one (lexicon.py): - a word that stands in the source
too is a `copy` unless this language uses it nearly as much as the source's does
  (loan words, cognates) or it is a name; so are three words in a row that stand so in the source;
- a word that no list has and that begins with a source word (a foreign stem with a native ending) is a
`stem`; - other words are `word`s of another language if the difference is large; in a run the differences add
up. Names (capitalised inside a sentence) count only inside a foreign run.

A whole text in another script than its language's (Hindi in Latin letters) is no mixture, nor is Serbian in
either of its scripts, a kanji run in Japanese, a Persian letter in Arabic or a gloss in Chinese characters
behind Korean.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from synth.evidence import ROMANISED, Evidence, Sides, Word, judge
from synth.language import language
from synth.lexicon import Lexicon, lexicon
from synth.masks import blanked
from synth.scripts import SPACELESS, script_runs, script_shares

RUN = 1.4  # evidence that condemns a run of which no word alone is condemned


@dataclass(frozen=True)
class Span:
    """Characters start..end of the text are in `language` ("" if unknown); why: "copy", "script", "word",
    "run"."""

    start: int
    end: int
    language: str
    why: str


@dataclass(frozen=True)
class Mixing:
    """mixed: whether any span is foreign. spans: by start, not overlapping."""

    mixed: bool
    spans: tuple[Span, ...]


QUOTATION = re.compile(
    r"\"[^\"\n]+\"|“[^”\n]+”|„[^“”\n]+[“”]|«[^»\n]+»|「[^」\n]+」|(?<!\w)['‘][^'’\n]+['’](?!\w)"
)


def mixing(
    text: str,
    language_code: str,
    source: str | None = None,
    ignore: Iterable[str] = (),
    words: Lexicon | None = None,
) -> Mixing:
    """Find the foreign spans of a text.

    source: the text it was translated from, if known. ignore: phrases that never count (keywords, product
    names). words: a lexicon to use instead of the language's own (see `lexicon.learn`). Raises BadInput for
    an unknown code.
    """
    target = language(language_code)
    plain = blanked(text or "", tuple(ignore))
    found = words_of(plain)
    shares = script_shares(plain)
    home = target.scripts
    known = words or lexicon(target.base)
    if next(iter(shares), "") == "Latin" and not home & set(shares) and not _english(found):
        home, known = frozenset({"Latin"}), Lexicon(target.base, ({},), ROMANISED)
    copied: dict[int, int] = {}
    kept: set[str] = set()
    stems: frozenset[str] = frozenset()
    if source:
        theirs = words_of(blanked(source))
        copied = _copied(found, theirs)
        stems = frozenset(word.key for word in theirs if len(word.key) >= 5 and not word.capital)
        kept = _quoted(source) & _quoted(text)
    sides = Sides(target, home, known, stems)
    scores = [
        Evidence(0.0)
        if word.key in kept
        else judge(plain, word, copied.get(at, 0), source is not None, sides)
        for at, word in enumerate(found)
    ]
    spans = _joined(found, _runs(found, scores))
    return Mixing(bool(spans), tuple(spans))


_OPENING = re.compile(r"[.!?:;\n。！？：；«»\"“”„(\[•]")
_JOINT = "-‐‑"


def words_of(plain: str) -> list[Word]:
    """The words of a text; runs of one script joined by hyphens are one word."""
    found: list[Word] = []
    last = 0
    for start, end, script in script_runs(plain):
        before = found[-1] if found else None
        joined = (
            before is not None and start - last == 1 and plain[last] in _JOINT and before.script == script
        )
        if joined and before is not None and script not in SPACELESS:
            key = before.key + "-" + plain[start:end].casefold()
            found[-1] = Word(before.start, end, key, script, before.name, before.capital)
        else:
            opening = before is None or _OPENING.search(plain, last, start) is not None
            token = plain[start:end]
            capital = token[:1].isupper()
            found.append(
                Word(start, end, token.casefold().replace("’", "'"), script, capital and not opening, capital)
            )
        last = end
    return found


def _english(found: list[Word]) -> bool:
    """Whether most words of a text in Latin letters are common English ones."""
    common = sum(lexicon("en").zipf(word.key) >= 4.0 for word in found)
    return common > 0.6 * len(found)


def _copied(found: list[Word], theirs: list[Word]) -> dict[int, int]:
    """Positions of words that stand in the source too, with the lower-case words of the run they share."""
    follows: dict[str, set[str]] = {}
    for at, word in enumerate(theirs):
        follows.setdefault(word.key, set()).add(theirs[at + 1].key if at + 1 < len(theirs) else "")
    names = {word.key for word in theirs if word.name}
    runs: dict[int, int] = {}
    at = 0
    while at < len(found):
        end = at
        while end < len(found) and found[end].key in follows:
            end += 1
            if end < len(found) and found[end].key not in follows[found[end - 1].key]:
                break
        plain = [i for i in range(at, end) if found[i].key not in names or not found[i].capital]
        runs |= dict.fromkeys(plain, max(1, sum(not found[i].capital for i in plain)))
        at = max(end, at + 1)
    return runs


def _quoted(text: str) -> set[str]:
    """The words inside a text's quotation marks."""
    return {word.key for match in QUOTATION.finditer(text) for word in words_of(match.group(0))}


def _runs(found: list[Word], scores: list[Evidence]) -> list[tuple[int, int, str, str]]:
    """Foreign stretches (first, last + 1, language, why) of word positions."""
    taken: list[tuple[int, int, str, str]] = []
    at = 0
    while at < len(scores):
        if scores[at].score < 0.25:
            at += 1
            continue
        end = at
        while end < len(scores) and scores[end].score >= 0.25:
            end += 1
        strong = [i for i in range(at, end) if scores[i].score >= 1]
        total = sum(one.score for one in scores[at:end])
        if strong:
            first, last = strong[0], strong[-1] + 1
            while first > at and scores[first - 1].score >= 0.5:
                first -= 1
            while last < end and scores[last].score >= 0.5:
                last += 1
            taken.append((first, last, _majority(scores[first:last]), scores[strong[0]].why))
        elif end - at >= 2 and total >= RUN:
            taken.append((at, end, _majority(scores[at:end]), "run"))
        at = end
    return taken


def _majority(scores: list[Evidence]) -> str:
    total: dict[str, float] = {}
    for one in scores:
        total[one.language] = total.get(one.language, 0.0) + one.score
    return max(sorted(total), key=lambda where: total[where])


def _joined(found: list[Word], runs: list[tuple[int, int, str, str]]) -> list[Span]:
    spans: list[Span] = []
    for first, last, where, why in runs:
        start, end = found[first].start, found[last - 1].end
        if spans and spans[-1].end >= start - 1 and spans[-1].language == where:
            spans[-1] = Span(spans[-1].start, end, where, spans[-1].why)
        else:
            spans.append(Span(start, end, where, why))
    return spans
