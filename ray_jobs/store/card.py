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
_ALWAYS = """`id` is a hash of the parent's id, the kind of row and its content; `parent_id` is the row it was made
from; `group_id` is the root seed: split by it, never by row, or twins and translations straddle the split. `digest`
is a hash of all other columns.

## Licences
The rows are generated or imported, and no licence travels with them. What binds: the licences and terms of the
models above for what they wrote, those of imported sources (`source` is `import`) for theirs, and Apache-2.0 for
the texts of a policy that came with guardmill. Nobody has cleared them for you.

## Known limits
Labels come from models and rules, checked against a small gold set, and some are wrong. Texts are synthetic
unless a source was imported. They are made to train and test safeguards: some ask for harmful things.
"""


def data_card(store: "Store", at: TableVersion, schema: pa.Schema, manifest: dict[str, Any]) -> str:
    """Markdown with a YAML header that `datasets.load_dataset(FOLDER)` understands."""
    parts = [part for part in manifest["files"] if "first_row" in part]
    made = at.provenance
    title = f"""# {at.ref}

{at.rows} rows in {len(parts)} {manifest["format"]} files, made by step {_code(made.step)} of
guardmill at {made.created}. `manifest.json` has the sha256 of every file and the whole provenance."""
    sections = (_making(store, at), _counts(store, at, schema), _columns(schema), _ALWAYS)
    return f"{_header(at, manifest['format'])}\n{title}\n\n" + "\n\n".join(sections)


def _header(at: TableVersion, kind: str) -> str:
    """What `datasets` reads."""
    lines = [f"pretty_name: {json.dumps(at.ref)}"]
    if kind in _SUFFIXES:
        files = json.dumps(f"data/*.{_SUFFIXES[kind]}")
        lines += ["configs:", "- config_name: default", f"  data_files: {files}"]
    return "\n".join(["---", *lines, "---"])


def _making(store: "Store", at: TableVersion) -> str:
    """Step, inputs, models and configuration."""
    made = at.provenance
    before = [version.provenance for version in all_inputs(store, at)]
    models = sorted({(role, name) for one in (made, *before) for role, name in one.models.items()})
    origin = f"- copied from: {_code(made.origin)}\n" if made.origin else ""
    config = json.dumps(made.config, ensure_ascii=False, indent=1, sort_keys=True).replace("```", "'''")
    return f"""## How it was made
{origin}- step identity: {_code(made.identity)}
- policy: {_code(made.policy_hash)}
- code: {_code(made.code_revision)}
- cost: {made.calls} model calls, {made.tokens} tokens, {made.seconds:.1f} s

Inputs:
{_listed(sorted(made.inputs.items()))}

Models that had a part in these rows, here or in a step before, by role, with what names their weights:
{_listed(models)}

Configuration:
```json
{config}
```"""


def _listed(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {_code(name)}: {_code(value)}" for name, value in pairs) or "- none"


def _counts(store: "Store", at: TableVersion, schema: pa.Schema) -> str:
    """Rows in and out, what was dropped and why, and the values of the describing columns."""
    counts = at.provenance.counts
    lines = [f"- rows here: {at.rows}"]
    lines += [f"- rows {key}: {counts[key]}" for key in ("in", "out", "failed") if key in counts]
    dropped = counts.get("dropped") or {}
    lines += [f"- dropped, {_code(reason)}: {n}" for reason, n in sorted(dropped.items())]
    return "\n".join(["## Counts", *lines, _by_value(store, at, schema)]).rstrip()


def _columns(schema: pa.Schema) -> str:
    columns = "\n".join(f"| {_code(f.name)} | {_code(str(f.type))} |" for f in schema)
    return f"## Columns\n| column | type |\n|---|---|\n{columns}"


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
