"""Rendering a policy's templates: Jinja2 in its immutable sandbox; a name that is not there is an error.

Texts of rows only ever enter as values, so nothing that stands in them is evaluated. Which fields a template
may use is fixed here (FIELDS, described in docs/policy.md) and checked when the policy is loaded, not when
the first row arrives.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synth.errors import BadInput
from synth.policy_schema import LANGUAGES

if TYPE_CHECKING:
    from synth.policy_types import Policy

# Given to every template by `render`; a value that the caller gives wins.
SUPPLIED = frozenset(
    (
        "title",
        "answer_key",
        "severities",
        "mildest",
        "worst",
        "sides",
        "refusal_definition",
        "side",
        "categories",
        "refusal",
    )
)
_WRITER = frozenset(("leaf", "category", "severity", "guidance", "seeds", "language"))
_STYLE = frozenset(("leaf", "category", "style", "seeds", "text", "language"))
_CONTRAST = frozenset(("leaf", "category", "guidance", "pairs", "text", "language"))
FIELDS: dict[str, frozenset[str]] = {
    "writer_instruct": _WRITER,
    "writer_continuation": _WRITER,
    "keyword_instruct": _WRITER | {"keyword"},
    "keyword_continuation": _WRITER | {"keyword"},
    "contrast_instruct": _CONTRAST,
    "contrast_continuation": _CONTRAST,
    "style_instruct": _STYLE,
    "style_continuation": _STYLE,
    "follow_up_instruct": _WRITER | {"history"},
    "follow_up_continuation": _WRITER | {"history"},
    "respond_base": frozenset(("leaf", "severity", "language", "examples", "text")),
    "voter": frozenset(("conversation", "question")),
    "judge": frozenset(("conversation",)),
    "translator": frozenset(("source", "target", "text")),
    "translation_judge": frozenset(("source", "target", "text", "translation")),
    "moderation_full": frozenset(("conversation",)),
    "moderation_short": frozenset(("conversation",)),
    "refusal_policy": frozenset(),
}
_EVERY_FIELD = frozenset().union(*FIELDS.values())


def render(policy: "Policy", name: str, **values: Any) -> str:
    """The template `name` of the policy with `values` filled in (docs/policy.md lists the fields of each).

    Supplied when not given: the policy's own words (SUPPLIED), the categories and refusal flag of `side`
    (default: the policy's last side), and, from `leaf` and `severity`, `category` and `guidance`. Raises
    BadInput naming the template and the field for one that is missing or unknown.
    """
    where = f"{policy.source or policy.id}: templates.{name}"
    if name not in policy.templates:
        raise BadInput(f"{policy.source or policy.id}: templates: no template '{name}'")
    try:
        template = _environment(tuple(sorted(policy.templates.items()))).get_template(name)
        return template.render({**_supplied(policy, values), **values}).strip("\n")
    except jinja2.UndefinedError as error:
        raise BadInput(f"{where}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ZeroDivisionError, RecursionError, OverflowError) as error:
        raise BadInput(f"{where}: cannot be rendered: {error}") from error


def _supplied(policy: "Policy", values: Mapping[str, Any]) -> dict[str, Any]:
    side = values.get("side", policy.sides[-1])
    supplied = {
        "title": policy.title,
        "answer_key": policy.answer_key,
        "severities": policy.severities,
        "mildest": policy.mildest,
        "worst": policy.worst,
        "sides": policy.sides,
        "refusal_definition": policy.refusal_definition,
        "side": side,
        "categories": policy.categories_of(side),
        "refusal": policy.refusal and side == "response",
        "question": "severity",
    }
    leaf = values.get("leaf")
    if leaf is not None:
        severity = policy.severity(values.get("severity", policy.worst))
        supplied["category"] = policy.category(leaf.category)
        supplied["guidance"] = leaf.guidance.get(severity.name, severity.definition)
    return supplied


def with_includes(templates: Mapping[str, str], *names: str) -> tuple[str, ...]:
    """`names` and all that they include, directly or not, sorted: what a prompt's identity must cover."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name in templates:
            found.add(name)
            waiting += _included(templates[name])
    return tuple(sorted(found))


def check_template(templates: Mapping[str, str], name: str) -> str:
    """What is wrong with one template of a policy, as the end of a sentence; "" when nothing is."""
    allowed = FIELDS.get(name)
    if allowed is None and not name.startswith("_"):
        return f"{name}: unknown template: one of {', '.join(FIELDS)}, or a part whose name begins with '_'"
    try:
        _bare().parse(templates[name])
    except jinja2.TemplateSyntaxError as error:
        return f"{name}: line {error.lineno}: not a Jinja template: {error.message}"
    absent = [part for part in _included(templates[name]) if part not in templates]
    if absent:
        return f"{name}: includes '{absent[0]}', which does not stand beside it"
    known = SUPPLIED | (_EVERY_FIELD if allowed is None else allowed)
    used = {entry for part in with_includes(templates, name) for entry in _undeclared(templates[part])}
    if used - known:
        return f"{name}: unknown field '{min(used - known)}': one of {', '.join(sorted(known))}"
    return ""


def _undeclared(text: str) -> set[str]:
    """The fields that a template reads; a broken one is reported under its own name, not its includers'."""
    try:
        return meta.find_undeclared_variables(_bare().parse(text))
    except jinja2.TemplateSyntaxError:
        return set()


def _included(text: str) -> list[str]:
    try:
        return [str(part) for part in meta.find_referenced_templates(_bare().parse(text)) if part]
    except jinja2.TemplateSyntaxError:
        return []


def _language_name(code: str) -> str:
    """English name of a language code, for prompts."""
    if code not in LANGUAGES:
        raise jinja2.UndefinedError(f"unknown language '{code}'")
    return LANGUAGES[code]


@lru_cache(maxsize=1)
def _bare() -> jinja2.Environment:
    return _make(None)


@lru_cache(maxsize=8)
def _environment(templates: tuple[tuple[str, str], ...]) -> jinja2.Environment:
    return _make(jinja2.DictLoader(dict(templates)))


def _make(loader: jinja2.BaseLoader | None) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["language_name"] = _language_name
    return environment
