"""What a table version carries about itself, and the errors of the store.

The record travels as JSON in the schema metadata of the version (key `guardmill`): rows and provenance become
visible in the same commit, and neither can be had without the other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

METADATA_KEY = b"guardmill"


class StoreError(RuntimeError):
    """Storage refused or holds something broken: one sentence for the command line, exit code 1."""


class Busy(StoreError):
    """Another run holds the root."""


class Overtaken(StoreError):
    """Another writer committed first, to a table that must not have changed."""


@dataclass(frozen=True)
class Provenance:
    """Who made a version, from what, and at what price.

    `inputs` maps the name a step gives an input to its exact version, "prompts@v3" ("ROOT#prompts@v3" when it
    stayed in another store). `models` maps roles to what names their weights. `counts` holds rows "in", "out" and
    "failed", and under "dropped" a dict from reason to rows. `usage` holds calls and tokens by role ("cached":
    calls that the request cache answered, in none of the sums). `seconds` is wall time; `created` is UTC in ISO form
    and is filled in by the commit when empty. `same_as` is the version of this table whose rows these are, stored
    in other files; `origin` is where a pushed version came from, "ROOT#prompts@v3".
    """

    step: str
    identity: str
    config: dict[str, Any] = field(default_factory=dict)
    policy_hash: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    code_revision: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    usage: dict[str, dict[str, int]] = field(default_factory=dict)
    created: str = ""
    models: dict[str, str] = field(default_factory=dict)
    same_as: str = ""
    origin: str = ""

    def stamped(self) -> "Provenance":
        """The same record with `created` set to now, unless it says when already."""
        return self if self.created else replace(self, created=utc_now())

    def to_json(self) -> str:
        """JSON with sorted keys. TypeError when `config` or `counts` hold what JSON cannot."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Reads `to_json`; keys this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.loads(text).items() if key in known})


@dataclass(frozen=True)
class TableVersion:
    """One committed version of a table: its rows, how it was made, and the tags it bears now."""

    name: str
    version: int
    rows: int
    provenance: Provenance
    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """The exact name, "prompts@v3"."""
        return f"{self.name}@v{self.version}"

    @property
    def content_ref(self) -> str:
        """The exact name of the first version with these rows: compacting gives a new version, not new content."""
        return self.provenance.same_as or self.ref


def utc_now() -> str:
    """The time to the second, in UTC, ISO form."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turns what lance, arrow and the file system raise into one sentence: "cannot `action`: why"."""
    from synth.errors import BadInput

    try:
        yield
    except (StoreError, BadInput):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"cannot {action}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The cause in one line, without the source positions that Lance appends."""
    text = " ".join(str(error).split())
    if getattr(error, "errno", None) == 28 or "No space left" in text or "os error 28" in text:
        return "no space left on the device"
    return text.split(", /")[0].split(", location:")[0][:300] or type(error).__name__
