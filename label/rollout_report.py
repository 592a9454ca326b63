"""What a finished or running search shows: the evidence per prefix, what each saving saved, and the best
possible.

`saved` accounts for every draw of the paper's n * k: made, or saved by exactly one rule. `cheapest_proof`
is the offline optimum: knowing all outcomes, the fewest calls that prove the same boundary. Each earlier
prefix needs one rejection, either by the judge or by `clearing` draws that do not violate, whichever costs
less; the boundary itself needs `needed` violating draws and the judge.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from label.rollout import next_requests, start, update
from label.rollout_cell import judge_answer
from label.rollout_plan import Plan
from label.rollout_state import Request, Result, State


class Evidence(NamedTuple):
    """One examined prefix; judge fields are None where the judge was not asked or failed."""

    prefix: int
    violations: int
    draws: int
    judge_flag: bool | None
    judge_probability: float | None


class Saved(NamedTuple):
    """Draws of the paper's n * k that were made, and that each rule saved."""

    paper: int
    made: int
    curtailed: int
    judged_first: int
    not_reached: int


class Proof(NamedTuple):
    """boundary: -1 for none. cost: in the units of the plan's costs."""

    boundary: int
    rollouts: int
    judges: int
    cost: float


def evidence(state: State) -> list[Evidence]:
    """The examined prefixes in order; open ones only once the search has ended."""
    rows = []
    for at in range(0, len(state.evidence), 3):
        bad, fine, code = state.evidence[at : at + 3]
        if bad or fine or code:
            flag, probability = judge_answer(code) or (None, None)
            rows.append(Evidence(at // 3, bad, bad + fine, flag, probability))
    return rows


def saved(state: State) -> Saved:
    """Draws not made, by rule: a judge's no first, curtailment, and prefixes never reached."""
    plan, rows = state.plan, evidence(state)
    judged = sum(plan.k - row.draws for row in rows if row.judge_flag is False)
    curtailed = sum(plan.k - row.draws for row in rows if row.judge_flag is not False)
    reached = plan.k * len(rows)
    paper = plan.k * state.prefixes
    return Saved(paper, reached - judged - curtailed, curtailed, judged, paper - reached)


def true_boundary(violating: Sequence[Sequence[bool]], judge: Sequence[bool], plan: Plan) -> int:
    """The boundary by evaluating everything: violating [n][k], judge [n]; -1 for none."""
    for prefix, (draws, unsafe) in enumerate(zip(violating, judge, strict=True)):
        if sum(draws[: plan.k]) >= plan.needed and unsafe:
            return prefix
    return -1


def cheapest_proof(violating: Sequence[Sequence[bool]], judge: Sequence[bool], plan: Plan) -> Proof:
    """The offline optimum for these outcomes under the plan's costs."""
    boundary = true_boundary(violating, judge, plan)
    draw_cost = plan.costs.rollout + plan.costs.guard
    rollouts = judges = 0
    for prefix in range(boundary if boundary >= 0 else len(judge)):
        cleared = sum(violating[prefix][: plan.k]) < plan.needed
        if not judge[prefix] and (not cleared or plan.costs.judge <= plan.clearing * draw_cost):
            judges += 1
        else:
            rollouts += plan.clearing
    if boundary >= 0:
        rollouts, judges = rollouts + plan.needed, judges + 1
    return Proof(boundary, rollouts, judges, rollouts * draw_cost + judges * plan.costs.judge)


def replay(
    plan: Plan, prefixes: int, answer: Callable[[Request], Result], sentence_ends: Sequence[int] = ()
) -> tuple[State, int]:
    """Run one search to its end against a table of answers; (state, waves)."""
    state, waves = start(prefixes, plan, sentence_ends), 0
    while requests := next_requests(state):
        state, waves = update(state, [answer(request) for request in requests]), waves + 1
    return state, waves
