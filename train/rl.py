"""Safety RL with the guard as the reward: GSPO through TRL's GRPOTrainer, on DeepSpeed (METHOD.md §8).

Sources: *Group Sequence Policy Optimization* (arXiv 2507.18071); settings in train/rl_config.py. Every answer's
reward is that of train/rewards.py; TRL turns it into an advantage within the prompt's group.

Where we deviate from TRL: prompts travel as JSON (messages, thinking or not), so that each is rendered in its own mode.
Beyond the paper, a streaming guard may say at which token a violating answer turned:

* "truncated": what follows that token takes no part in ratio or loss;
* "token": the answer's advantage lies on the tokens from there on, with the same mean. A sequence-level ratio has one
  gradient for all tokens and would undo this, so the ratio is GSPO-token's (their §4.3): its value is the sequence's,
  its gradient each token's own. TRL has no such level; `_compute_loss` gives its token level old log-probabilities that
  make it one. With equal advantages it is GSPO, in value and gradient.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from synth.errors import BadInput
from synth.policy import Policy
from train.reward_adapters import Conversation, Judge
from train.rewards import RewardConfig, rewards, token_credit, truncated
from train.rl_prompt import policy_prompt

# For each (prompt, answer): the character of the answer from which it violates, None where it never does.
Turned = Callable[[list[Conversation], list[str]], Sequence[int | None]]


class RewardFunction:
    """What TRL calls: rewards of a batch. `turns` then holds, per answer, the token at which it turned (or None)."""

    def __init__(
        self, policy: Policy, judge: Judge, config: RewardConfig, tokenizer: Any, turned: Turned | None
    ) -> None:
        self.policy, self.judge, self.config = policy, judge, config
        self.tokenizer, self.turned = tokenizer, turned
        self.turns: list[int | None] = []
        self.__name__ = "guard_reward"

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        asked: list[Conversation] = [list(json.loads(prompt)["messages"]) for prompt in prompts]
        batch = rewards(self.policy, self.judge(asked, completions), self.config)
        if len(completions) and batch.silent == len(completions):
            raise BadInput(f"the policy wrote no answer to any of {len(completions)} prompts")
        self.turns = [None] * len(completions)
        if self.turned is not None:
            blamed = [i for i, safe in enumerate(batch.safe) if not safe and completions[i]]
            found = self.turned([asked[i] for i in blamed], [completions[i] for i in blamed])
            for i, at in zip(blamed, found, strict=True):
                self.turns[i] = None if at is None else token_at(self.tokenizer, completion_ids[i], at)
        for name, value in batch.logged.items():
            log_metric(f"guard/{name}", value)
        return batch.rewards.tolist()


def token_at(tokenizer: Any, ids: Sequence[int], character: int) -> int:
    """The token of `ids` whose text holds the character at that place (the last one where none does)."""
    low, high = 0, len(ids) - 1
    while low < high:  # the first prefix that is long enough
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[: middle + 1], skip_special_tokens=True)) > character:
            high = middle
        else:
            low = middle + 1
    return low


def spread(advantages_B: torch.Tensor, mask_BT: torch.Tensor, turns: Sequence[int | None]) -> torch.Tensor:
    """Advantages [B, T] whose mean over an answer's tokens is its advantage, on the tokens from its turn on."""
    spread_BT = torch.zeros(mask_BT.shape, dtype=advantages_B.dtype, device=advantages_B.device)
    for row, (tokens, turn) in enumerate(zip(mask_BT.sum(1).tolist(), turns, strict=True)):
        share = token_credit(float(tokens), int(tokens), turn)
        spread_BT[row, : int(tokens)] = advantages_B[row] * torch.as_tensor(share).to(advantages_B)
    return spread_BT


def kept(mask_BT: torch.Tensor, turns: Sequence[int | None]) -> torch.Tensor:
    """Mask [B, T] of each answer's tokens up to the one where it turned, that one included."""
    kept_BT = torch.zeros_like(mask_BT)
    for row, (tokens, turn) in enumerate(zip(mask_BT.sum(1).tolist(), turns, strict=True)):
        kept_BT[row, : truncated(int(tokens), turn)] = 1
    return kept_BT


class SafetyTrainer(GRPOTrainer):
    """GRPOTrainer with prompts in their own mode, and with credit where a streaming guard puts it."""

    def __init__(self, credit: str, reward: RewardFunction, **given: Any) -> None:
        super().__init__(reward_funcs=[reward], **given)  # type: ignore[list-item]
        self.credit, self.reward = credit, reward
        self._ratio: dict[str, Any] | None = None

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        ids, tokenizer = [], self._tokenizer
        for prompt in prompts:
            told = json.loads(prompt)
            text = policy_prompt(tokenizer, told["messages"], told["thinking"])
            ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids, None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.credit == "token":
            output["advantages"] = spread(output["advantages"], output["completion_mask"], self.reward.turns)
        elif self.credit == "truncated":
            output["tool_mask"] = kept(output["completion_mask"], self.reward.turns)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        inputs = dict(inputs)  # the buffered batch keeps its true old log-probabilities
        if self.credit == "token" and inputs.get("old_per_token_logps") is not None:
            self._ratio = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*given, **named)
        if (inputs := self._ratio) is not None:
            self._ratio = None
            now_BT, mask_BT = found[0].detach(), inputs["completion_mask"]
            log_ratio_B = ((now_BT - inputs["old_per_token_logps"]) * mask_BT).sum(1) / mask_BT.sum(1).clamp(
                1
            )
            inputs["old_per_token_logps"] = now_BT - log_ratio_B[:, None]
        return found
