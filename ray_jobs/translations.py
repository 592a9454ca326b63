"""translations: accepted prompts in further languages, checked (synth.translate), labels and groups carried over.

Locally the translator is apertium, a rule-based program, where it is installed; without it the step makes no rows, says
so, and the flow goes on. What a check rejects is kept with its reasons.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.step import Cut, Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.votes import SAMPLE
from synth.ids import row_id, stable_hash
from synth.policy import Policy
from synth.protect import protect, restore
from synth.translate import check_translation

REJECTED = table_schema(
    [
        pa.field("source_text", pa.string()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("reasons", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class TranslationsConfig:
    """`pairs` are (source, target) language codes; `share` of the source prompts are translated. `program` is the
    offline translator's version, empty where there is none: having one changes the step."""

    pairs: tuple[tuple[str, str], ...] = (("en", "es"),)
    share: float = 0.3
    program: str = ""


def apertium_version() -> str:
    """The installed apertium's version, or "" where there is none."""
    if shutil.which("apertium") is None:
        return ""
    told = subprocess.run(["apertium", "-V"], capture_output=True, text=True, check=False)
    return (told.stdout or told.stderr).strip().splitlines()[0]


def reads(policy: Policy, leaves: frozenset[str] | None) -> object:
    """The keywords of the rows' leaves, which may stay as they are."""
    known = [leaf for leaf in policy.leaves if leaves is None or leaf.id in leaves]
    return [[leaf.id, [keyword.text for keyword in leaf.keywords]] for leaf in known]


def step(config: TranslationsConfig) -> Step:
    tables = {"translations": SAMPLE, "translations_rejected": REJECTED}
    return Step("translations", run, config, tables, inputs=("votes",), reads=reads, cut=Cut(), cpus=1.5)


def run(work: Work) -> Output:
    """Translate the unit's share of prompts into every target language, and check each."""
    output = Output({"translations": [], "translations_rejected": []})
    if not work.config.program:
        return output
    rows = [row for row in work.rows["votes"].to_pylist() if row["side"] == "prompt" and not row["abstain"]]
    for source, target in work.config.pairs:
        chosen = [row for row in rows if row["language"] == source and wanted(row, target, work.config.share)]
        if not chosen:
            continue
        protected = [protect(row["prompt"]) for row in chosen]
        texts = apertium([text.text for text in protected], source, target)
        for row, mask, text in zip(chosen, protected, texts, strict=True):
            if text is None:
                output.failed.append(
                    Failed(row["id"], row["group_id"], f"apertium gave nothing for {target}")
                )
                continue
            place(work.policy, output, row, restore(text, mask.pieces)[0], source, target)
    return output


def wanted(row: dict[str, Any], target: str, share: float) -> bool:
    """Whether a row is in the translated share: decided by its group, so that twins go together."""
    return int(stable_hash("translate", target, row["group_id"])[:8], 16) / 16**8 < share


def place(policy: Policy, output: Output, row: dict[str, Any], text: str, source: str, target: str) -> None:
    """A translation into the table, or with the checks' findings among the rejected."""
    keywords: tuple[str, ...] = ()
    if row["leaf"]:
        keywords = tuple(keyword.text for keyword in policy.leaf(row["leaf"]).keywords)
    findings = check_translation(row["prompt"], text, source, target, keywords)
    common = {
        "id": row_id(row["id"], f"translation-{target}", ""),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        "language": target,
    }
    if findings:
        reasons = sorted({finding.reason for finding in findings})
        output.dropped.update(Counter(reasons[:1]))
        rejected: list[dict[str, Any]] = output.tables["translations_rejected"]  # type: ignore[assignment]
        rejected.append(common | {"source_text": row["prompt"], "text": text, "reasons": reasons})
        return
    kept: list[dict[str, Any]] = output.tables["translations"]  # type: ignore[assignment]
    carried = {name: value for name, value in row.items() if name != "digest"}
    kept.append(carried | common | {"prompt": text, "source": "translation"})


def apertium(texts: list[str], source: str, target: str) -> list[str | None]:
    """Translations in order, one line each; None where apertium gave nothing. Unknown words are not marked."""
    codes = {"en": "eng", "es": "spa", "pt": "por", "it": "ita", "fr": "fra", "ca": "cat"}
    lines = [" ".join(text.split()) for text in texts]
    told = subprocess.run(
        ["apertium", "-u", f"{codes[source]}-{codes[target]}"],
        input="\n\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.strip() or None for line in told.stdout.split("\n\n")]
    return found if len(found) == len(lines) else [None] * len(lines)
