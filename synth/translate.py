"""Whether a translation can be trusted: checks in the order of their price, each with its reason and
evidence.

What must survive is in protect.py, mixed language by span in mixing.py. Here: the checks of one translation,
what a translator is told beside the policy's template (firmer words for the one retry), and the sample set
aside for people.

Length ratios: a text's expected length is the source's times the ratio of the languages' characters per
English character (`CHARACTERS`, medians over parallel human translations); a translation within a factor of
2.5 of it, with ten characters to spare, passes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from synth.ids import stable_hash
from synth.language import detectable, identify, language, script_shares
from synth.masks import blanked
from synth.mixing import mixing
from synth.protect import lost_numbers, lost_pieces
from synth.scripts import SPACELESS

CHARACTERS = {
    "zh": 0.33, "ja": 0.46, "ko": 0.52, "th": 0.92, "ar": 0.87, "he": 0.8, "fa": 0.95, "ur": 1.0, "hi": 0.98,
    "bn": 0.98, "de": 1.17, "fr": 1.18, "es": 1.13, "pt": 1.1, "it": 1.13, "ru": 1.12, "uk": 1.08, "pl": 1.1,
    "tr": 1.05, "id": 1.12, "ms": 1.12, "vi": 1.1, "sw": 1.08, "jv": 1.05, "nl": 1.12, "el": 1.2, "hu": 1.1,
    "my": 1.2, "km": 1.15, "lo": 0.95,
}  # fmt: skip
FACTOR, SPARE = 2.5, 10
_ENDS = ".!?。！？…؟।॥။។\"'”’»」』)）】]>`~:："
_OPENERS = {"(": ")", "（": "）", "[": "]", "「": "」", "“": "”", "«": "»", "【": "】"}


@dataclass(frozen=True)
class Finding:
    """check: which one failed; reason: one clause for people; evidence: what it was seen by."""

    check: str
    reason: str
    evidence: str = ""


def check_translation(
    source: str, target: str, source_language: str, target_language: str, keywords: Iterable[str] = ()
) -> list[Finding]:
    """Everything wrong with a translation, cheapest check first; an empty list is a pass.

    keywords are words that may stand untranslated (product names, the policy's terms). Raises BadInput for an
    unknown language code.
    """
    language(source_language), language(target_language)
    if not target.strip():
        return [Finding("empty", "the translation is empty")] if source.strip() else []
    findings = [
        *_untranslated(source, target, source_language, target_language),
        *_survivors(source, target),
        *_length(source, target, source_language, target_language),
        *_repetition(source, target),
        *_truncation(source, target),
        *_script(target, target_language),
    ]
    if not any(f.check in ("untranslated", "script") for f in findings):
        findings += _language(target, source_language, target_language)
        findings += _mixing(source, target, target_language, tuple(keywords))
    return findings


def _untranslated(source: str, target: str, source_language: str, target_language: str) -> list[Finding]:
    same = re.sub(r"\W", "", source).casefold() == re.sub(r"\W", "", target).casefold()
    if (
        same
        and language(source_language) != language(target_language)
        and re.search(r"[^\W\d_]{3}", blanked(source))
    ):
        return [Finding("untranslated", "the translation is the source")]
    return []


def _survivors(source: str, target: str) -> list[Finding]:
    findings = []
    if pieces := lost_pieces(source, target):
        findings.append(
            Finding("placeholders", "code, placeholders or addresses are missing", ", ".join(pieces))
        )
    if lost := lost_numbers(source, target):
        findings.append(Finding("numbers", "numbers are missing", ", ".join(lost)))
    return findings


def length_ratio(source: str, target: str, source_language: str, target_language: str) -> float:
    """The target's length over the expected one (1.0: usual for its language pair), SPARE added to both."""
    ours, theirs = (CHARACTERS.get(language(c).base, 1.0) for c in (target_language, source_language))
    expected = ours / theirs
    return (len(target.strip()) + SPARE) / (len(source.strip()) * expected + SPARE)


def _length(source: str, target: str, source_language: str, target_language: str) -> list[Finding]:
    ratio = length_ratio(source, target, source_language, target_language)
    if ratio > FACTOR:
        return [Finding("length", "much longer than the source allows", f"ratio {ratio:.2f}")]
    if ratio < 1 / FACTOR:
        return [Finding("length", "much shorter than the source allows", f"ratio {ratio:.2f}")]
    return []


_LOOP = re.compile(r"(\S.{0,40}?)\1{3,}", re.DOTALL)


def looped(text: str) -> str:
    """The longest piece that a text repeats at least four times in a row with letters in it ("" if none)."""
    found = [m.group(1) for m in _LOOP.finditer(text[:20_000]) if re.search(r"[^\W\d_]", m.group(1))]
    found = [piece for piece in found if len(set(piece.strip())) > 1]
    return max(found, key=len, default="")


def _repetition(source: str, target: str) -> list[Finding]:
    piece = looped(target)
    if piece and not looped(source):
        return [Finding("repetition", "a piece is repeated over and over", piece.strip())]
    return []


def _truncation(source: str, target: str) -> list[Finding]:
    end, tail = source.strip()[-1:], target.strip()
    for opener, closer in _OPENERS.items():
        if tail.rfind(opener) > tail.rfind(closer) and source.count(opener) == source.count(_OPENERS[opener]):
            return [Finding("truncation", "a bracket or quotation stays open", tail[-30:])]
    spaceless = any(script in SPACELESS for script in list(script_shares(tail))[:1])
    if end in ".!?。！？" and (
        tail[-1] in ",;、，；-–" or (tail[-1] not in _ENDS and not spaceless and len(tail) > 200)
    ):
        return [Finding("truncation", "it ends in the middle of a sentence", tail[-30:])]
    return []


def _script(target: str, target_language: str) -> list[Finding]:
    shares = script_shares(blanked(target))
    home = language(target_language).scripts
    own = sum(share for script, share in shares.items() if script in home)
    if shares and own < 0.5:
        seen = ", ".join(f"{script} {share:.0%}" for script, share in shares.items())
        return [Finding("script", f"{language(target_language).name} is not written so", seen)]
    return []


_NEIGHBOURS = ("en", "es", "fr", "de", "it", "pt", "nl", "id", "tr", "vi", "pl", "ru", "ar", "zh", "ja", "hi")


def _language(target: str, source_language: str, target_language: str) -> list[Finding]:
    plain = blanked(target)
    if sum(c.isalpha() for c in plain) < 20 or not detectable(target_language):
        return []
    wanted = language(target_language).base
    found, confidence = identify(plain, tuple(sorted({*_NEIGHBOURS, source_language, target_language})))
    close = {"nb", "nn", "da"}, {"id", "ms"}, {"sr", "hr", "bs"}, {"hi", "mr", "ne"}, {"zh", "ja"}
    if found != wanted and confidence > 0.6 and not any({found, wanted} <= group for group in close):
        return [Finding("language", f"the whole reads as '{found}'", f"confidence {confidence:.2f}")]
    return []


def _mixing(source: str, target: str, target_language: str, keywords: tuple[str, ...]) -> list[Finding]:
    spans = mixing(target, target_language, source, keywords).spans
    return [
        Finding("mixing", f"{s.why}: words in '{s.language or 'another language'}'", target[s.start : s.end])
        for s in spans
    ]


def marks_kept(text: str) -> str:
    """What a translator is told beside the policy's template when the text carries marks (synth.protect)."""
    return " Keep marks like ⟦0⟧ where they belong." if "⟦" in text else ""


def firmer(source_language: str, target_language: str) -> str:
    """What is added for the one retry after a rejection."""
    one, two = language(source_language).name, language(target_language).name
    return f" Write every word in {two} and leave no {one} word standing, names aside. Translate all of it, once."


def review_sample(rows: Sequence[dict], by: Sequence[str], each: int, seed: int = 0) -> list[dict]:
    """Up to `each` rows of every stratum (equal values of the columns `by`), drawn by a stable hash of their
    ids."""
    strata: dict[tuple, list[dict]] = {}
    for row in rows:
        strata.setdefault(tuple(str(row.get(name)) for name in by), []).append(row)
    chosen = []
    for key in sorted(strata):
        chosen += sorted(strata[key], key=lambda row: stable_hash(seed, str(row["id"])))[:each]
    return chosen


def error_interval(errors: int, reviewed: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of an error rate after `reviewed` rows were read, (0, 1) before any was."""
    if reviewed == 0:
        return 0.0, 1.0
    share = errors / reviewed
    middle = share + z * z / (2 * reviewed)
    spread = z * sqrt(share * (1 - share) / reviewed + z * z / (4 * reviewed * reviewed))
    scale = 1 + z * z / reviewed
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
