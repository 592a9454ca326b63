"""Mixed language by span: words of another language inside a text, with and without its source.

Algorithm. What belongs to no language (masks.py) is set aside. A run of letters in a script that the language
is not written in is foreign by `script`. For every other word (scripts with spaces only) the evidence is how
much more common it is in another language than in this one (lexicon.py): - a word that stands in the source
too is a `copy` unless this language uses it nearly as much as the source's does
  (loan words, cognates) or it is a name; so are three words in a row that stand so in the source;
- other words are `word`s of another language if the difference is large; in a run the differences add up.
Names (capitalised inside a sentence) count only inside a foreign run.

A whole text in another script than its language's (Hindi in Latin letters) is no mixture, nor is Serbian in
either of its scripts, a kanji run in Japanese, a Persian letter in Arabic or a gloss in Chinese characters
behind Korean.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from synth.language import Language, language
from synth.lexicon import Lexicon, abroad, lexicon
from synth.masks import blanked
from synth.scripts import SPACELESS, script_runs, script_shares

COPY, COPY_RARE, WORD, THIRD, RUN = 0.9, 1.2, 2.0, 2.4, 3.0
COMMON = 6.0  # Zipf frequency from which a capitalised word is no name
ROMANISED = 5.5  # assumed of every word where a language stands in Latin letters that are not its own


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


@dataclass(frozen=True)
class _Word:
    start: int
    end: int
    key: str  # lower case
    script: str
    name: bool  # capitalised where no sentence begins
    capital: bool


_SCRIPT_LANGUAGE = {
    "Han": "zh", "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko", "Thai": "th", "Greek": "el",
    "Hebrew": "he", "Bengali": "bn", "Tamil": "ta", "Telugu": "te", "Devanagari": "hi", "Armenian": "hy",
    "Georgian": "ka",
}  # fmt: skip


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
    found = _words(plain)
    shares = script_shares(plain)
    home = target.scripts
    known = words or lexicon(target.base)
    if next(iter(shares), "") == "Latin" and not home & set(shares):
        home, known = frozenset({"Latin"}), Lexicon(target.base, ({},), ROMANISED)
    copied = _copied(found, source)
    scores = [_judge(word, at in copied, target, home, known) for at, word in enumerate(found)]
    scores = [_gloss(plain, word, score, target) for word, score in zip(found, scores, strict=True)]
    spans = _joined(found, _runs(found, scores))
    return Mixing(bool(spans), tuple(spans))


def _words(plain: str) -> list[_Word]:
    found = []
    opening = True
    last = 0
    for start, end, script in script_runs(plain):
        between = plain[last:start]
        opening = (
            opening and not between.strip()
            if last == 0
            else bool(re.search(r"[.!?:;\n。！？：;«»\"“”„(\[•-]", between))
        )
        opening = opening or last == 0
        token = plain[start:end]
        capital = token[:1].isupper()
        found.append(
            _Word(start, end, token.casefold().replace("’", "'"), script, capital and not opening, capital)
        )
        last = end
    return found


def _copied(found: list[_Word], source: str | None) -> dict[int, int]:
    """Positions of words that stand in the source too, with the length of the run they share with it."""
    if not source:
        return {}
    theirs = _words(blanked(source))
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
        for inside in range(at, end):
            if found[inside].key not in names or not found[inside].capital:
                runs[inside] = end - at
        at = max(end, at + 1)
    return runs


def _judge(
    word: _Word, copied: bool, target: Language, home: frozenset[str], known: Lexicon
) -> tuple[float, str, str]:
    """(evidence, language, why) of one word; evidence of 1 and more condemns it alone, 0 and less clears
    it."""
    if word.script not in home:
        return _judge_script(word, target, known)
    if word.script in SPACELESS or len(word.key) < 2:
        return 0.0, "", ""
    own = known.zipf(word.key)
    best, where = 0.0, ""
    for code, zipf in abroad(word.key):
        gain = zipf - own - (0.0 if code == "en" else THIRD - WORD)
        if code != target.base and gain > best and zipf >= 3.5:
            best, where = gain, code
    if copied:
        english = lexicon("en").zipf(word.key)
        gain = max(best, english - own)
        return gain / (COPY if own > known.floor else COPY_RARE), where or "en", "copy"
    if word.name and best + own < COMMON:
        return 0.0, where, "word"
    return best / WORD, where, "word"


def _judge_script(word: _Word, target: Language, known: Lexicon) -> tuple[float, str, str]:
    where = _SCRIPT_LANGUAGE.get(word.script, "")
    if word.script != "Latin":
        return 2.0, where, "script"
    if len(word.key) < 2:
        return 0.3, "", ""
    listed = abroad(word.key)
    where, most = max(listed, key=lambda entry: entry[1], default=("", 0.0))
    if word.capital and most < COMMON:
        return 0.3, where, "script"
    if known.knows(word.key) and most - known.zipf(word.key) < 1.0:
        return 0.0, where, "script"
    return 1.5, where, "script"


def _gloss(
    plain: str, word: _Word, score: tuple[float, str, str], target: Language
) -> tuple[float, str, str]:
    """Chinese characters in brackets right behind a Korean word explain it and are no foreign run."""
    if target.base == "ko" and word.script == "Han" and plain[word.start - 1 : word.start] in ("(", "（"):
        return 0.0, "", ""
    return score


def _runs(found: list[_Word], scores: list[tuple[float, str, str]]) -> list[tuple[int, int, str, str]]:
    """Foreign stretches (first, last + 1, language, why) of word positions."""
    taken: list[tuple[int, int, str, str]] = []
    at = 0
    while at < len(scores):
        if scores[at][0] < 0.25:
            at += 1
            continue
        end = at
        while end < len(scores) and scores[end][0] >= 0.25:
            end += 1
        strong = [i for i in range(at, end) if scores[i][0] >= 1]
        total = sum(score for score, _, _ in scores[at:end])
        if strong:
            first, last = strong[0], strong[-1] + 1
            while first > at and scores[first - 1][0] >= 0.5:
                first -= 1
            while last < end and scores[last][0] >= 0.5:
                last += 1
            taken.append((first, last, _majority(scores[first:last]), scores[strong[0]][2]))
        elif end - at >= 3 and total >= RUN / WORD:
            taken.append((at, end, _majority(scores[at:end]), "run"))
        at = end
    return taken


def _majority(scores: list[tuple[float, str, str]]) -> str:
    total: dict[str, float] = {}
    for score, where, _ in scores:
        total[where] = total.get(where, 0.0) + score
    return max(sorted(total), key=lambda where: total[where])


def _joined(found: list[_Word], runs: list[tuple[int, int, str, str]]) -> list[Span]:
    spans: list[Span] = []
    for first, last, where, why in runs:
        start, end = found[first].start, found[last - 1].end
        if spans and spans[-1].end >= start - 1 and spans[-1].language == where:
            spans[-1] = Span(spans[-1].start, end, where, spans[-1].why)
        else:
            spans.append(Span(start, end, where, why))
    return spans
