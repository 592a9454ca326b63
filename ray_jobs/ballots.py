"""Ballots: asking every voter about rows of one schema, and stacking the answers for label.vote.

A voter is a role, or a role and a template ("voter-2:moderation_full"): each template of a model has a vote of its own.

* A head answers from one vector.
* The template `voter` asks by `score` over the labels, one question at a time: probabilities.
* Any other template asks for the whole answer in words, greedily. What cannot be read is an abstention, never a guess;
  the answer itself is kept in `raw` either way. Generative guards are asked so, and their severities scored as well:
  such a guard is as sure as its first line is probable.
* A streaming guard votes with its verdict at the end of the user's turn, or with the severities that its tokens hold
  twice running.

A model that fails on a row abstains there, and the failure is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from label.scores import held_severities, token_severity
from label.verdict import moderation_prompt, parse_verdict, render_conversation, severity_answers
from label.vote import Ballots
from ray_jobs.engine import Failure, Sampling, Scores
from ray_jobs.step import Failed, Work
from ray_jobs.stream_guard import label_maps
from ray_jobs.voters import conversation, item_text, side_categories
from synth.ids import row_id, seed_for
from synth.policy import Policy, render


def voter_roles(work: Work) -> list[str]:
    """The roles that vote, in their order."""
    return sorted(role for role in work.engines.roles if role.rpartition("-")[0] == "voter")


SCORED = "voter"  # the template whose answers are scored; all others are answered in words
ANSWER = Sampling(max_tokens=64, temperature=0.0)


def voter_names(work: Work, templates: Sequence[str]) -> list[str]:
    """The voters of all voter roles: a head or a streaming guard has one vote, any other model one per template, a
    generative guard only for those that it was trained to answer."""
    names = []
    for role in voter_roles(work):
        kind = work.engines.get(role).model.kind
        told = [name for name in templates if name != SCORED or kind != "gen_guard"]
        if kind in ("head", "stream_guard"):
            names.append(role)
        else:
            names += [role if name == SCORED else f"{role}:{name}" for name in told or ["moderation_full"]]
    return names


def calls_per_row(work: Work, voter: str, side: str) -> int:
    """How often a voter's model is asked about one row."""
    role, _, template = voter.partition(":")
    kind = work.engines.get(role).model.kind
    if kind == "gen_guard":
        return 2
    scored = not template and kind not in ("head", "stream_guard")
    return 2 + (work.policy.refusal and side == "response") if scored else 1


def ask_voters(
    work: Work, rows: list[dict[str, Any]], voters: Sequence[str], failed: list[Failed]
) -> list[dict[str, Any]]:
    """Ballot rows of every given voter on every row (id, group_id, side, prompt, history, response, thinking)."""
    ballots = []
    for side in work.policy.sides:
        here = [row for row in rows if row["side"] == side]
        for voter in voters if here else []:
            role, _, template = voter.partition(":")
            kind = work.engines.get(role).model.kind
            if template:
                ballots += ask_in_words(work, voter, side, here, failed)
            else:
                ask = {"head": ask_head, "stream_guard": ask_stream}.get(kind, ask_model)
                ballots += ask(work, role, side, here, failed)
    return ballots


def ask_head(
    work: Work, role: str, side: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> list[dict[str, Any]]:
    """One score call answers severity, categories and refusal together."""
    policy = work.policy
    texts = [item_text(side, row["prompt"], row["history"], row["response"]) for row in rows]
    severities = [f"{side}/severity/{name}" for name in policy.severity_names]
    categories = [f"{side}/category/{category}" for category in side_categories(policy, side)]
    refusal = ["response/refusal"] if policy.refusal and side == "response" else []
    answers = work.engines.get(role).score(texts, [tuple(severities + categories + refusal)] * len(texts))
    ballots = []
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, Failure):
            failed.append(Failed(row["id"], row["group_id"], f"{role}: {answer.reason}", answer.raw))
            ballots.append(ballot_row(row, role, side))
            continue
        values = list(answer.probabilities)
        cut = len(severities), len(severities) + len(categories)
        told = values[cut[1]] if refusal else None
        ballots.append(ballot_row(row, role, side, values[: cut[0]], values[cut[0] : cut[1]], told))
    return ballots


def ask_model(
    work: Work, role: str, side: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> list[dict[str, Any]]:
    """Severity, category and refusal asked of a language model, one score call each."""
    policy = work.policy
    names = {c.id: c.name for c in policy.categories}
    labels = {
        "severity": tuple(policy.severity_names),
        "category": tuple(names[category] for category in side_categories(policy, side)),
    }
    if policy.refusal and side == "response":
        labels["refusal"] = ("Yes", "No")
    told = {question: ask_question(work, role, side, rows, question, ls) for question, ls in labels.items()}
    ballots = []
    for at, row in enumerate(rows):
        answers = {question: scores[at] for question, scores in told.items()}
        broken = [a for a in answers.values() if isinstance(a, Failure)]
        if broken:
            failed.append(Failed(row["id"], row["group_id"], f"{role}: {broken[0].reason}", broken[0].raw))
            ballots.append(ballot_row(row, role, side))
            continue
        read = {q: list(a.probabilities) for q, a in answers.items() if isinstance(a, Scores)}
        refusal = read["refusal"][0] if "refusal" in read else None
        ballots.append(ballot_row(row, role, side, read["severity"], read["category"], refusal))
    return ballots


def ask_in_words(
    work: Work, voter: str, side: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> list[dict[str, Any]]:
    """The whole verdict as a text, one call a row; an unreadable one is an abstention with its text kept.

    A generative guard's severities are scored too, the rest of its verdict is read.
    """
    policy, (role, _, template) = work.policy, voter.partition(":")
    client = work.engines.get(role)
    guard = client.model.kind == "gen_guard"
    prompts: list[Any] = []
    for row in rows:
        turns = conversation(side, row["prompt"], row["history"], row["response"], row["thinking"])
        prompts.append(
            [{"role": "user", "content": moderation_prompt(policy, side, turns, template, fenced=not guard)}]
        )
    seeds = [seed_for(work.seed, row["id"], 0) for row in rows]
    answers = client.generate(prompts, ANSWER, seeds)
    scored: Sequence[Any] = [None] * len(rows)
    if guard:
        scored = client.score(prompts, [severity_answers(policy)] * len(rows))
    ballots = []
    for row, answer, scores in zip(rows, answers, scored, strict=True):
        if isinstance(answer, Failure) or isinstance(scores, Failure):
            broken = answer if isinstance(answer, Failure) else scores
            failed.append(Failed(row["id"], row["group_id"], f"{voter}: {broken.reason}", broken.raw))
            ballots.append(ballot_row(row, voter, side))
            continue
        told = parse_verdict(answer.text, policy, side)
        ballot = ballot_row(row, voter, side)
        if told is not None:
            said = [float(name == told.severity) for name in policy.severity_names]
            severity = said if scores is None else list(scores.probabilities)
            category = [float(name in told.categories) for name in side_categories(policy, side)]
            refusal = None if told.refusal is None else float(told.refusal)
            ballot = ballot_row(row, voter, side, severity, category, refusal)
        ballots.append(ballot | {"raw": answer.text})
    return ballots


def ask_stream(
    work: Work, role: str, side: str, rows: list[dict[str, Any]], failed: list[Failed]
) -> list[dict[str, Any]]:
    """A streaming guard's verdicts. It says nothing on refusal, and names a response's category at its worst token."""
    policy = work.policy
    names, order = list(policy.severity_names), label_maps(policy)["risks"]
    turns = [conversation(side, row["prompt"], row["history"], row["response"]) for row in rows]
    ballots = []
    for row, answer in zip(rows, work.engines.get(role).score_tokens(turns), strict=True):
        if isinstance(answer, Failure):
            failed.append(Failed(row["id"], row["group_id"], f"{role}: {answer.reason}", answer.raw))
            ballots.append(ballot_row(row, role, side))
            continue
        if side == "prompt":
            severity = [float(answer.query_risk[order.index(name)]) for name in names]
            category = answer.query_category
        else:
            worst = token_severity(policy, order, answer.risk)
            severity = held_severities(policy, order, answer.risk).tolist()
            category = np.zeros(answer.category.shape[1])
            for at in np.flatnonzero(answer.risk.argmax(axis=1) == order.index(worst))[:1]:
                category = answer.category[at]
        ballots.append(ballot_row(row, role, side, severity, [float(value) for value in category]))
    return ballots


def ask_question(
    work: Work, role: str, side: str, rows: list[dict[str, Any]], question: str, labels: tuple[str, ...]
) -> list[Scores | Failure]:
    prompts: list[Any] = []
    for row in rows:
        turns = conversation(side, row["prompt"], row["history"], row["response"], row["thinking"])
        text = render(
            work.policy,
            "voter",
            side=side,
            conversation=render_conversation(turns, fenced=True),
            question=question,
        )
        prompts.append([{"role": "user", "content": text}])
    return work.engines.get(role).score(prompts, [labels] * len(prompts))


def ballot_row(
    row: dict[str, Any],
    voter: str,
    side: str,
    severity: list[float] | None = None,
    category: list[float] | None = None,
    refusal: float | None = None,
) -> dict[str, Any]:
    """A ballot; without `severity` it is an abstention."""
    return {
        "id": row_id(row["id"], "ballot", voter),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        "voter": voter,
        "side": side,
        "severity": severity,
        "category": category,
        "refusal": refusal,
        "raw": "",
    }


def stack_ballots(
    policy: Policy, side: str, voters: Sequence[str], ids: Sequence[str], ballots: list[dict[str, Any]]
) -> Ballots:
    """Ballots of `voters` on the rows `ids`, in that order; a missing or empty one is an abstention (NaN)."""
    categories = len(side_categories(policy, side))
    severity = np.full((len(ids), len(voters), len(policy.severity_names)), np.nan)
    category = np.full((len(ids), len(voters), categories), np.nan)
    refusal = np.full((len(ids), len(voters)), np.nan)
    place = {row: i for i, row in enumerate(ids)}
    column = {voter: v for v, voter in enumerate(voters)}
    for ballot in ballots:
        at = place.get(ballot["parent_id"]), column.get(ballot["voter"])
        if at[0] is None or at[1] is None or ballot["severity"] is None:
            continue
        severity[at], category[at] = ballot["severity"], ballot["category"]
        refusal[at] = np.nan if ballot["refusal"] is None else ballot["refusal"]
    asked = policy.refusal and side == "response"
    return Ballots(tuple(voters), policy.severity_names, severity, category, refusal if asked else None)
