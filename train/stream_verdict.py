"""From per-token classes to a verdict: readings, debounce and thresholds.

A token is flagged where its risk violates under the reading (strict counts Controversial, loose does not). A
response is flagged from token i if tokens i - 1 and i are both flagged, and its category is that of token i
(METHOD.md §6). Option: per-category thresholds on the probability that violates, in place of the most likely
class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synth.errors import BadInput
from train.labels import LabelMaps

READINGS = ("loose", "strict")


@dataclass(frozen=True)
class Rule:
    """What flags a token (`levels`, or `thresholds` by category name with "*" for the rest), and the run
    length."""

    levels: tuple[str, ...]
    run: int = 2
    thresholds: Mapping[str, float] = field(default_factory=dict)


def rule(maps: LabelMaps, reading: str, run: int = 2, thresholds: Mapping[str, float] | None = None) -> Rule:
    """The rule of a guard's reading; BadInput for another reading than loose and strict."""
    if reading not in READINGS:
        raise BadInput(f"reading is {reading!r}; it is loose or strict")
    return Rule(maps.strict if reading == "strict" else maps.loose, run, thresholds or {})


def flags(result: Mapping[str, Sequence], maps: LabelMaps, rule: Rule) -> list[bool]:
    """Whether each token of a `stream_moderate_from_ids` result is flagged on its own."""
    if not rule.thresholds:
        return [risk in rule.levels for risk in result["risk_level"]]
    violating = [maps.risk.index(level) for level in rule.levels]
    fallback = rule.thresholds.get("*", 0.5)
    return [
        sum(probabilities[i] for i in violating) >= rule.thresholds.get(category, fallback)
        for probabilities, category in zip(result["risk_probs"], result["category"], strict=True)
    ]


def onset(flagged: Sequence[bool], run: int = 2) -> int | None:
    """Index of the first token that ends `run` flagged ones in a row; None where there is none."""
    streak = 0
    for index, flag in enumerate(flagged):
        streak = streak + 1 if flag else 0
        if streak >= run:
            return index
    return None


@dataclass
class Debounce:
    """The same, fed token by token: `push` says whether the response is flagged by now, at a cost that does not grow.

    `onset` is the index, within the response, of the token from which it is flagged.
    """

    run: int = 2
    seen: list[bool] = field(default_factory=list)
    onset: int | None = None

    def push(self, flagged: Sequence[bool]) -> bool:
        """Takes the flags of the next tokens of a response."""
        for flag in flagged:
            self.seen.append(flag)
            if self.onset is None and len(self.seen) >= self.run and all(self.seen[-self.run :]):
                self.onset = len(self.seen) - 1
        return self.onset is not None

    def roll_back(self, tokens: int) -> None:
        """Forgets the last tokens."""
        if tokens:
            del self.seen[-tokens:]
        if self.onset is not None and self.onset >= len(self.seen):
            self.onset = None
