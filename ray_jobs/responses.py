"""responses: answers to the kept prompts, from as many roles as the recipe binds.

Instruct roles answer through their chat template; base roles continue a few exchanges of the leaf (that is what makes
them comply where an aligned model refuses); reasoning roles think first, and their thinking text is kept apart. Written
responses (sketches of the policy, imports) pass through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray_jobs.engine import Completion, Failure, Sampling
from ray_jobs.seeds import RESPONSE
from ray_jobs.step import Cut, Failed, Output, Step, Work
from synth.ids import row_id, seed_for, stable_hash
from synth.policy import Leaf, Policy, render
from synth.responses import is_refusal, split_thinking, tidy

ROLES = ("responder", "base_writer", "reasoner")


@dataclass(frozen=True)
class ResponsesConfig:
    """`share` of the prompts get responses from every bound role, `samples` each, or as many as `by_severity` says for
    prompts written for a severity: (("Unsafe", 3), …). Languages as for prompts."""

    languages: tuple[str, ...] = ("en",)
    share: float = 1.0
    samples: int = 1
    by_severity: tuple[tuple[str, int], ...] = ()
    min_words: int = 3
    sampling: Sampling = field(default=Sampling(max_tokens=48, temperature=0.8))


def reads(policy: Policy, leaves: frozenset[str] | None) -> object:
    """The continuation template and the sketches of the rows' leaves."""
    known = [leaf.id for leaf in policy.leaves if leaves is None or leaf.id in leaves]
    sketches = [[leaf, [vars(s) for s in policy.leaf(leaf).sketches]] for leaf in known]
    return [policy.slice_templates("respond_base"), sketches]


def step(config: ResponsesConfig) -> Step:
    return Step(
        "responses",
        run,
        config,
        {"responses": RESPONSE},
        inputs=("deduped", "written_responses"),
        roles=tuple(f"{role}?" for role in ROLES),
        reads=reads,
        cut=Cut(),
    )


def run(work: Work) -> Output:
    """Ask every bound role about the unit's prompts."""
    config: ResponsesConfig = work.config
    output = Output({"responses": []})
    kept: list[dict[str, Any]] = output.tables["responses"]  # type: ignore[assignment]
    if "written_responses" in work.rows:
        kept.extend(work.rows["written_responses"].to_pylist())
    rows = work.rows["deduped"].to_pylist() if "deduped" in work.rows else []
    chosen = [row for row in rows if wanted(row, config)]
    for role in (role for role in ROLES if role in work.engines.roles):
        often = dict(config.by_severity)
        asks = [(row, n) for row in chosen for n in range(often.get(row["intended"], config.samples))]
        if not asks:
            continue
        client = work.engines.get(role)
        prompts = [request(work.policy, client.model.kind, row) for row, _ in asks]
        seeds = [seed_for(work.seed, f"{row['id']}:{role}", sample) for row, sample in asks]
        for (row, sample), answer in zip(asks, client.generate(prompts, config.sampling, seeds), strict=True):
            collect(output, kept, row, role, sample, answer, config)
    return output


def wanted(row: dict[str, Any], config: ResponsesConfig) -> bool:
    """Whether a prompt is in the share that gets responses: decided by its group, so that twins go together."""
    if row["language"] not in config.languages:
        return False
    return int(stable_hash("responses", row["group_id"])[:8], 16) / 16**8 < config.share


def request(policy: Policy, kind: str, row: dict[str, Any]) -> Any:
    """What a role is asked: messages, or for a base model a continuation of the leaf's exchanges."""
    turns = [*row["history"], {"role": "user", "content": row["text"]}]
    if kind != "base" or not row["leaf"]:
        return turns
    leaf = policy.leaf(row["leaf"])
    return render(
        policy,
        "respond_base",
        leaf=leaf,
        severity=row["intended"],
        language=row["language"],
        examples=examples(policy, leaf, row["language"], row["text"]),
        text=row["text"],
    )


def examples(policy: Policy, leaf: Leaf, language: str, text: str) -> list[dict[str, str]]:
    """Exchanges in which the request is answered, from the leaf's own seeds and sketches."""
    shown = []
    seeds = [s for s in leaf.seeds if s.language == language and s.text != text]
    for sketch in (s for s in leaf.sketches if s.language == language):
        worst = [s.text for s in seeds if s.severity == policy.worst]
        mild = [s.text for s in seeds if s.severity == policy.mildest]
        shown += [{"prompt": prompt, "response": sketch.benign} for prompt in mild[:1]]
        shown += [{"prompt": prompt, "response": sketch.violating} for prompt in worst[:1]]
    return shown


def collect(
    output: Output,
    kept: list[dict[str, Any]],
    row: dict[str, Any],
    role: str,
    sample: int,
    answer: Completion | Failure,
    config: ResponsesConfig,
) -> None:
    """One answer into the table, the quarantine, or the count of dropped ones."""
    if isinstance(answer, Failure):
        output.failed.append(Failed(row["id"], row["group_id"], answer.reason, answer.raw))
        return
    parts = split_thinking(answer.text)
    text = tidy(parts.text.split("\nUser:")[0], answer.finish_reason)
    if parts.cut and not parts.thinking:
        output.dropped["thinking cut off"] += 1
        return
    if len(text.split()) < config.min_words and not parts.thinking:
        output.dropped["too short"] += 1
        return
    kept.append(
        {
            "id": row_id(row["id"], f"response-{role}", sample),
            "parent_id": row["id"],
            "group_id": row["group_id"],
            "prompt": row["text"],
            "history": row["history"],
            "text": text,
            "thinking": parts.thinking,
            "language": row["language"],
            "leaf": row["leaf"],
            "category": row["category"],
            "intended": row["intended"],
            "human": "",
            "refusal": is_refusal(text),
            "source": "generated",
            "role": role,
            "finish_reason": answer.finish_reason,
            "pair_id": "",
        }
    )


if __name__ == "__main__":
    from ray_jobs.job import main

    main("responses")
