"""The rewards of train/rewards.py behind the signatures that RL trainers call.

    TRL       reward_func(prompts, completions, **columns) -> list[float]                   (GRPOTrainer, TRL 1.16)
    verl      compute_score(data_source, solution_str, ground_truth, extra_info=None) -> {"score": float, ...}
              compute_score(data_sources, solution_strs, ground_truths, extra_infos) -> list of those ("batch" manager)
    OpenRLHF  reward_func(queries, prompts, labels, **_) -> {"rewards", "scores", "extra_logs"} (tensors)

Each factory here returns such a function around one `Judge`: a guard (conversations in, verdicts out) and a helpfulness
model (conversations in, one score each). No trainer's package is imported; OpenRLHF's function needs torch. verl does
not hand the prompt to a reward function, so it must travel as `extra_info["prompt"]`; OpenRLHF's queries are prompt and
response as one text, from which the prompt is cut off again. A module that a trainer loads by path is:

    judge = Judge(guard, helpfulness)
    reward_func = trl_reward(load_policy("safety"), judge, RewardConfig(fallback=-10.0))
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from label.verdict import Verdict
from synth.errors import BadInput
from synth.policy import Policy
from train.rewards import Batch, Judged, RewardConfig, rewards, split_thinking

Message = Mapping[str, str]
Conversation = list[Message]
Guard = Callable[[list[Conversation]], Sequence[Verdict | None]]
Helpfulness = Callable[[list[Conversation]], Sequence[float]]


@dataclass(frozen=True)
class Judge:
    """What a batch of responses is judged by. `guard` gives None where it abstains; the guard-only reward needs no
    `helpfulness`."""

    guard: Guard
    helpfulness: Helpfulness | None = None

    def __call__(self, prompts: Sequence[Conversation], completions: Sequence[str]) -> list[Judged]:
        """One call of the guard over thinking and answers together, one of the helpfulness model over the answers."""
        parts = [split_thinking(text) for text in completions]
        asked: list[tuple[int, str]] = []
        for row, (thinking, answer, _) in enumerate(parts):
            asked += [(row, name) for name, text in (("thinking", thinking), ("answer", answer)) if text]
        texts = [dict(zip(("thinking", "answer"), part[:2], strict=True)) for part in parts]
        said = list(self.guard([answered(prompts[row], texts[row][name] or "") for row, name in asked]))
        if len(said) != len(asked):
            raise BadInput(f"the guard gave {len(said)} verdicts for {len(asked)} texts")
        verdicts = dict(zip(asked, said, strict=True))
        scores = self._scores(prompts, parts)
        return [
            Judged(
                verdicts.get((row, "answer")),
                verdicts.get((row, "thinking")),
                scores[row],
                problem or self._abstained(verdicts, row, thinking),
            )
            for row, (thinking, _, problem) in enumerate(parts)
        ]

    @staticmethod
    def _abstained(verdicts: Mapping[tuple[int, str], Verdict | None], row: int, thinking: str | None) -> str:
        """Thinking that the guard could not judge is no safe thinking."""
        return "guard abstained" if thinking and verdicts[row, "thinking"] is None else ""

    def _scores(
        self, prompts: Sequence[Conversation], parts: Sequence[tuple[str | None, str, str]]
    ) -> list[float]:
        """RM per row; NaN where there is no answer, or no helpfulness model."""
        scores = [math.nan] * len(parts)
        rows = [row for row, (_, answer, _) in enumerate(parts) if answer]
        if self.helpfulness is None or not rows:
            return scores
        given = np.asarray(self.helpfulness([answered(prompts[row], parts[row][1]) for row in rows]), float)
        if given.shape not in ((len(rows),), (len(rows), 1)):
            raise BadInput(
                f"the helpfulness model gave scores of shape {given.shape} for {len(rows)} answers; "
                "a reward model has one output"
            )
        for row, value in zip(rows, given.reshape(-1), strict=True):
            scores[row] = float(value)
        return scores


def answered(prompt: Conversation, text: str) -> Conversation:
    return [*prompt, {"role": "assistant", "content": text}]


def as_prompt(prompt: str | Sequence[Message]) -> Conversation:
    """A trainer's prompt as a conversation: plain text is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def as_completion(completion: str | Sequence[Message]) -> str:
    """A trainer's completion as text: the last message, its separate thinking put back where there is one."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    thinking, text = completion[-1].get("reasoning_content"), completion[-1].get("content") or ""
    return f"<think>{thinking}</think>{text}" if thinking else text


def trl_reward(
    policy: Policy, judge: Judge, config: RewardConfig | None = None
) -> Callable[..., list[float]]:
    """A reward function for TRL's GRPOTrainer, for plain and conversational datasets. Rates go to its `log_metric`."""

    def guard_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        batch = _judged(policy, judge, config, prompts, completions)
        if log := columns.get("log_metric"):
            for name, value in batch.logged.items():
                log(f"guard/{name}", value)
        return batch.rewards.tolist()

    return guard_reward


def verl_reward(policy: Policy, judge: Judge, config: RewardConfig | None = None) -> Callable[..., Any]:
    """`compute_score` for verl, one sample a call ("naive" manager)."""
    many = verl_batch_reward(policy, judge, config)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> dict[str, float]:
        return many([data_source], [solution_str], [ground_truth], [extra_info])[0]

    return compute_score


def verl_batch_reward(policy: Policy, judge: Judge, config: RewardConfig | None = None) -> Callable[..., Any]:
    """`compute_score` for verl's "batch" manager: the guard sees the whole batch in one call."""

    def compute_score(
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Any],
        **_: Any,
    ) -> list[dict[str, float]]:
        for number, info in enumerate(extra_infos):
            if not isinstance(info, Mapping) or not info.get("prompt"):
                raise BadInput(
                    f"sample {number}: extra_info has no 'prompt', without which no guard can judge it"
                )
        batch = _judged(policy, judge, config, [info["prompt"] for info in extra_infos], solution_strs)
        columns = zip(batch.rewards, batch.safe, batch.refused, strict=True)
        return [
            {"score": float(value), "safe": float(safe), "refused": float(refused)}
            for value, safe, refused in columns
        ]

    return compute_score


def openrlhf_reward(policy: Policy, judge: Judge, config: RewardConfig | None = None) -> Callable[..., dict]:
    """A `reward_func` for OpenRLHF's --remote_rm_url FILE. `scores` (its dynamic filter's 0 to 1) is safety."""

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        import torch

        completions = []
        for number, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
            if not query.startswith(prompt):
                raise BadInput(f"query {number} does not begin with its prompt")
            completions.append(query[len(prompt) :])
        batch = _judged(policy, judge, config, prompts, completions)
        safe, refused = (torch.tensor(flags.astype(float)) for flags in (batch.safe, batch.refused))
        logs = {"safe": safe, "refused": refused}
        return {"rewards": torch.tensor(batch.rewards), "scores": safe, "extra_logs": logs}

    return reward_func


def _judged(
    policy: Policy,
    judge: Judge,
    config: RewardConfig | None,
    prompts: Sequence[Any],
    completions: Sequence[Any],
) -> Batch:
    if len(prompts) != len(completions):
        raise BadInput(f"{len(prompts)} prompts for {len(completions)} completions")
    judged = judge([as_prompt(prompt) for prompt in prompts], [as_completion(text) for text in completions])
    return rewards(policy, judged, config)
