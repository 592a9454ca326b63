"""The test set of benchmarks/mixing.py, by recipe.

Texts: CatQA (English with human Chinese and Vietnamese translations) and the safety policy's seeds in its other
languages (no translations of each other: the English seed beside one is of the same leaf, and plays the source).
Negatives are the texts as they are, names, loan words and acronyms included. Positives of the first kind replace 1, 2
or 4 words (two characters for a word where a script has no spaces) or a clause (half of the source, up to 8 words) by
the source's, or 1 or 3 words by a third language's. Positives of the second kind put in one source word of five letters
or more, changed: with a native ending ("hackeando"; the detector's rule for stems was written after such words had been
seen, so this figure is no surprise to it), with another native ending ("hackearíamos", of a set that no rule was fitted
to), or transliterated letter by letter ("лок" for lock; Russian alone; nothing was fitted to it). A word counts as a
candidate if it has two letters or more and the text does not hold it anyway. Drawn with a fixed seed.
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from synth.policy import load_policy
from synth.scripts import SPACELESS, script_shares

CATQA = next(
    (
        p / "shared/bench/catqa"
        for p in Path(__file__).resolve().parents
        if (p / "shared/bench/catqa").exists()
    ),
    Path("shared/bench/catqa"),
)
ENDINGS = {
    "es": "ar ando ado", "de": "en t ung", "fr": "er é ons", "vi": "", "zh": "了 的", "ja": "する した",
    "ko": "하기 하는", "ru": "ить ов ами", "ar": "ات ين", "hi": "ों ना",
}  # fmt: skip
OTHER_ENDINGS = {
    "es": "earíamos azo eros",
    "de": "test ische erei",
    "fr": "ions eur age",
    "ru": "нули ской ами",
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CYRILLIC = dict(zip(LETTERS, [*"абкдефгхижклмнопкрстувв", "кс", "й", "з"], strict=True))


@dataclass(frozen=True)
class Case:
    """kind: "negative", "1", "2", "4", "clause", "third-1", "third-3", "native-ending", "other-ending" or
    "transliterated"."""

    text: str
    source: str
    language: str
    kind: str


def catqa(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """language -> (English, translation) pairs."""

    def flat(name: str) -> list[str]:
        data = json.loads((folder / f"catqa_{name}.json").read_text())
        return [text for group in data.values() for texts in group.values() for text in texts]

    english = flat("english")
    return {
        code: list(zip(english, flat(name), strict=True))
        for code, name in (("zh", "chinese"), ("vi", "vietnamese"))
    }


def seeds() -> dict[str, list[tuple[str, str]]]:
    """language -> (an English seed of the leaf, the seed) pairs."""
    found: dict[str, list[tuple[str, str]]] = {}
    for leaf in load_policy("safety").leaves:
        english = [seed.text for seed in leaf.seeds if seed.language == "en"]
        others = [seed for seed in leaf.seeds if seed.language not in ("en", "zh")]
        for number, seed in enumerate(others if english else ()):
            found.setdefault(seed.language, []).append((english[number % len(english)], seed.text))
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text)


def runs(text: str, length: int, taken: set[str]) -> list[list[str]]:
    """Runs of words that could be put into a text."""
    words = words_of(text)
    every = (words[i : i + length] for i in range(len(words) - length + 1))
    return [
        run for run in every if run[0].islower() and all(len(w) > 1 and w.lower() not in taken for w in run)
    ]


def replaced(rng: random.Random, text: str, put: str, length: int) -> str:
    """The text with `length` words (or two characters for each) replaced."""
    if next(iter(script_shares(text)), "") in SPACELESS:
        at = rng.randrange(max(1, len(text) - 2 * length))
        gap = rng.choice(["", " "])
        return text[:at] + gap + put + gap + text[at + 2 * length :]
    words = text.split(" ")
    at = rng.randrange(max(1, len(words) - length + 1))
    return " ".join([*words[:at], put, *words[at + length :]])


def cases(data: dict[str, list[tuple[str, str]]], rows: int, seed: int) -> list[Case]:
    found = []
    for code, pairs in sorted(data.items()):
        rng = random.Random(f"{seed} {code}")
        for source, text in rng.sample(pairs, min(rows, len(pairs))):
            found.append(Case(text, source, code, "negative"))
            taken = {word.lower() for word in words_of(text)}
            half = min(8, len(words_of(source)) // 2)
            for kind, length in (("1", 1), ("2", 2), ("4", 4), ("clause", half)):
                if choice := runs(source, length, taken) if length else []:
                    put = " ".join(rng.choice(choice))
                    found.append(Case(replaced(rng, text, put, length), source, code, kind))
            other = rng.choice([c for c in sorted(data) if c != code])
            third = rng.choice(data[other])[1]
            for length in (1, 3):
                if put := piece(rng, third, length, taken):
                    found.append(Case(replaced(rng, text, put, length), source, code, f"third-{length}"))
            stems = [w for w in words_of(source) if len(w) > 4 and w.islower() and w not in taken]
            for kind, put in changed(rng, stems, code):
                found.append(Case(replaced(rng, text, put, 1), source, code, kind))
    return found


def changed(rng: random.Random, stems: list[str], code: str) -> list[tuple[str, str]]:
    """(kind, a source word made to look native), in each way that the language has."""
    made = []
    for kind, endings in (("native-ending", ENDINGS), ("other-ending", OTHER_ENDINGS)):
        if stems and endings.get(code):
            made.append((kind, rng.choice(stems) + rng.choice(endings[code].split())))
    if stems and code == "ru":
        made.append(("transliterated", "".join(CYRILLIC.get(letter, letter) for letter in rng.choice(stems))))
    return made


def piece(rng: random.Random, text: str, length: int, taken: set[str]) -> str:
    if next(iter(script_shares(text)), "") in SPACELESS:
        at = rng.randrange(max(1, len(text) - 2 * length))
        return re.sub(r"[\W\d_]+", "", text[at : at + 2 * length])
    choice = [run for run in runs(text, length, taken) if not all(w.isascii() and w.isupper() for w in run)]
    return " ".join(rng.choice(choice)) if choice else ""
