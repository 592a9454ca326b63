"""What a written policy is, as frozen values: severities, categories, leaves and seeds, templates, gold rows.

Nothing here knows a subject. A policy's `hash` covers everything in its file; the `slice_*` methods give the
parts that a row, a label or a prompt reads, so that an edit of one leaf leaves the identity of all other rows
alone.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from synth.errors import BadInput
from synth.ids import stable_hash
from synth.templates import with_includes

READINGS = ("loose", "strict")
VIOLATING = ("never", "strict", "always")
SIDES = ("prompt", "response")
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Severity:
    """One step of the scale. `violating`: "never", "strict" (only in the strict reading) or "always"."""

    name: str
    definition: str
    violating: str


@dataclass(frozen=True)
class Category:
    """One class of content, labelled on the given sides ("prompt", "response")."""

    id: str
    name: str
    definition: str
    sides: tuple[str, ...]


@dataclass(frozen=True)
class Seed:
    """One hand-written text of a leaf; `id` hashes leaf, severity, language and text."""

    id: str
    text: str
    severity: str
    language: str
    leaf: str


@dataclass(frozen=True)
class Keyword:
    text: str
    language: str


@dataclass(frozen=True)
class Pair:
    """A contrastive pair: two texts of nearly the same surface and opposite label."""

    id: str
    violating: str
    benign: str
    language: str
    leaf: str


@dataclass(frozen=True)
class Sketch:
    """Responses of a leaf in one language: a refusal, a safe helpful answer, a generic violating opening."""

    language: str
    refusal: str
    benign: str
    violating: str


@dataclass(frozen=True)
class Leaf:
    """The taxonomy's smallest unit. `excludes`: the nearest safe text; `guidance`: severity to sentence."""

    id: str
    category: str
    name: str
    definition: str
    excludes: str = ""
    guidance: dict[str, str] = field(default_factory=dict)
    seeds: tuple[Seed, ...] = ()
    keywords: tuple[Keyword, ...] = ()
    pairs: tuple[Pair, ...] = ()
    sketches: tuple[Sketch, ...] = ()
    style: bool = False


@dataclass(frozen=True)
class Policy:
    """A checked policy. Severities run from mild to worst; `source` is its path, no part of any identity."""

    id: str
    title: str
    answer_key: str
    sides: tuple[str, ...]
    refusal: bool
    refusal_definition: str
    severities: tuple[Severity, ...]
    categories: tuple[Category, ...]
    leaves: tuple[Leaf, ...]
    templates: dict[str, str]
    gold: str
    source: str

    @property
    def severity_names(self) -> tuple[str, ...]:
        """From mild to worst."""
        return tuple(severity.name for severity in self.severities)

    @property
    def mildest(self) -> str:
        return self.severities[0].name

    @property
    def worst(self) -> str:
        return self.severities[-1].name

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of all languages that have a seed, sorted."""
        return tuple(sorted({seed.language for leaf in self.leaves for seed in leaf.seeds}))

    @property
    def hash(self) -> str:
        """20 hexadecimal digits over everything but `source`; the order of the file counts."""
        parts = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "source"}
        return stable_hash("policy", parts)

    def severity(self, name: str) -> Severity:
        for severity in self.severities:
            if severity.name == name:
                return severity
        raise BadInput(f"{self.id}: unknown severity '{name}': one of {', '.join(self.severity_names)}")

    def category(self, category_id: str) -> Category:
        for category in self.categories:
            if category.id == category_id:
                return category
        raise BadInput(f"{self.id}: unknown category '{category_id}'")

    def leaf(self, leaf_id: str) -> Leaf:
        for leaf in self.leaves:
            if leaf.id == leaf_id:
                return leaf
        raise BadInput(f"{self.id}: unknown leaf '{leaf_id}'")

    def categories_of(self, side: str) -> tuple[Category, ...]:
        """The categories labelled on `side`, in the policy's order."""
        if side not in self.sides:
            raise BadInput(f"{self.id}: unknown side '{side}': one of {', '.join(self.sides)}")
        return tuple(category for category in self.categories if side in category.sides)

    def category_names(self, side: str) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories_of(side))

    def violates(self, severity: str, reading: str) -> bool:
        """Whether `severity` (a name) counts as violating under "loose" or "strict"."""
        if reading not in READINGS:
            raise BadInput(f"{self.id}: unknown reading '{reading}': one of {', '.join(READINGS)}")
        violating = self.severity(severity).violating
        return violating == "always" or (violating == "strict" and reading == "strict")

    def slice_leaf(self, leaf_id: str) -> dict[str, Any]:
        """What the rows of one leaf read, ready for JSON: the leaf, its category and the severity scale."""
        leaf = self.leaf(leaf_id)
        return {
            "leaf": _plain(leaf),
            "category": _plain(self.category(leaf.category)),
            "severities": _plain(self.severities),
        }

    def slice_labels(self) -> dict[str, Any]:
        """What a label reads: the scale, the categories, refusal, the answer's key and the sides."""
        names = ("answer_key", "sides", "refusal", "refusal_definition", "severities", "categories")
        return {name: _plain(getattr(self, name)) for name in names}

    def slice_templates(self, *names: str) -> dict[str, str]:
        """The named templates and all that they include. Raises BadInput for one that is not there."""
        for name in names:
            if name not in self.templates:
                raise BadInput(f"{self.source or self.id}: templates: no template '{name}'")
        return {name: self.templates[name] for name in with_includes(self.templates, *names)}


@dataclass(frozen=True)
class GoldRow:
    """A row of the gold set, labelled by hand. `turn`: the character of `response` where it turns."""

    id: str
    group_id: str
    side: str
    prompt: str
    history: tuple[Message, ...]
    response: str
    thinking: str
    severity: str
    categories: tuple[str, ...]
    refusal: bool | None
    language: str
    reason: str
    turn: int | None


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as JSON holds them."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return dict(value) if isinstance(value, dict) else value
