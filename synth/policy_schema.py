"""Reading a YAML file so that every mistake becomes one sentence with its place inside the file.

`read_yaml` gives plain dicts, lists and *strings*: YAML's guesses (`no` as false, 1984 as a number, dates)
are off, for a policy is made of words, and a repeated key is an error, where YAML would silently keep the
last. libyaml recurses as deep as the file says and takes the process with it, so depth is counted on the
event stream first. `Node` walks the result and knows its own path, such as `policy.yaml:
leaves[3].seeds.Bad`.
"""

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from synth.errors import BadInput

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 20  # levels; a policy needs six

_NAMES = """
af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, be Belarusian, bg Bulgarian,
bn Bengali, bo Tibetan, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek,
en English, eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fo Faroese,
fr French, fy Frisian, ga Irish, gd Scottish Gaelic, gl Galician, gu Gujarati, ha Hausa, he Hebrew,
hi Hindi, hr Croatian, ht Haitian Creole, hu Hungarian, hy Armenian, id Indonesian, ig Igbo,
is Icelandic, it Italian, ja Japanese, jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada,
ko Korean, ku Kurdish, ky Kyrgyz, la Latin, lb Luxembourgish, lo Lao, lt Lithuanian, lv Latvian,
mg Malagasy, mi Maori, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese,
my Burmese, nb Norwegian Bokmål, ne Nepali, nl Dutch, nn Norwegian Nynorsk, no Norwegian, oc Occitan,
or Odia, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian, ru Russian, rw Kinyarwanda,
sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, sl Slovenian, sn Shona, so Somali, sq Albanian,
sr Serbian, st Sesotho, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik, th Thai,
ti Tigrinya, tk Turkmen, tl Tagalog, tn Tswana, tr Turkish, ts Tsonga, tt Tatar, ug Uyghur,
uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, zh Chinese,
zu Zulu,
"""
LANGUAGES: dict[str, str] = {
    entry[:2]: entry[3:] for entry in _NAMES.replace(",\n", ", ").strip().split(", ")
}


def shown(path: Path) -> str:
    """The path as people see it: relative when it lies below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


class _WordsLoader(_Base):  # type: ignore[misc]
    """A safe loader for which every plain scalar is text and a repeated key is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node.value, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a word", key_node.start_mark
                )
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """The file's text. Raises BadInput when it is missing, unreadable, or not UTF-8 (naming the line)."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadInput(f"{shown(path)}: line {line}: not UTF-8 (byte 0x{raw[error.start]:02x})") from error


def read_yaml(path: Path) -> "Node":
    """The root node of a YAML file. Raises BadInput for what is not YAML, with the line."""
    text = read_text(path)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_WordsLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise BadInput(f"{shown(path)}: line {event.start_mark.line + 1}: nested too deeply")
        value = yaml.load(text, Loader=_WordsLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadInput(
            f"{shown(path)}: {where}not readable as YAML: {error.problem or error.context}"
        ) from error
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", None) or error
        raise BadInput(f"{shown(path)}: not readable as YAML: {reason}") from error
    if value is None or value == "":
        raise BadInput(f"{shown(path)}: the file is empty")
    return Node(shown(path), "", value)


@dataclass(frozen=True)
class Node:
    """A value of the file and its path. Methods give the checked value or raise BadInput naming it."""

    file: str
    path: str
    value: Any

    def fail(self, message: str) -> NoReturn:
        raise BadInput(f"{self.file}: {self.path}: {message}" if self.path else f"{self.file}: {message}")

    def mapping(self, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, "Node"]:
        """The children by key, in the file's order; with keys given, no others may stand there."""
        if not isinstance(self.value, dict):
            self.fail(f"expected keys with values, found {_kind(self.value)}")
        known = (*required, *optional)
        for key in self.value:
            if known and key not in known:
                near = get_close_matches(key, known, 1)
                self.fail(f"unknown key '{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        for key in required:
            if key not in self.value:
                self.fail(f"the key '{key}' is missing")
        prefix = f"{self.path}." if self.path else ""
        return {key: Node(self.file, prefix + key, value) for key, value in self.value.items()}

    def items(self) -> Iterator["Node"]:
        """The children of a list, which must not be empty."""
        if not isinstance(self.value, list):
            self.fail(f"expected a list, found {_kind(self.value)}")
        if not self.value:
            self.fail("the list is empty")
        return (Node(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.value))

    def text(self) -> str:
        """A string that is more than blanks, without blanks around it."""
        return self.raw_text().strip()

    def raw_text(self) -> str:
        """The same with its blanks: where offsets into the text count."""
        if not isinstance(self.value, str):
            self.fail(f"expected a text, found {_kind(self.value)}")
        if not self.value.strip():
            self.fail("the text is empty")
        if any("\ud800" <= char <= "\udfff" for char in self.value):
            self.fail("the text holds half of a surrogate pair, which no UTF-8 file can keep")
        return self.value

    def name(self) -> str:
        """A text that can be read back out of an answer: one line, no comma, no colon, not None."""
        text = self.text()
        if any(mark in text for mark in ",:\n") or text.lower() == "none":
            self.fail(
                f"the name '{text}' cannot be read back from an answer: no comma, colon, line break or None"
            )
        return text

    def flag(self) -> bool:
        if self.value not in ("true", "false"):
            self.fail("expected true or false")
        return bool(self.value == "true")

    def one_of(self, known: tuple[str, ...], what: str) -> str:
        text = self.text()
        if text not in known:
            self.fail(f"unknown {what} '{text}': one of {', '.join(known)}")
        return text

    def by_key(self, known: tuple[str, ...], what: str) -> dict[str, "Node"]:
        """A mapping whose keys are all known things, such as severities."""
        children = self.mapping()
        for key, child in children.items():
            if key not in known:
                child.fail(f"unknown {what} '{key}': one of {', '.join(known)}")
        return children

    def by_language(self) -> dict[str, "Node"]:
        children = self.mapping()
        for key, child in children.items():
            child.language(key)
        return children

    def language(self, code: str) -> str:
        if code not in LANGUAGES:
            self.fail(f"unknown language '{code}': an ISO 639-1 code such as en or zh")
        return code


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "keys with values", list: "a list", str: "a text", bool: "true or false"}
    return "nothing" if value is None or value == "" else kinds.get(type(value), "a number")
