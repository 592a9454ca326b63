"""The calls of one wave of token labelling: continuations, the guard's verdicts on them, the judge's on prefixes.

A part (thinking text or answer) is moderated by itself, as the assistant's turn; a rollout continues it where it stands
in the whole response, thinking marks and all, and what it writes behind the end of the thinking is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from label.rollout_state import Request, State
from label.token_labels import THINKING, Part, Prefixes, agreeing, join
from label.verdict import moderation_prompt, render_conversation, severity_answers
from ray_jobs.engine import Completion, Failure
from ray_jobs.step import Work
from ray_jobs.voters import conversation, item_text
from synth.ids import seed_for
from synth.policy import render

THINK_END = "</think>"


@dataclass
class Search:
    """One part of a response on its way: the sample, the part's prefixes, its state, and what failed so far."""

    key: str
    row: dict[str, Any]
    part: Part
    prefixes: Prefixes
    state: State
    problems: list[str] = field(default_factory=list)

    @property
    def draws_key(self) -> str:
        """What the randomness of a draw belongs to, beside prefix and draw: the row and part, never the mode."""
        return self.row["id"] + (f":{THINKING}" if self.part.name == THINKING else "")

    def turns(self, text: str) -> list[dict[str, str]]:
        """The conversation with `text` as the assistant's turn."""
        return conversation("response", self.row["prompt"], self.row["history"], text)


Draw = tuple[Search, Request]


def rollout_roles(work: Work) -> list[str]:
    return sorted(role for role in work.engines.roles if role == "rollout" or role.startswith("rollout-"))


def rollouts(work: Work, draws: list[Draw]) -> list[Completion | Failure]:
    """One continuation per draw; the draws of a prefix go round the bound rollout models."""
    roles = rollout_roles(work)
    found: list[Any] = [None] * len(draws)
    for number, role in enumerate(roles):
        mine = [i for i, (_, request) in enumerate(draws) if request.draw % len(roles) == number]
        if not mine:
            continue
        client = work.engines.get(role)
        prompts, seeds = [], []
        for i in mine:
            search, request = draws[i]
            prompts.append(rollout_prompt(client.model.kind, search, request.prefix))
            seeds.append(seed_for(work.seed, f"{search.draws_key}:{request.prefix}", request.draw))
        for i, completion in zip(mine, client.generate(prompts, work.config.sampling, seeds), strict=True):
            found[i] = completion
    return found


def rollout_prompt(kind: str, search: Search, prefix: int) -> Any:
    """The conversation with the answer begun, for the model to go on."""
    text, thinking = search.prefixes.prefix_text(prefix), search.row.get("thinking") or ""
    if search.part.name == THINKING:
        text = f"<think>\n{text}"
    elif thinking:
        text = f"<think>\n{thinking}\n{THINK_END}\n\n{text}"
    turns = search.turns(text)
    if kind != "base":
        return turns
    return render_conversation(turns[:-1]).replace("USER:", "User:") + f"\n\nAssistant: {text}"


def guard_verdicts(
    work: Work, draws: list[Draw], completions: list[Completion | Failure]
) -> list[tuple[bool, int, int, str]]:
    """(violates in the strict reading, tokens generated, longer prefixes agreed with, problem) per draw."""
    policy = work.policy
    told: list[tuple[bool, int, int, str]] = []
    prompts: list[Any] = []
    for (search, request), done in zip(draws, completions, strict=True):
        if isinstance(done, Failure):
            told.append((False, 0, 0, f"rollout: {done.reason}"))
            continue
        text = done.text.partition(THINK_END)[0] if search.part.name == THINKING else done.text
        whole = join(search.prefixes.prefix_text(request.prefix), text)
        prompt = moderation_prompt(policy, "response", search.turns(whole), work.config.template)
        prompts.append([{"role": "user", "content": prompt}])
        recycles = search.state.plan.mode == "recycle"
        agrees = agreeing(search.prefixes, request.prefix, text) if recycles else 0
        told.append((False, done.completion_tokens, agrees, ""))
    labels = severity_answers(policy)
    scores = iter(work.engines.get("guard").score(prompts, [labels] * len(prompts)) if prompts else ())
    for i, (_, tokens, agrees, problem) in enumerate(told):
        if not problem:
            share = violating(work, next(scores))
            failed = isinstance(share, Failure)
            reason = f"guard: {share.reason}" if isinstance(share, Failure) else ""
            told[i] = (
                not isinstance(share, Failure) and share >= 0.5,
                tokens,
                0 if failed else agrees,
                reason,
            )
    return told


def judge(work: Work, judged: list[Draw]) -> list[float | Failure]:
    """The probability that a prefix, as it stands, violates: by a head, or by the policy's judge template."""
    if not judged:
        return []
    policy, client = work.policy, work.engines.get("judge")
    names, head = policy.severity_names, client.model.kind == "head"
    prompts: list[Any] = []
    for search, request in judged:
        text = search.prefixes.prefix_text(request.prefix)
        if head:
            prompts.append(item_text("response", search.row["prompt"], search.row["history"], text))
            continue
        turns = render_conversation(search.turns(text), fenced=True)
        asked = render(policy, "judge", side="response", conversation=turns)
        prompts.append([{"role": "user", "content": asked}])
    labels = tuple(f"response/severity/{name}" for name in names) if head else names
    return [violating(work, told) for told in client.score(prompts, [tuple(labels)] * len(prompts))]


def violating(work: Work, told: Any) -> float | Failure:
    """The probability of the severities that violate in the strict reading, or the failure that came instead."""
    if isinstance(told, Failure):
        return told
    pairs = zip(work.policy.severity_names, told.probabilities, strict=True)
    return float(sum(p for name, p in pairs if work.policy.violates(name, "strict")))
