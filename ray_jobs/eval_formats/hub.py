"""A file of a dataset on the Hugging Face hub, fetched once at a fixed commit: `hub:OWNER/NAME/PATH@COMMIT`."""

from __future__ import annotations

import re

from synth.errors import BadInput

PREFIX = "hub:"
NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)/([^@]+)@([0-9a-f]{40})")


def local(path: str) -> str:
    """The path of a local file: the file itself, or the hub's in its cache. BadInput where it cannot be had."""
    if not path.startswith(PREFIX):
        return path
    named = NAME.fullmatch(path)
    if named is None or ".." in named[2].split("/"):
        form = f"{PREFIX}OWNER/NAME/PATH@COMMIT, with all 40 digits of the commit"
        raise BadInput(f"{path}: a file of the hub is named {form}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, file, commit = named.groups()
    try:
        return hf_hub_download(repository, file, repo_type="dataset", revision=commit)
    except (
        OSError,
        ValueError,
        EntryNotFoundError,
    ) as problem:  # what the hub's client raises is one of these
        raise BadInput(f"{path}: cannot be fetched ({str(problem).strip().splitlines()[0]})") from None
