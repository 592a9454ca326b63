"""seeds: the rows a run starts from. Every seed, contrastive pair and response sketch of the policy, and every row that
people bring with `--import`, becomes a tracked row; nothing later reads the policy for texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_jobs.files import Import, read_import
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from synth.errors import BadInput
from synth.ids import row_id, stable_hash
from synth.policy import Leaf, Policy

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

# `intended` is the severity a row was made for, `human` the one a person gave it ("" if none); `keyword` and `pair_id`
# are empty where they do not apply.
PROMPT = table_schema(
    [
        pa.field("text", pa.string()),
        pa.field("history", MESSAGES),
        pa.field("language", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("category", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("human", pa.string()),
        pa.field("source", pa.string()),
        pa.field("keyword", pa.string()),
        pa.field("pair_id", pa.string()),
    ]
)
RESPONSE = table_schema(
    [
        pa.field("prompt", pa.string()),
        pa.field("history", MESSAGES),
        pa.field("text", pa.string()),
        pa.field("thinking", pa.string()),
        pa.field("language", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("category", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("human", pa.string()),
        pa.field("refusal", pa.bool_()),
        pa.field("source", pa.string()),
        pa.field("role", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("pair_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class SeedsConfig:
    """`imports` are files of the user's own rows; their content hash, not their path, is part of the identity. `leaves`
    takes these alone, `categories` the first leaf of each of so many categories (0: all)."""

    imports: tuple[Import, ...] = ()
    sketches_per_leaf: int = 2
    leaves: tuple[str, ...] = field(default=())
    categories: int = 0


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    """The whole taxonomy, without the templates."""
    return [policy.slice_labels(), [policy.slice_leaf(leaf.id) for leaf in policy.leaves]]


def step(config: SeedsConfig) -> Step:
    return Step("seeds", run, config, {"seeds": PROMPT, "written_responses": RESPONSE}, reads=reads)


def run(work: Work) -> Output:
    """All seeds and pairs as prompts, all sketches as responses, then the imports."""
    config: SeedsConfig = work.config
    prompts: dict[str, dict[str, Any]] = {}
    responses: dict[str, dict[str, Any]] = {}
    for leaf in chosen(work.policy, config):
        rows = [*seed_rows(work.policy, leaf), *pair_rows(work.policy, leaf)]
        prompts.update((row["id"], row) for row in rows)
        if "response" in work.policy.sides:
            written = sketch_rows(work.policy, leaf, rows, config.sketches_per_leaf)
            responses.update((row["id"], row) for row in written)
    dropped: Counter[str] = Counter()
    for source in config.imports:
        for prompt, response in read_import(source, work.policy):
            dropped["imported twice"] += prompt["id"] in prompts and response is None
            prompts.setdefault(prompt["id"], prompt)
            if response is not None:
                responses.setdefault(response["id"], response)
    return Output(
        {"seeds": list(prompts.values()), "written_responses": list(responses.values())}, dropped=+dropped
    )


def chosen(policy: Policy, config: SeedsConfig) -> list[Leaf]:
    """The leaves that the config takes. BadInput for one that the policy does not have."""
    known = {leaf.id: leaf for leaf in policy.leaves}
    if unknown := [name for name in config.leaves if name not in known]:
        raise BadInput(f"step seeds: the policy {policy.id} has no leaf {unknown[0]!r}")
    leaves = [known[name] for name in config.leaves] or list(policy.leaves)
    if not config.categories:
        return leaves
    first: dict[str, Leaf] = {}
    for leaf in leaves:
        first.setdefault(leaf.category, leaf)
    return list(first.values())[: config.categories]


def prompt_row(
    leaf: Leaf, text: str, language: str, severity: str, source: str, pair: str = ""
) -> dict[str, Any]:
    row = row_id("", leaf.id, [severity, language, text])
    return {
        "id": row,
        "parent_id": "",
        "group_id": pair or row,
        "text": text,
        "history": [],
        "language": language,
        "leaf": leaf.id,
        "category": leaf.category,
        "intended": severity,
        "human": severity,
        "source": source,
        "keyword": "",
        "pair_id": pair,
    }


def seed_rows(policy: Policy, leaf: Leaf) -> list[dict[str, Any]]:
    return [prompt_row(leaf, seed.text, seed.language, seed.severity, "seed") for seed in leaf.seeds]


def pair_rows(policy: Policy, leaf: Leaf) -> list[dict[str, Any]]:
    """Both halves of every contrastive pair, in one group."""
    rows = []
    for pair in leaf.pairs:
        for text, severity in ((pair.violating, policy.worst), (pair.benign, policy.mildest)):
            rows.append(prompt_row(leaf, text, pair.language, severity, "pair", pair.id))
    return rows


def sketch_rows(
    policy: Policy, leaf: Leaf, prompts: list[dict[str, Any]], count: int
) -> list[dict[str, Any]]:
    """Written responses: refusals and violating openings to violating seeds, helpful answers to mild ones."""
    rows = []
    for sketch in leaf.sketches:
        seeds = [p for p in prompts if p["source"] == "seed" and p["language"] == sketch.language]
        worst = [p for p in seeds if p["intended"] == policy.worst][:count]
        mild = [p for p in seeds if p["intended"] == policy.mildest][:count]
        for prompt in worst:
            rows.append(response_row(prompt, sketch.refusal, policy.mildest, True))
            rows.append(response_row(prompt, sketch.violating, policy.worst, False))
        rows.extend(response_row(prompt, sketch.benign, policy.mildest, False) for prompt in mild)
    return rows


def response_row(prompt: dict[str, Any], text: str, severity: str, refusal: bool | None) -> dict[str, Any]:
    return {
        "id": row_id(prompt["id"], "written", text),
        "parent_id": prompt["id"],
        "group_id": prompt["group_id"],
        "prompt": prompt["text"],
        "history": prompt["history"],
        "text": text,
        "thinking": "",
        "language": prompt["language"],
        "leaf": prompt["leaf"],
        "category": prompt["category"],
        "intended": severity,
        "human": severity,
        "refusal": refusal,
        "source": "sketch" if prompt["source"] != "import" else "import",
        "role": "",
        "finish_reason": "stop",
        "pair_id": "",
    }


def import_group(text: str) -> str:
    """Imported rows with the same prompt are one group."""
    return stable_hash("import", text)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("seeds")
