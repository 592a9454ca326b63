"""Versions of tables: where they lie, what they are called, which of them a reference means.

A version's number is Lance's own: every commit is one Overwrite, and tags live beside the versions, so
numbers are consecutive. A reference is "prompts" (newest), "prompts@v3" or "prompts@tag".
"""

import os
import re
from typing import Any

import pyarrow as pa

from ray_jobs.store.provenance import METADATA_KEY, Provenance, StoreError, TableVersion, storage_errors
from ray_jobs.store.root import Root
from synth.errors import BadInput

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_FOLDER = "tables"


def lance_module() -> Any:
    """Lance, imported when first used (0.2 s), logging errors only unless LANCE_LOG says otherwise."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lance

    return lance


def folder(name: str) -> str:
    """The table's folder inside the root. BadInput for a name with other characters than a-z, 0-9, _."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no table name: lower-case letters, digits and _, at most 64, a letter first"
        )
    return f"{_FOLDER}/{name}.lance"


def names(root: Root) -> list[str]:
    """Tables with at least one version, sorted."""
    found = [
        i.base_name.removesuffix(".lance") for i in root.listing(_FOLDER) if i.base_name.endswith(".lance")
    ]
    return [name for name in found if _NAME.fullmatch(name) and exists(root, name)]


def exists(root: Root, name: str) -> bool:
    """Whether the table has a version."""
    return bool(root.listing(f"{folder(name)}/_versions"))


def open_table(root: Root, name: str, version: int | None = None) -> Any:
    """The Lance dataset, at `version` or the newest. BadInput for an unknown table."""
    if not exists(root, name):
        known = ", ".join(names(root)) or "none"
        raise BadInput(f"there is no table {name} under {root.address} (tables: {known})")
    with storage_errors(f"open table {name} under {root.address}"):
        return lance_module().dataset(
            root.uri(folder(name)), version=version, storage_options=root.storage_options
        )


def describe(root: Root, name: str, version: int, tags: dict[str, int]) -> TableVersion:
    """Rows, provenance and tags of one version."""
    dataset = open_table(root, name, version)
    record = (dataset.schema.metadata or {}).get(METADATA_KEY)
    if record is None:
        raise StoreError(
            f"{name}@v{version} under {root.address} was not written by guardmill: no provenance"
        )
    mine = tuple(sorted(tag for tag, at in tags.items() if at == version))
    return TableVersion(name, version, dataset.count_rows(), Provenance.from_json(record.decode()), mine)


def version_numbers(root: Root, name: str) -> list[int]:
    """Versions there are, ascending."""
    return sorted(v["version"] for v in open_table(root, name).versions())


def tags_of(root: Root, name: str) -> dict[str, int]:
    """Tag to version."""
    return {tag: entry["version"] for tag, entry in open_table(root, name).tags.list().items()}


def resolve(root: Root, ref: str) -> TableVersion:
    """The version that "prompts" (newest), "prompts@v3" or "prompts@tag" means. BadInput if none."""
    name, at, which = ref.partition("@")
    tags = tags_of(root, name)
    if not at:
        return describe(root, name, open_table(root, name).version, tags)
    if which in tags:
        return describe(root, name, tags[which], tags)
    present = version_numbers(root, name)
    if re.fullmatch(r"v[1-9][0-9]*", which) and int(which[1:]) in present:
        return describe(root, name, int(which[1:]), tags)
    raise BadInput(f"there is no {ref}: table {name} has versions {_ranges(present)}{_tag_list(tags)}")


def set_tag(root: Root, ref: str, tag: str) -> TableVersion:
    """Points `tag` at the version `ref` means, moving it when it exists."""
    if not _TAG.fullmatch(tag) or re.fullmatch(r"v[0-9]+", tag):
        raise BadInput(f"{tag!r} is no tag: letters, digits and . _ -, a letter first, and not like v3")
    at = resolve(root, ref)
    tags = open_table(root, at.name).tags
    with storage_errors(f"tag {at.ref} as {tag}"):
        (tags.update if tag in tags.list() else tags.create)(tag, at.version)
    return resolve(root, at.ref)


def remove_tag(root: Root, name: str, tag: str) -> None:
    """Takes a tag off its version. BadInput when there is no such tag."""
    if tag not in tags_of(root, name):
        raise BadInput(f"table {name} has no tag {tag}{_tag_list(tags_of(root, name))}")
    with storage_errors(f"remove tag {tag} of table {name}"):
        open_table(root, name).tags.delete(tag)


def known_columns(ref: str, schema: pa.Schema, columns: list[str] | None) -> None:
    """BadInput naming a column that the version does not have."""
    unknown = [c for c in columns or [] if c not in schema.names]
    if unknown:
        raise BadInput(f"{ref} has no column {unknown[0]} (columns: {', '.join(schema.names)})")


def _tag_list(tags: dict[str, int]) -> str:
    return f" and tags {', '.join(sorted(tags))}" if tags else ""


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 5] as "v1..v3, v5"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"v{a}" if a == b else f"v{a}..v{b}" for a, b in zip(starts, ends, strict=True))
