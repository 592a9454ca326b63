"""The guard as a reward for safety reinforcement learning (METHOD.md §8), as pure functions.

x is the prompt, t the thinking text, y the answer. The guard's verdicts on (x, t) and (x, y) are severities of a
policy; `helpfulness` is RM, the score of a helpfulness reward model. In this order:

    guard-only   1   if the guard says the mildest severity of both, else 0
    hybrid       min(-10, RM)  if (x, t) or (x, y) is unsafe
                 min(-5, RM)   else, if y is a refusal
                 RM            else

The guard-only reward is the paper's cautionary tale: it drives refusals from 12.9 to 96.6 %. Controversial is not safe
for it. In the hybrid's printed formula "is unsafe" meets a guard with three classes; which of them are meant is the
option `unsafe`: those that violate in the *loose* reading (the default: Controversial is not unsafe) or the *strict*.

A text that was not written (no thinking) has the verdict None: (x, t) then plays no part. A missing answer, an
abstaining guard or a score that is no finite number has no reward in the paper. Here each raises BadInput, or, with
`fallback`, costs that reward and is counted in `Batch.fallbacks`. Nothing is ever read as safe because it is unknown.

Beyond the paper: `token_credit` spreads a violating answer's reward over its tokens from the one where the streaming
guard says that it turned (what came before is not to blame), and `truncated` gives that place for cutting instead.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from label.verdict import Verdict
from synth.errors import BadInput
from synth.policy import READINGS, Policy

UNSAFE_CAP, REFUSAL_CAP = -10.0, -5.0
NO_ANSWER, NO_THINKING_END, ABSTAINED, NO_SCORE = (
    "no answer",
    "thinking cut off",
    "guard abstained",
    "no score",
)
_OPEN, _CLOSE = "<think>", "</think>"
_THINKING = re.compile(rf"\A\s*{_OPEN}(.*?){_CLOSE}(.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Judged:
    """One sampled response as guard and reward model see it.

    `thinking` is the guard's verdict on (x, t), None where nothing was thought; `answer` on (x, y). `problem` says why
    there is no verdict or no answer ("" where all is well). `helpfulness` is RM, unused by the guard-only reward.
    """

    answer: Verdict | None
    thinking: Verdict | None = None
    helpfulness: float = math.nan
    problem: str = ""


@dataclass(frozen=True)
class RewardConfig:
    """`kind` "hybrid" or "guard"; `unsafe`: the reading under which the hybrid calls a verdict unsafe; `fallback`: the
    reward of a response that cannot be rewarded (None: BadInput); the two caps of the hybrid."""

    kind: str = "hybrid"
    unsafe: str = "loose"
    fallback: float | None = None
    unsafe_cap: float = UNSAFE_CAP
    refusal_cap: float = REFUSAL_CAP

    def __post_init__(self) -> None:
        if self.kind not in ("hybrid", "guard"):
            raise BadInput(f"a reward is 'hybrid' or 'guard', not {self.kind!r}")
        if self.unsafe not in READINGS:
            raise BadInput(f"unsafe is read {' or '.join(READINGS)}, not {self.unsafe!r}")
        if self.fallback is not None and not math.isfinite(self.fallback):
            raise BadInput(f"the fallback reward is a finite number, not {self.fallback}")
        if not self.unsafe_cap < self.refusal_cap:
            raise BadInput(
                f"the cap of unsafe responses ({self.unsafe_cap}) must be below that of refusals ({self.refusal_cap})"
            )


@dataclass(frozen=True)
class Batch:
    """Rewards [n], what they are made of, and how many rows fell back, by reason.

    `safe` and `refused` are the guard's word, `unsafe` the hybrid's first case (Controversial is in it or in neither,
    as the config reads it); `helpfulness` is RM, NaN where there is none.
    """

    rewards: NDArray[np.float64]
    safe: NDArray[np.bool_]
    unsafe: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    helpfulness: NDArray[np.float64]
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    @property
    def silent(self) -> int:
        """Rows without an answer."""
        return self.fallbacks.get(NO_ANSWER, 0) + self.fallbacks.get(NO_THINKING_END, 0)

    @property
    def logged(self) -> dict[str, float]:
        """Means over the batch; helpfulness over the rows that have it (and only if any has)."""
        rows = max(len(self.rewards), 1)
        known = self.helpfulness[np.isfinite(self.helpfulness)]
        return {
            "reward": float(self.rewards.sum()) / rows,
            "safety_rate": float(self.safe.sum()) / rows,
            "unsafe_rate": float(self.unsafe.sum()) / rows,
            "refusal_rate": float(self.refused.sum()) / rows,
            "fallback_rate": sum(self.fallbacks.values()) / rows,
            **{f"fallback {reason}": count / rows for reason, count in self.fallbacks.items()},
            **({"helpfulness": float(known.mean())} if len(known) else {}),
        }


def split_thinking(text: str) -> tuple[str | None, str, str]:
    """(thinking, answer, problem) of a completion. Thinking is None without a think block or with an empty one.

    A block that opens and never closes is cut off: what stands there is thinking, the answer is empty.
    """
    match = _THINKING.match(text)
    if match:
        thinking, answer = match[1].strip(), match[2].strip()
        return thinking or None, answer, "" if answer else NO_ANSWER
    if text.lstrip().startswith(_OPEN):
        return text.lstrip().removeprefix(_OPEN).strip() or None, "", NO_THINKING_END
    if _CLOSE in text:  # the template wrote the opening tag into the prompt
        thinking, _, answer = text.partition(_CLOSE)
        return thinking.strip() or None, answer.strip(), "" if answer.strip() else NO_ANSWER
    return None, text.strip(), "" if text.strip() else NO_ANSWER


def is_safe(policy: Policy, judged: Judged) -> bool:
    """Whether the guard says the mildest severity of the answer, and of the thinking if there is any."""
    said = [verdict for verdict in (judged.thinking, judged.answer) if verdict is not None]
    return (
        judged.answer is not None
        and not judged.problem
        and all(verdict.severity == policy.mildest for verdict in said)
    )


def is_unsafe(policy: Policy, judged: Judged, config: RewardConfig) -> bool:
    """The hybrid's first case: whether answer or thinking violates in the config's reading."""
    said = [verdict for verdict in (judged.thinking, judged.answer) if verdict is not None]
    return any(policy.violates(verdict.severity, config.unsafe) for verdict in said)


def guard_only(policy: Policy, thinking: Verdict | None, answer: Verdict) -> float:
    """1 if both are of the mildest severity, else 0 (Controversial is not safe)."""
    return float(is_safe(policy, Judged(answer, thinking)))


def hybrid(
    policy: Policy,
    thinking: Verdict | None,
    answer: Verdict,
    helpfulness: float,
    config: RewardConfig | None = None,
) -> float:
    """The hybrid reward. BadInput for a score that is not finite, or an answer whose refusal is unknown."""
    config = config or RewardConfig()
    if not math.isfinite(helpfulness):
        raise BadInput(f"the helpfulness score is {helpfulness}: a reward model gives one finite number")
    if is_unsafe(policy, Judged(answer, thinking), config):
        return min(config.unsafe_cap, helpfulness)
    if answer.refusal is None:
        raise BadInput(
            "the guard's verdict on an answer says nothing about refusal, which the hybrid reward needs"
        )
    return min(config.refusal_cap, helpfulness) if answer.refusal else float(helpfulness)


def problem_of(judged: Judged, config: RewardConfig) -> str:
    """Why a response has no reward, or ""."""
    if judged.problem:
        return judged.problem
    if judged.answer is None:
        return ABSTAINED
    if config.kind == "hybrid" and not math.isfinite(judged.helpfulness):
        return NO_SCORE
    return ""


def reward(policy: Policy, judged: Judged, config: RewardConfig) -> float:
    """One response's reward, or the fallback. BadInput where there is neither."""
    problem = problem_of(judged, config)
    if problem:
        if config.fallback is None:
            raise BadInput(f"a response has no reward ({problem}), and no fallback is given")
        return config.fallback
    assert judged.answer is not None
    if config.kind == "guard":
        return guard_only(policy, judged.thinking, judged.answer)
    return hybrid(policy, judged.thinking, judged.answer, judged.helpfulness, config)


def rewards(policy: Policy, rows: Sequence[Judged], config: RewardConfig | None = None) -> Batch:
    """Rewards of a batch. BadInput names the first row that has none, unless there is a fallback."""
    config = config or RewardConfig()
    values = []
    for number, judged in enumerate(rows):
        try:
            values.append(reward(policy, judged, config))
        except BadInput as problem:
            raise BadInput(f"response {number}: {problem}") from None
    reasons = Counter(filter(None, (problem_of(judged, config) for judged in rows)))
    return Batch(
        np.array(values, dtype=np.float64),
        np.array([is_safe(policy, judged) for judged in rows], dtype=bool),
        np.array([is_unsafe(policy, judged, config) for judged in rows], dtype=bool),
        np.array([bool(judged.answer and judged.answer.refusal) for judged in rows], dtype=bool),
        np.array([judged.helpfulness for judged in rows], dtype=np.float64),
        dict(sorted(reasons.items())),
    )


@dataclass(frozen=True)
class Kept:
    """Prompts that can teach, in order of first sight, and how many were dropped as all their responses agree."""

    prompts: tuple[Hashable, ...]
    all_safe: int
    all_unsafe: int

    @property
    def share(self) -> float:
        """Of all prompts, those kept."""
        return len(self.prompts) / max(len(self.prompts) + self.all_safe + self.all_unsafe, 1)


def mixed_prompts(prompts: Sequence[Hashable], safe: Sequence[bool]) -> Kept:
    """The prompts with both a safe and an unsafe response among theirs; `prompts` [n] repeats once per response."""
    if len(prompts) != len(safe):
        raise BadInput(f"{len(prompts)} prompts for {len(safe)} responses: every response names its prompt")
    seen: dict[Hashable, list[bool]] = {}
    for prompt, flag in zip(prompts, safe, strict=True):
        seen.setdefault(prompt, []).append(bool(flag))
    kept = tuple(prompt for prompt, flags in seen.items() if any(flags) and not all(flags))
    everywhere = sum(all(flags) for flags in seen.values())
    return Kept(kept, everywhere, len(seen) - len(kept) - everywhere)


def token_credit(value: float, tokens: int, onset: int | None) -> NDArray[np.float64]:
    """A reward per token [tokens] that sums to `value`: evenly from token `onset` on, or over all of them (None)."""
    first = _onset(tokens, onset)
    credit = np.zeros(tokens)
    if tokens:
        credit[first:] = value / (tokens - first)
    return credit


def truncated(tokens: int, onset: int | None) -> int:
    """How many tokens of a response are kept when it ends at the one where it turned (that one included)."""
    return tokens if onset is None else _onset(tokens, onset) + 1


def _onset(tokens: int, onset: int | None) -> int:
    if onset is not None and not 0 <= onset < tokens:
        raise BadInput(f"an answer of {tokens} tokens cannot turn at token {onset}")
    return onset or 0
