"""rl_prompts: what the policy is trained on (METHOD.md §8). It answers every prompt several times, in each of its
modes; the guard judges thinking and answer; a prompt whose answers are all safe, or all not, teaches nothing and is
dropped.

Groups are split into `train` and `test` by a stable draw; prompts of the test part are kept without sampling, for the
evaluation. Every sample and its verdicts are in `rl_samples`. A sample without an answer or a verdict is no evidence of
either kind: it is counted, and a prompt left with fewer than two judged samples is dropped for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ray_jobs.engine import Failure, Sampling
from ray_jobs.rl_judge import JudgeConfig, verdicts
from ray_jobs.seeds import MESSAGES
from ray_jobs.step import Cut, Failed, Output, Step, Work
from ray_jobs.store import Store, TableVersion, table_schema
from synth.errors import BadInput
from synth.ids import row_id, seed_for, stable_hash
from synth.policy import Policy
from train.reward_adapters import Judge
from train.rewards import Judged, is_safe, mixed_prompts
from train.rl_prompt import marker_in, policy_prompt, thinks

RL_PROMPT = table_schema(
    [
        pa.field("messages", MESSAGES),
        pa.field("thinking", pa.bool_()),
        pa.field("split", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("language", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("safe", pa.int64()),
        pa.field("judged", pa.int64()),
    ]
)
RL_SAMPLE = table_schema(
    [
        pa.field("text", pa.string()),
        pa.field("thinking", pa.bool_()),
        pa.field("safe", pa.bool_()),
        pa.field("answer_severity", pa.string()),
        pa.field("thinking_severity", pa.string()),
        pa.field("refusal", pa.bool_()),
        pa.field("problem", pa.string()),
        pa.field("finish_reason", pa.string()),
    ]
)
MODES = {False: "plain", True: "thinking"}
ALL_SAFE, ALL_UNSAFE, TOO_FEW = "all answers safe", "all answers unsafe", "too few answers judged"


@dataclass(frozen=True)
class RLPromptsConfig:
    """`samples` answers per prompt and mode (`thinking`: the modes); `limit` bounds the prompts (0: all), by group;
    `test_share` of the groups are kept for the evaluation. `judge` says how the guard is asked."""

    samples: int = 8
    thinking: tuple[bool, ...] = (False,)
    limit: int = 0
    test_share: float = 0.2
    languages: tuple[str, ...] = ("en",)
    sampling: Sampling = field(default=Sampling(max_tokens=64, temperature=1.0, top_p=1.0, top_k=0))
    judge: JudgeConfig = JudgeConfig()

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise BadInput(f"{self.samples} answers per prompt cannot differ: at least 2")


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    names = [
        name for name in ("moderation_short", "moderation_full", "refusal_policy") if name in policy.templates
    ]
    return [policy.slice_labels(), policy.slice_templates(*names)]


def step(config: RLPromptsConfig) -> Step:
    tables = {"rl_prompts": RL_PROMPT, "rl_samples": RL_SAMPLE}
    return Step(
        "rl_prompts",
        run,
        config,
        tables,
        inputs=("deduped",),
        roles=("policy", "guard"),
        reads=reads,
        cut=Cut(),
    )


@dataclass(frozen=True)
class Ask:
    """One prompt in one mode: its id in the table, the row it comes from, the turns, the text the policy continues."""

    id: str
    row: dict[str, Any]
    messages: list[dict[str, str]]
    thinking: bool
    text: str

    def as_row(self, split: str, safe: int, judged: int) -> dict[str, Any]:
        told = {name: self.row[name] for name in ("group_id", "intended", "language", "leaf")}
        return told | {
            "id": self.id, "parent_id": self.row["id"], "messages": self.messages, "thinking": self.thinking,
            "split": split, "safe": safe, "judged": judged,
        }  # fmt: skip


def run(work: Work) -> Output:
    config: RLPromptsConfig = work.config
    output = Output({"rl_prompts": [], "rl_samples": []})
    asks, held = asked(work, output.dropped)
    kept: list[Any] = output.tables["rl_prompts"]  # type: ignore[assignment]
    kept += [ask.as_row("test", 0, 0) for ask in held]
    if not asks:
        return output
    pairs = [(ask, sample) for ask in asks for sample in range(config.samples)]
    seeds = [seed_for(work.seed, ask.id, sample) for ask, sample in pairs]
    answers = work.engines.get("policy").generate([ask.text for ask, _ in pairs], config.sampling, seeds)
    good = [
        (ask, sample, a)
        for (ask, sample), a in zip(pairs, answers, strict=True)
        if not isinstance(a, Failure)
    ]
    output.failed += [
        Failed(ask.row["id"], ask.row["group_id"], f"policy: {a.reason}", a.raw)
        for (ask, _), a in zip(pairs, answers, strict=True)
        if isinstance(a, Failure)
    ]
    guard = work.engines.get("guard")
    judge = Judge(lambda turns: verdicts(work.policy, guard, turns, config.judge))
    told = judge([list(ask.messages) for ask, _, _ in good], [answer.text for _, _, answer in good])
    output.tables["rl_samples"] = [
        sample_row(work.policy, *each, judged) for each, judged in zip(good, told, strict=True)
    ]
    kept += mixed(work.policy, asks, [(ask.id, judged) for (ask, _, _), judged in zip(good, told, strict=True)],
                  output.dropped)  # fmt: skip
    return output


def asked(work: Work, dropped: Counter[str]) -> tuple[list[Ask], list[Ask]]:
    """The unit's prompts in every mode: those to sample, and those held for the evaluation."""
    config: RLPromptsConfig = work.config
    tokenizer = policy_tokenizer(work.engines.roles["policy"].name)
    if True in config.thinking and not thinks(tokenizer):
        raise BadInput("the policy's chat template has no thinking mode, and the recipe asks for one")
    asks: list[Ask] = []
    held: list[Ask] = []
    for row in work.rows["deduped"].to_pylist():
        if row["language"] not in config.languages:
            continue
        if config.limit and draw(row["group_id"]) >= config.limit / max(work.versions["deduped"].rows, 1):
            dropped["beyond the limit"] += 1
            continue
        messages = [*row["history"], {"role": "user", "content": row["text"]}]
        if marker_in(tokenizer, messages):
            dropped["spells a marker of the chat template"] += 1
            continue
        into = held if held_out(row["group_id"], config.test_share) else asks
        for thinking in config.thinking:
            text = policy_prompt(tokenizer, messages, thinking).removeprefix(tokenizer.bos_token or "\0")
            into.append(Ask(row_id(row["id"], "rl", MODES[thinking]), row, messages, thinking, text))
    return asks, held


@lru_cache(maxsize=1)
def policy_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from ray_jobs.engine.weights import locate

    return AutoTokenizer.from_pretrained(locate(name))


def draw(group_id: str) -> float:
    return int(stable_hash("rl limit", group_id)[:8], 16) / 16**8


def held_out(group_id: str, share: float) -> bool:
    return int(stable_hash("rl split", group_id)[:8], 16) / 16**8 < share


def sample_row(policy: Policy, ask: Ask, sample: int, answer: Any, judged: Judged) -> dict[str, Any]:
    return {
        "id": row_id(ask.id, "sample", sample),
        "parent_id": ask.id,
        "group_id": ask.row["group_id"],
        "text": answer.text,
        "thinking": ask.thinking,
        "safe": is_safe(policy, judged),
        "answer_severity": judged.answer.severity if judged.answer else "",
        "thinking_severity": judged.thinking.severity if judged.thinking else "",
        "refusal": judged.answer.refusal if judged.answer else None,
        "problem": problem(judged),
        "finish_reason": answer.finish_reason,
    }


def problem(judged: Judged) -> str:
    return judged.problem or ("" if judged.answer else "guard abstained")


def mixed(
    policy: Policy, asks: list[Ask], told: list[tuple[str, Judged]], dropped: Counter[str]
) -> list[dict[str, Any]]:
    """The prompts whose judged answers differ, as rows; the others are counted, by what their answers were."""
    known = [(name, judged) for name, judged in told if not problem(judged)]
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for name, judged in known:
        by_prompt[name].append(is_safe(policy, judged))
    enough = {name: flags for name, flags in by_prompt.items() if len(flags) > 1}
    dropped[TOO_FEW] += sum(ask.id not in enough for ask in asks)
    names = [name for name, flags in enough.items() for _ in flags]
    found = mixed_prompts(names, [flag for flags in enough.values() for flag in flags])
    dropped[ALL_SAFE] += found.all_safe
    dropped[ALL_UNSAFE] += found.all_unsafe
    chosen = set(found.prompts)
    return [ask.as_row("train", sum(enough[ask.id]), len(enough[ask.id])) for ask in asks if ask.id in chosen]


def share_kept(store: Store, version: TableVersion) -> dict[str, Any]:
    """Of the prompts that were sampled: how many were kept, by mode, and what the others were dropped for."""
    rows = store.read(version.ref, columns=["split", "thinking"]).to_pylist()
    kept = Counter(MODES[row["thinking"]] for row in rows if row["split"] == "train")
    why = {name: count for name, count in version.provenance.counts["dropped"].items() if count}
    sampled = sum(kept.values()) + sum(why.get(name, 0) for name in (ALL_SAFE, ALL_UNSAFE, TOO_FEW))
    return {
        "sampled": sampled,
        "kept": dict(kept),
        "share": sum(kept.values()) / max(sampled, 1),
        "dropped": why,
    }
