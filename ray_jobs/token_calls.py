"""The calls of one wave of token labelling: continuations, the guard's verdicts on them, the judge's on prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from label.rollout_state import Request, State
from label.token_labels import Prefixes, agreeing, join
from label.verdict import moderation_prompt, render_conversation
from ray_jobs.engine import Failure
from ray_jobs.step import Work
from ray_jobs.voters import conversation, item_text
from synth.ids import seed_for
from synth.policy import render


@dataclass
class Search:
    """One response on its way: the sample, its prefixes, its state."""

    row: dict[str, Any]
    prefixes: Prefixes
    state: State


def rollouts(work: Work, draws: list[tuple[Search, Request]]) -> list[Any]:
    """One continuation per draw; the draws of a prefix go round the bound rollout models."""
    roles = sorted(r for r in work.engines.roles if r == "rollout" or r.startswith("rollout-"))
    found: list[Any] = [None] * len(draws)
    for number, role in enumerate(roles):
        mine = [i for i, (_, request) in enumerate(draws) if request.draw % len(roles) == number]
        if not mine:
            continue
        client = work.engines.get(role)
        prompts, seeds = [], []
        for i in mine:
            search, request = draws[i]
            text = search.prefixes.prefix_text(request.prefix)
            prompts.append(rollout_prompt(client.model.kind, search.row, text))
            seeds.append(seed_for(work.seed, f"{search.row['id']}:{request.prefix}", request.draw))
        for i, completion in zip(mine, client.generate(prompts, work.config.sampling, seeds), strict=True):
            found[i] = completion
    return found


def rollout_prompt(kind: str, row: dict[str, Any], prefix: str) -> Any:
    """The conversation with the answer begun, for the model to go on."""
    turns = conversation("response", row["prompt"], row["history"], prefix)
    if kind != "base":
        return turns
    return render_conversation(turns[:-1]).replace("USER:", "User:") + f"\n\nAssistant: {prefix}"


def guard_verdicts(
    work: Work, draws: list[tuple[Search, Request]], completions: list[Any]
) -> list[tuple[bool, int, int, str]]:
    """(violates in the strict reading, tokens generated, longer prefixes agreed with, problem) per draw."""
    policy, good = work.policy, [i for i, c in enumerate(completions) if not isinstance(c, Failure)]
    problems = [f"rollout: {c.reason}" if isinstance(c, Failure) else "" for c in completions]
    prompts: list[Any] = []
    for i in good:
        search, request = draws[i]
        text = join(search.prefixes.prefix_text(request.prefix), completions[i].text)
        turns = conversation("response", search.row["prompt"], search.row["history"], text)
        prompt = moderation_prompt(policy, "response", turns, work.config.template)
        prompts.append([{"role": "user", "content": prompt}])
    labels = tuple(f"{policy.answer_key}: {name}" for name in policy.severity_names)
    scores = work.engines.get("guard").score(prompts, [labels] * len(prompts)) if prompts else []
    violating = dict.fromkeys(good, 0.0)
    for i, told in zip(good, scores, strict=True):
        if isinstance(told, Failure):
            problems[i] = f"guard: {told.reason}"
            continue
        pairs = zip(policy.severity_names, told.probabilities, strict=True)
        violating[i] = sum(p for name, p in pairs if policy.violates(name, "strict"))
    result = []
    for i, (search, request) in enumerate(draws):
        done = completions[i]
        tokens = 0 if isinstance(done, Failure) else done.completion_tokens
        agrees = 0
        if work.config.plan.mode == "recycle" and not isinstance(done, Failure):
            agrees = agreeing(search.prefixes, request.prefix, done.text)
        result.append((violating.get(i, 0.0) >= 0.5, tokens, agrees, problems[i]))
    return result


def judge(work: Work, judged: list[tuple[Search, Request]]) -> list[float | Failure]:
    """The probability that a prefix, as it stands, violates: by a head, or by the policy's judge template."""
    if not judged:
        return []
    policy, client = work.policy, work.engines.get("judge")
    names = policy.severity_names
    prompts: list[Any] = []
    for search, request in judged:
        text, row = search.prefixes.prefix_text(request.prefix), search.row
        if client.model.kind == "head":
            prompts.append(item_text("response", row["prompt"], row["history"], text))
            continue
        turns = render_conversation(conversation("response", row["prompt"], row["history"], text))
        asked = render(policy, "judge", side="response", conversation=turns)
        prompts.append([{"role": "user", "content": asked}])
    labels = tuple(f"response/severity/{name}" for name in names) if client.model.kind == "head" else names
    found: list[float | Failure] = []
    for told in client.score(prompts, [tuple(labels)] * len(prompts)):
        if isinstance(told, Failure):
            found.append(told)
            continue
        pairs = zip(names, told.probabilities, strict=True)
        found.append(sum(p for name, p in pairs if policy.violates(name, "strict")))
    return found
