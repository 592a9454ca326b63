"""The data card of a pulled version: what it is, how it was made, what it holds, and its known limits."""

import json
from typing import Any

import pyarrow as pa

from ray_jobs.store.provenance import TableVersion

_SUFFIXES = {"parquet": "parquet", "jsonl": "jsonl"}


def data_card(at: TableVersion, schema: pa.Schema, manifest: dict[str, Any]) -> str:
    """Markdown with a YAML header that `datasets.load_dataset(FOLDER)` understands."""
    made = at.provenance
    header = [f"pretty_name: {json.dumps(at.ref)}"]
    if manifest["format"] in _SUFFIXES:
        files = f"data/*.{_SUFFIXES[manifest['format']]}"
        header += ["configs:", "- config_name: default", f"  data_files: {json.dumps(files)}"]
    inputs = (
        "\n".join(f"- {_code(name)}: {_code(ref)}" for name, ref in sorted(made.inputs.items())) or "- none"
    )
    columns = "\n".join(f"| {_code(f.name)} | {_code(str(f.type))} |" for f in schema)
    dropped = made.counts.get("dropped") or {}
    counts = [f"- rows here: {at.rows}"]
    counts += [f"- rows {key}: {made.counts[key]}" for key in ("in", "out", "failed") if key in made.counts]
    counts += [f"- dropped, {_code(reason)}: {n}" for reason, n in sorted(dropped.items())]
    return f"""---
{chr(10).join(header)}
---
# {at.ref}

{at.rows} rows in {len(manifest["files"])} {manifest["format"]} files, made by step {_code(made.step)} of
guardmill at {made.created}. `manifest.json` has the sha256 of every file and the whole provenance.

## How it was made
- step identity: {_code(made.identity)}
- policy: {_code(made.policy_hash)}
- code: {_code(made.code_revision)}
- cost: {made.calls} model calls, {made.tokens} tokens, {made.seconds:.1f} s

Inputs:
{inputs}

Configuration:
```json
{json.dumps(made.config, ensure_ascii=False, indent=1, sort_keys=True).replace("```", "'''")}
```

## Counts
{chr(10).join(counts)}

## Columns
| column | type |
|---|---|
{columns}

`id` is a hash of the parent's id, the kind of row and its content; `parent_id` is the row it was made from;
`group_id` is the root seed: split by it, never by row, or twins and translations straddle the split. `digest`
is a hash of all other columns.

## Licences
The rows are generated or imported; no licence travels with them. The licences of the models and the imported
sources named in the configuration apply.

## Known limits
Labels come from models and rules, checked against a small gold set, and some are wrong. Texts are synthetic
unless a source was imported. They are made to train and test safeguards: some ask for harmful things.
"""


def _code(text: str) -> str:
    """Text as inline code, on one line and without control characters: generated text stays data."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return "`" + (" ".join(printable.split()).replace("`", "'") or "none") + "`"
