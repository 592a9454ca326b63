"""The judge of an RL run, by role: the guard's verdicts, a helpfulness score, and the place where an answer turned.

Guard (any role that judges): a fitted head and a streaming guard give their most probable severity; any other model is
asked for the verdict in words, greedily, as the guards are. What cannot be read is an abstention. Streaming guards say
nothing on refusal, and a head may not either: `refusals="rule"` then reads refusals off the answer's opening words
(synth.responses); "guard" leaves them unknown, which the hybrid reward refuses. With the rule a generative guard
needs no words either: its severity is the most probable label, so that a small one that loses the form still judges.

Helpfulness (role `reward`): a sequence-classification reward model with one output. Where no reward model is at hand an
embedder stands in for it, with the *relevance* of an answer: 10 x (cosine of prompt and answer - share of the answer's
word trigrams that the prompt holds). It rewards keeping to the subject and nothing else; it is no measure of help.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from label.scores import debounced, token_severity
from label.verdict import Verdict, moderation_prompt, parse_verdict, render_conversation, severity_answers
from ray_jobs.engine.calls import Failure, Sampling
from ray_jobs.stream_guard import label_maps
from synth.errors import BadInput
from synth.policy import Policy
from synth.responses import is_refusal

if TYPE_CHECKING:
    from ray_jobs.engine import Client, Engines

Conversation = list[Any]
ANSWER = Sampling(max_tokens=64, temperature=0.0)
REFUSALS = ("guard", "rule")


@dataclass(frozen=True)
class JudgeConfig:
    """`template`: the moderation template that a guard asked in words was trained on. `refusals`: by whom."""

    template: str = "moderation_short"
    refusals: str = "guard"

    def __post_init__(self) -> None:
        if self.refusals not in REFUSALS:
            raise BadInput(f"refusals are told by {' or '.join(REFUSALS)}, not {self.refusals!r}")


def verdicts(
    policy: Policy, client: Client, conversations: Sequence[Conversation], config: JudgeConfig
) -> list[Verdict | None]:
    """A guard's verdict on the last turn of each conversation (an answer), None where it abstains."""
    known = {"head": _by_head, "stream_guard": _by_tokens}
    if config.refusals == "rule":
        known["gen_guard"] = _by_labels
    told = known.get(client.model.kind, _in_words)(policy, client, conversations, config)
    if config.refusals == "guard":
        return told
    return [
        verdict and replace(verdict, refusal=is_refusal(turns[-1]["content"]))
        for verdict, turns in zip(told, conversations, strict=True)
    ]


def _by_head(
    policy: Policy, client: Client, conversations: Sequence[Conversation], config: JudgeConfig
) -> list[Verdict | None]:
    names = policy.severity_names
    labels = [f"response/severity/{name}" for name in names]
    asks_refusal = policy.refusal and config.refusals == "guard"
    asked = tuple(labels + (["response/refusal"] if asks_refusal else []))
    texts = [render_conversation(turns) for turns in conversations]
    told: list[Verdict | None] = []
    for found in client.score(texts, [asked] * len(texts)):
        if isinstance(found, Failure):
            told.append(None)
            continue
        severity = names[int(np.argmax(found.probabilities[: len(names)]))]
        told.append(Verdict(severity, (), found.probabilities[-1] >= 0.5 if asks_refusal else None))
    return told


def _by_tokens(
    policy: Policy, client: Client, conversations: Sequence[Conversation], _config: JudgeConfig
) -> list[Verdict | None]:
    order = label_maps(policy)["risks"]
    return [
        None if isinstance(found, Failure) else Verdict(token_severity(policy, order, found.risk))
        for found in client.score_tokens(list(conversations))
    ]


def _by_labels(
    policy: Policy, client: Client, conversations: Sequence[Conversation], config: JudgeConfig
) -> list[Verdict | None]:
    prompts = _asked(policy, conversations, config)
    labels = severity_answers(policy)
    return [
        None
        if isinstance(found, Failure)
        else Verdict(policy.severity_names[int(np.argmax(found.probabilities))])
        for found in client.score(prompts, [labels] * len(prompts))
    ]


def _asked(policy: Policy, conversations: Sequence[Conversation], config: JudgeConfig) -> list[Any]:
    return [
        [{"role": "user", "content": moderation_prompt(policy, "response", turns, config.template)}]
        for turns in conversations
    ]


def _in_words(
    policy: Policy, client: Client, conversations: Sequence[Conversation], config: JudgeConfig
) -> list[Verdict | None]:
    prompts = _asked(policy, conversations, config)
    return [
        None if isinstance(found, Failure) else parse_verdict(found.text, policy, "response")
        for found in client.generate(prompts, ANSWER, [0] * len(prompts))
    ]


def helpfulness(client: Client, conversations: Sequence[Conversation]) -> np.ndarray:
    """[n] scores, NaN where the model failed; [n, outputs] from a model that has several, which Judge refuses."""
    if client.model.kind == "embedder":
        return _relevance(client, conversations)
    if client.model.kind != "reward":
        raise BadInput(f"the role 'reward' needs a reward model or an embedder, not a {client.model.kind!r}")
    found = client.embed(list(conversations))
    width = max((len(vector) for vector in found if not isinstance(vector, Failure)), default=1)
    missing = np.full(width, math.nan)
    scores = np.stack([missing if isinstance(vector, Failure) else vector for vector in found])
    return scores[:, 0] if width == 1 else scores


def _relevance(client: Client, conversations: Sequence[Conversation]) -> np.ndarray:
    asked = [turns[-2]["content"] for turns in conversations]
    answers = [turns[-1]["content"] for turns in conversations]
    vectors = client.embed([*asked, *answers])
    scores = []
    for i, answer in enumerate(answers):
        x, y = vectors[i], vectors[len(asked) + i]
        if isinstance(x, Failure) or isinstance(y, Failure):
            scores.append(math.nan)
            continue
        cosine = float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-9))
        scores.append(10 * (cosine - copied(asked[i], answer)))
    return np.array(scores)


def copied(prompt: str, answer: str) -> float:
    """Share of the answer's word trigrams that stand in the prompt."""
    said, given = (_trigrams(text) for text in (answer, prompt))
    return sum(each in set(given) for each in said) / len(said) if said else 0.0


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(words, words[1:], words[2:], strict=False))


def turned(
    policy: Policy, client: Client, prompts: Sequence[Conversation], answers: Sequence[str], reading: str
) -> list[int | None]:
    """The character of each answer at which a streaming guard, debounced, finds that it violates in the reading."""
    order = label_maps(policy)["risks"]
    violating = [i for i, name in enumerate(order) if policy.violates(name, reading)]
    conversations = [
        [*turns, {"role": "assistant", "content": text}] for turns, text in zip(prompts, answers, strict=True)
    ]
    places: list[int | None] = []
    for found in client.score_tokens(conversations) if conversations else []:
        if isinstance(found, Failure) or not len(found.risk):
            places.append(None)
            continue
        first = debounced(np.isin(found.risk.argmax(axis=1), violating))
        places.append(None if first is None else int(found.offsets[first][0]))
    return places


def refuse_circular(engines: Engines, judges: Sequence[str], allowed: bool) -> None:
    """BadInput when a held-out judge has the rewarding guard's weights, unless that is `allowed`."""
    from ray_jobs.engine import fingerprint

    guard = fingerprint(engines.roles["guard"])
    for role in judges:
        if fingerprint(engines.roles[role]) == guard and not allowed:
            raise BadInput(
                f"the judge {role!r} is the guard that gave the reward: what it says of the trained policy is circular "
                "(bind another model, or ask for it with --circular)"
            )
