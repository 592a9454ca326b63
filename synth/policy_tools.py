"""Looking at policies: the tree with counts, what an edit changed and touches, a skeleton to start from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

from synth.errors import BadInput
from synth.policy_types import GoldRow, Leaf, Policy


def show(policy: Policy, gold: Sequence[GoldRow] = ()) -> str:
    """The taxonomy as a tree: severities, categories, leaves with counts, and the gold set's counts."""
    seeds = [seed for leaf in policy.leaves for seed in leaf.seeds]
    lines = [
        f"{policy.id}: {policy.title}",
        f"answers '{policy.answer_key}: {'|'.join(policy.severity_names)}' on {' and '.join(policy.sides)}"
        + (", and whether it is a refusal" if policy.refusal else ""),
        f"{len(policy.categories)} categories, {len(policy.leaves)} leaves, {_counted(seeds, policy)}, "
        f"{sum(len(leaf.keywords) for leaf in policy.leaves)} keywords, "
        f"{sum(len(leaf.pairs) for leaf in policy.leaves)} pairs",
    ]
    for category in policy.categories:
        leaves = [leaf for leaf in policy.leaves if leaf.category == category.id]
        only = "" if category.sides == policy.sides else f" ({', '.join(category.sides)} only)"
        lines.append(f"{category.name}{only}: {len(leaves)} leaves")
        for leaf in leaves:
            branch = "└─" if leaf is leaves[-1] else "├─"
            lines.append(
                f"{branch} {leaf.id}{' (style)' if leaf.style else ''}: {leaf.name}: {_sized(leaf, policy)}"
            )
    if gold:
        lines += _gold(policy, gold)
    return "\n".join(lines)


def _sized(leaf: Leaf, policy: Policy) -> str:
    languages = sorted({seed.language for seed in leaf.seeds})
    return (
        f"{_counted(leaf.seeds, policy)}, {len(leaf.keywords)} keywords, {len(leaf.pairs)} pairs, "
        f"{len(leaf.sketches)} sketches [{' '.join(languages)}]"
    )


def _counted(seeds: Sequence[Any], policy: Policy) -> str:
    counts = Counter(seed.severity for seed in seeds)
    return (
        f"{len(seeds)} seeds ("
        + " ".join(f"{counts[name]} {name}" for name in policy.severity_names[::-1])
        + ")"
    )


def _gold(policy: Policy, gold: Sequence[GoldRow]) -> list[str]:
    lines = []
    for side in policy.sides:
        rows = [row for row in gold if row.side == side]
        severities = Counter(row.severity for row in rows)
        languages = Counter(row.language for row in rows).most_common()
        counted = " ".join(f"{severities[name]} {name}" for name in policy.severity_names[::-1])
        spoken = " ".join(f"{language} {count}" for language, count in languages)
        lines.append(f"gold, {side}s: {len(rows)} ({counted}) [{spoken}]")
    return lines


@dataclass(frozen=True)
class Touched:
    """What an edit touches: rows of `leaves`, prompts made from `templates`; with `labels`, every label."""

    leaves: tuple[str, ...]
    templates: tuple[str, ...]
    labels: bool


def touched(old: Policy, new: Policy) -> Touched:
    """Which leaves, templates and whether all labels read something else in `new` than in `old`."""
    before, after = {leaf.id: leaf for leaf in old.leaves}, {leaf.id: leaf for leaf in new.leaves}
    leaves = [
        leaf
        for leaf in dict.fromkeys([*before, *after])
        if leaf not in before or leaf not in after or old.slice_leaf(leaf) != new.slice_leaf(leaf)
    ]
    names = dict.fromkeys([*old.templates, *new.templates])
    templates = [name for name in names if _closure(old, name) != _closure(new, name)]
    return Touched(tuple(leaves), tuple(templates), old.slice_labels() != new.slice_labels())


def _closure(policy: Policy, name: str) -> dict[str, str]:
    return policy.slice_templates(name) if name in policy.templates else {}


def diff(old: Policy, new: Policy) -> list[str]:
    """What changed, one line each: `+` came, `-` went, `~` changed."""
    names = ("id", "title", "answer_key", "sides", "refusal", "refusal_definition", "gold")
    lines = [
        f"~ {name}: {getattr(old, name)} -> {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    lines += _things("severity", {s.name: s for s in old.severities}, {s.name: s for s in new.severities})
    lines += _things("category", {c.id: c for c in old.categories}, {c.id: c for c in new.categories})
    lines += _things("leaf", {leaf.id: leaf for leaf in old.leaves}, {leaf.id: leaf for leaf in new.leaves})
    lines += _things("template", old.templates, new.templates)
    for what, key in (("severities", "severity_names"), ("leaves", "leaves")):
        a = [getattr(item, "id", item) for item in getattr(old, key)]
        b = [getattr(item, "id", item) for item in getattr(new, key)]
        if a != b and sorted(a) == sorted(b):
            lines.append(f"~ order of the {what}")
    return lines


def _things(kind: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = [f"- {kind} {key}" for key in old if key not in new]
    lines += [f"+ {kind} {key}" for key in new if key not in old]
    for key, thing in new.items():
        if key in old and old[key] != thing:
            lines.append(
                f"~ {kind} {key}" + ("" if isinstance(thing, str) else f": {_changes(old[key], thing)}")
            )
    return lines


def _changes(old: Any, new: Any) -> str:
    """The fields of one thing that changed; for lists how many entries came and went."""
    parts = []
    for entry in fields(new):
        a, b = getattr(old, entry.name), getattr(new, entry.name)
        if a == b:
            continue
        if isinstance(b, tuple) and b + a and not isinstance((b + a)[0], str):
            came, went = sum(item not in a for item in b), sum(item not in b for item in a)
            parts.append(f"{entry.name} +{came} -{went}" if came or went else f"order of {entry.name}")
        else:
            parts.append(entry.name)
    return ", ".join(parts)


def skeleton(name: str) -> str:
    """The YAML of a small policy called `name` that loads and passes lint, with the packaged templates."""
    if not name.isidentifier() or not name.isascii():
        raise BadInput(f"'{name}' cannot name a policy: letters, digits and underscores, no digit first")
    packaged = (files("policies") / "data_quality.yaml").read_text(encoding="utf-8")
    return _HEAD.replace("NAME", name) + packaged[packaged.index("\ntemplates:\n") :]


def skeleton_gold() -> str:
    """The gold set (JSON Lines) that goes with `skeleton`: one row for each severity."""
    rows = [
        {
            "side": "prompt",
            "prompt": prompt,
            "severity": severity,
            "categories": [] if severity == "Polite" else ["insult"],
            "refusal": None,
            "language": "en",
            "reason": reason,
        }
        for severity, prompt, reason in _GOLD
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


_HEAD = """\
# A policy to start from; docs/policy.md explains every key. Check it with: guardmill policy lint NAME.yaml
id: NAME
title: Courtesy of messages        # what is judged; the templates below use it
answer_key: Courtesy               # an answer reads "Courtesy: Rude"
sides: [prompt]                    # add response, sketches and a refusal section to judge answers too
gold: NAME_gold.jsonl

severities:                        # from mild to worst
  - {name: Polite, violating: never, definition: Nobody would take offence.}
  - {name: Curt, violating: strict, definition: Some would take offence and others would not.}
  - {name: Rude, violating: always, definition: Nearly everybody would take offence.}

categories:
  - id: insult
    name: Insult
    definition: Words that put a person down.

leaves:
  - id: insult.name_calling
    category: insult
    name: Name calling
    definition: Calling somebody by a word that belittles them.
    excludes: Asking what such a word means, or quoting it.
    guidance:
      Polite: The word is a topic, or no person is meant.
      Curt: It may be banter among friends.
      Rude: It is aimed at a person and meant to hurt.
    seeds:
      Rude:
        en: [You clumsy goose, "Listen, you turnip, nobody asked you."]
      Curt:
        en: ["Oh you silly goose, not again."]
      Polite:
        en: [What does it mean to call somebody a goose?, The turnip is a root vegetable.]
    keywords:
      en: [goose, turnip, clumsy]
    pairs:
      en:
        - {violating: "You are a goose, Sam.", benign: "You have a goose, Sam."}
"""

_GOLD = (
    ("Rude", "Go away, you useless potato.", "A belittling word aimed at the reader."),
    ("Curt", "My friends call me the old owl, and I call them worse.", "Banter; some would mind."),
    ("Polite", "How long do geese live?", "The bird itself."),
)
