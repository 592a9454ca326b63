"""What a streaming guard's heads can say, in which order.

A policy whose names are exactly the published ones takes the published order (risk: 0 Safe, 1 Unsafe,
2 Controversial), so that its checkpoints are compatible; any other policy keeps its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from synth.errors import BadInput

PUBLISHED_RISKS = ("Safe", "Unsafe", "Controversial")
PUBLISHED_CATEGORIES = (
    "Violent",
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
)
PUBLISHED_QUERY_CATEGORIES = (*PUBLISHED_CATEGORIES, "Jailbreak")
NO_CATEGORY = "None"  # the one class of a side for which a policy has no categories


@dataclass(frozen=True)
class LabelMaps:
    """The order of the heads' classes. `safe` are the risks whose category does not count in the loss."""

    risk: tuple[str, ...]
    response_category: tuple[str, ...]
    query_category: tuple[str, ...]
    safe: tuple[str, ...]
    strict: tuple[str, ...] = field(default=())
    loose: tuple[str, ...] = field(default=())

    def risk_index(self, name: str, where: str) -> int:
        if name not in self.risk:
            raise BadInput(f"{where}: unknown severity {name!r} (known: {', '.join(self.risk)})")
        return self.risk.index(name)


def class_order(names: Sequence[str], published: Sequence[str]) -> tuple[str, ...]:
    """The published order where the policy's names are exactly the published ones, else the policy's own."""
    return tuple(published) if set(names) == set(published) else (tuple(names) or (NO_CATEGORY,))


def label_maps(
    risks: Sequence[str],
    response_categories: Sequence[str],
    query_categories: Sequence[str],
    safe: Sequence[str],
    strict: Sequence[str],
    loose: Sequence[str],
) -> LabelMaps:
    """The heads' classes for a policy: its severities, category names per side, and what violates in each
    reading."""
    return LabelMaps(
        class_order(risks, PUBLISHED_RISKS),
        class_order(response_categories, PUBLISHED_CATEGORIES),
        class_order(query_categories, PUBLISHED_QUERY_CATEGORIES),
        tuple(safe),
        tuple(strict),
        tuple(loose),
    )
