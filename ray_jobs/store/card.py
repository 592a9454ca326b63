"""The data card of a pulled version: what it is, how it was made, what it holds, and its known limits."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_jobs.store.lineage import all_inputs
from ray_jobs.store.provenance import TableVersion

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

_SUFFIXES = {"parquet": "parquet", "jsonl": "jsonl"}
_DESCRIBING = ("side", "language", "severity", "intended", "origin", "source", "outcome", "reason")
_VALUES = 20  # a card is read by people


def data_card(store: "Store", at: TableVersion, schema: pa.Schema, manifest: dict[str, Any]) -> str:
    """Markdown with a YAML header that `datasets.load_dataset(FOLDER)` understands."""
    made = at.provenance
    before = [v.provenance for v in all_inputs(store, at)]
    models = sorted({(role, name) for one in (made, *before) for role, name in one.models.items()})
    named = "\n".join(f"- {_code(role)}: {_code(name)}" for role, name in models) or "- none"
    parts = [part for part in manifest["files"] if "first_row" in part]
    origin = f"- copied from: {_code(made.origin)}\n" if made.origin else ""
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

{at.rows} rows in {len(parts)} {manifest["format"]} files, made by step {_code(made.step)} of
guardmill at {made.created}. `manifest.json` has the sha256 of every file and the whole provenance.

## How it was made
{origin}- step identity: {_code(made.identity)}
- policy: {_code(made.policy_hash)}
- code: {_code(made.code_revision)}
- cost: {made.calls} model calls, {made.tokens} tokens, {made.seconds:.1f} s

Inputs:
{inputs}

Models that had a part in these rows, here or in a step before, by role, with what names their weights:
{named}

Configuration:
```json
{json.dumps(made.config, ensure_ascii=False, indent=1, sort_keys=True).replace("```", "'''")}
```

## Counts
{chr(10).join(counts)}
{_by_value(store, at, schema)}
## Columns
| column | type |
|---|---|
{columns}

`id` is a hash of the parent's id, the kind of row and its content; `parent_id` is the row it was made from;
`group_id` is the root seed: split by it, never by row, or twins and translations straddle the split. `digest`
is a hash of all other columns.

## Licences
The rows are generated or imported, and no licence travels with them. What binds: the licences and terms of the
models above for what they wrote, those of imported sources (`source` is `import`) for theirs, and Apache-2.0 for
the texts of a policy that came with guardmill. Nobody has cleared them for you.

## Known limits
Labels come from models and rules, checked against a small gold set, and some are wrong. Texts are synthetic
unless a source was imported. They are made to train and test safeguards: some ask for harmful things.
"""


def _by_value(store: "Store", at: TableVersion, schema: pa.Schema) -> str:
    """How many rows have each value of the columns that describe a row."""
    lines = []
    for name in (name for name in _DESCRIBING if name in schema.names):
        counted: Counter[str] = Counter()
        for batch in store.batches(at.ref, columns=[name]):
            counted.update(str(value) for value in batch.column(0).to_pylist())
        common = counted.most_common(_VALUES)
        rest = len(counted) - len(common)
        told = ", ".join(f"{_code(value)} {count}" for value, count in common)
        lines.append(f"- {name}: {told}{f', and {rest} more values' if rest else ''}" if told else "")
    return "\n".join(line for line in lines if line)


def _code(text: str) -> str:
    """Text as inline code, on one line and without control characters: generated text stays data."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return "`" + (" ".join(printable.split()).replace("`", "'") or "none") + "`"
