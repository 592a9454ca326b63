"""Loading a written policy: one YAML file, its gold set (`synth.policy_gold`) beside it; see docs/policy.md.

Everything is checked on the way in, so that no later step meets a policy that does not hold together; the
first mistake is raised as one sentence with its path inside the file. What is allowed but unwise is lint's
business (`synth.policy_lint`).
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from synth.errors import BadInput
from synth.ids import row_id
from synth.policy_gold import load_gold
from synth.policy_schema import Node, read_yaml
from synth.policy_types import (
    READINGS,
    SIDES,
    VIOLATING,
    Category,
    GoldRow,
    Keyword,
    Leaf,
    Message,
    Pair,
    Policy,
    Seed,
    Severity,
    Sketch,
)
from synth.templates import check_template, render

__all__ = [
    "READINGS",
    "Category",
    "GoldRow",
    "Keyword",
    "Leaf",
    "Message",
    "Pair",
    "Policy",
    "Seed",
    "Severity",
    "Sketch",
    "load_gold",
    "load_policy",
    "render",
]

_POLICY_KEYS = (
    "id",
    "title",
    "answer_key",
    "sides",
    "severities",
    "categories",
    "leaves",
    "templates",
    "gold",
)
_LEAF_KEYS = ("id", "category", "name", "definition", "seeds")
_LEAF_EXTRAS = ("excludes", "guidance", "keywords", "pairs", "sketches", "style")


def load_policy(path_or_name: str | Path) -> Policy:
    """A policy from a path, or a packaged one by its bare name ("safety").

    Raises BadInput: one sentence with the path inside the file, such as
    `my.yaml: leaves[3].seeds.Bad: unknown severity 'Bad'`.
    """
    path = _locate(path_or_name)
    top = read_yaml(path).mapping(_POLICY_KEYS, ("refusal",))
    sides = tuple(dict.fromkeys(node.one_of(SIDES, "side") for node in top["sides"].items()))
    severities = _severities(top["severities"])
    categories = _unique(top["categories"], [_category(node, sides) for node in top["categories"].items()])
    names = tuple(severity.name for severity in severities)
    category_ids = tuple(category.id for category in categories)
    leaves = _unique(top["leaves"], [_leaf(node, names, category_ids) for node in top["leaves"].items()])
    refusal, definition = _refusal(top.get("refusal"), sides)
    return Policy(
        id=top["id"].text(),
        title=top["title"].text(),
        answer_key=top["answer_key"].name(),
        sides=sides,
        refusal=refusal,
        refusal_definition=definition,
        severities=severities,
        categories=categories,
        leaves=leaves,
        templates=_templates(top["templates"]),
        gold=top["gold"].text(),
        source=str(path),
    )


def _locate(path_or_name: str | Path) -> Path:
    text = str(path_or_name)
    if isinstance(path_or_name, str) and text and not any(mark in text for mark in "/\\."):
        packaged = Path(str(files("policies"))) / f"{text}.yaml"
        if not packaged.is_file():
            known = ", ".join(sorted(path.stem for path in packaged.parent.glob("*.yaml")))
            raise BadInput(
                f"no packaged policy is called '{text}' (there are: {known or 'none'}); a path ends in .yaml"
            )
        return packaged
    return Path(path_or_name)


def _unique(node: Node, things: list[Any], key: str = "id") -> tuple[Any, ...]:
    seen: dict[str, int] = {}
    for index, thing in enumerate(things):
        first = seen.setdefault(getattr(thing, key), index)
        if first != index:
            node.fail(f"[{index}] has the same {key} '{getattr(thing, key)}' as [{first}]")
    return tuple(things)


def _severities(node: Node) -> tuple[Severity, ...]:
    severities = []
    for item in node.items():
        entry = item.mapping(("name", "definition", "violating"))
        severities.append(
            Severity(
                entry["name"].name(),
                entry["definition"].text(),
                entry["violating"].one_of(VIOLATING, "value"),
            )
        )
    order = [VIOLATING.index(severity.violating) for severity in severities]
    if order != sorted(order) or order[0] != 0 or order[-1] != 2:
        node.fail("must run from mild to worst: first 'never', then 'strict', last 'always'")
    return _unique(node, severities, "name")


def _category(node: Node, sides: tuple[str, ...]) -> Category:
    entry = node.mapping(("id", "name", "definition"), ("sides",))
    own = tuple(item.one_of(sides, "side") for item in entry["sides"].items()) if "sides" in entry else sides
    return Category(entry["id"].text(), entry["name"].name(), entry["definition"].text(), own)


def _refusal(node: Node | None, sides: tuple[str, ...]) -> tuple[bool, str]:
    if node is None:
        return False, ""
    entry = node.mapping(("labelled",), ("definition",))
    labelled = entry["labelled"].flag()
    if labelled and "response" not in sides:
        node.fail("refusals can only be labelled where responses are: 'response' is not among the sides")
    if labelled and "definition" not in entry:
        node.fail("the key 'definition' is missing")
    return labelled, entry["definition"].text() if "definition" in entry else ""


def _leaf(node: Node, severities: tuple[str, ...], categories: tuple[str, ...]) -> Leaf:
    entry = node.mapping(_LEAF_KEYS, _LEAF_EXTRAS)
    leaf = entry["id"].text()
    guidance = entry["guidance"].by_key(severities, "severity") if "guidance" in entry else {}
    return Leaf(
        id=leaf,
        category=entry["category"].one_of(categories, "category"),
        name=entry["name"].text(),
        definition=entry["definition"].text(),
        excludes=entry["excludes"].text() if "excludes" in entry else "",
        guidance={severity: item.text() for severity, item in guidance.items()},
        seeds=_seeds(entry["seeds"], leaf, severities),
        keywords=tuple(Keyword(item.text(), language) for language, item in _listed(entry.get("keywords"))),
        pairs=tuple(_pair(item, leaf, language) for language, item in _listed(entry.get("pairs"))),
        sketches=_sketches(entry.get("sketches")),
        style=entry["style"].flag() if "style" in entry else False,
    )


def _listed(node: Node | None) -> list[tuple[str, Node]]:
    """(language, item) of a mapping of languages to lists."""
    languages = node.by_language() if node else {}
    return [(language, item) for language, items in languages.items() for item in items.items()]


def _seeds(node: Node, leaf: str, severities: tuple[str, ...]) -> tuple[Seed, ...]:
    seeds: list[Seed] = []
    seen: dict[str, str] = {}
    for severity, per_language in node.by_key(severities, "severity").items():
        for language, item in _listed(per_language):
            text = item.text()
            if text in seen:
                item.fail(f"the same text as {seen[text]}")
            seen[text] = item.path
            seeds.append(
                Seed(row_id(leaf, "seed", [severity, language, text]), text, severity, language, leaf)
            )
    if not seeds:
        node.fail("a leaf needs seeds")
    return tuple(seeds)


def _pair(node: Node, leaf: str, language: str) -> Pair:
    entry = node.mapping(("violating", "benign"))
    violating, benign = entry["violating"].text(), entry["benign"].text()
    if violating == benign:
        node.fail("both texts of the pair are the same")
    return Pair(row_id(leaf, "pair", [language, violating, benign]), violating, benign, language, leaf)


def _sketches(node: Node | None) -> tuple[Sketch, ...]:
    sketches = []
    for language, item in (node.by_language() if node else {}).items():
        entry = item.mapping(("refusal", "benign", "violating"))
        texts = (entry["refusal"].text(), entry["benign"].text(), entry["violating"].text())
        sketches.append(Sketch(language, *texts))
    return tuple(sketches)


def _templates(node: Node) -> dict[str, str]:
    templates = {name: item.text() for name, item in node.mapping().items()}
    for name in templates:
        problem = check_template(templates, name)
        if problem:
            node.fail(problem)
    return templates
