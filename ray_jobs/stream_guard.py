"""stream_guard: the streaming guard, its heads trained on prompts' labels and on token labels (train.stream_task)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_jobs.gen_guard import GuardConfig, backbone, balanced, chosen, train
from ray_jobs.step import Output, Step, Work
from ray_jobs.step.artifacts import CHECKPOINT
from ray_jobs.token_labels import parts
from ray_jobs.voters import side_categories
from synth.policy import Policy


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    return policy.slice_labels()


def step(config: GuardConfig) -> Step:
    return Step(
        "stream_guard",
        run,
        config,
        {"stream_guard": CHECKPOINT},
        sides=("distilled", "token_labels"),
        roles=("backbone",),
        reads=reads,
        trains=True,
    )


def run(work: Work) -> Output:
    """Train the guard and its control; their checkpoints are the step's rows."""
    from ray_jobs.train_stream import train_stream
    from train.stream_task import StreamConfig

    policy = work.policy
    rows = chosen(work.read("distilled").to_pylist(), work.config.rows)
    onsets = {
        (row["parent_id"], row["part"]): row["onset"]
        for row in work.read("token_labels").to_pylist()
        if row["onset"] is not None
    }
    examples = [
        example | balanced(row, work.config)
        for row in rows
        for example in stream_examples(policy, row, onsets)
    ]
    fields: dict[str, Any] = {**label_maps(policy), **work.config.training()}
    config = StreamConfig(backbone=backbone(work), seed=work.seed, **fields)
    return train(work, "stream_guard", train_stream, examples, config)


def label_maps(policy: Policy) -> dict[str, tuple[str, ...]]:
    """The head's classes in the policy's words: risks by how they violate, category names per branch."""
    by_reading = {
        kind: tuple(s.name for s in policy.severities if s.violating == kind)
        for kind in ("never", "strict", "always")
    }
    names = {category.id: category.name for category in policy.categories}
    return {
        "risks": (*by_reading["never"], *by_reading["always"], *by_reading["strict"]),
        "safe": by_reading["never"],
        "strict": by_reading["always"] + by_reading["strict"],
        "loose": by_reading["always"],
        "response_categories": tuple(names[c] for c in side_categories(policy, "response")),
        "query_categories": tuple(names[c] for c in side_categories(policy, "prompt")),
    }


def stream_examples(
    policy: Policy, row: dict[str, Any], onsets: dict[tuple[str, str], int]
) -> Iterator[dict[str, Any]]:
    """A prompt trains the query branch; a response the response branch, its thinking text and its answer each by
    itself, as they were labelled: safe ones throughout, flagged ones from the labelled onset on.

    A flagged text without an onset trains nothing.
    """
    names = {category.id: category.name for category in policy.categories}
    category = names[row["categories"][0]] if row["categories"] else None
    common = {
        "id": row["id"],
        "group_id": row["group_id"],
        "prompt": row["prompt"],
        "history": row["history"],
    }
    if row["side"] == "prompt":
        yield common | {"query_risk": row["severity"], "query_category": category}
        return
    flagged = row["severity"] != policy.mildest
    for part in parts(row):
        onset = onsets.get((row["id"], part.name))
        if part.text and not (flagged and onset is None):
            yield common | {
                "response": part.text,
                "response_risk": row["severity"],
                "response_category": category,
                "onset": onset if flagged else None,
            }


if __name__ == "__main__":
    from ray_jobs.job import main

    main("stream_guard")
