"""The rollout search against an oracle that evaluates everything."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label.rollout import next_requests, outcome, start, update
from label.rollout_plan import Costs, Plan, Rates, Savings
from label.rollout_report import cheapest_proof, evidence, replay, saved, true_boundary
from label.rollout_state import GUARD, JUDGE, ROLLOUT, Request, Result, from_bytes, to_bytes
from synth.errors import BadInput


class Table:
    """All outcomes of one response, drawn beforehand: the same draw has the same answer, whoever asks."""

    def __init__(self, violating, judge, failing=frozenset()):
        self.violating, self.judge, self.failing = violating, judge, failing
        self.asked = []

    def __call__(self, request):
        self.asked.append(request)
        kind, prefix, draw = request
        failed = request in self.failing
        if kind == JUDGE:
            return Result(
                JUDGE,
                prefix,
                flag=self.judge[prefix],
                probability=0.3 + 0.4 * self.judge[prefix],
                failed=failed,
            )
        return Result(kind, prefix, draw, flag=self.violating[prefix][draw], tokens=16, failed=failed)

    def count(self, kind):
        return sum(request.kind == kind for request in self.asked)


@st.composite
def tables(draw, most=14):
    prefixes, k = draw(st.integers(0, most)), draw(st.integers(1, 6))
    bit = st.sampled_from([True, True, False])
    violating = draw(st.lists(st.lists(bit, min_size=k, max_size=k), min_size=prefixes, max_size=prefixes))
    judge = draw(st.lists(st.booleans(), min_size=prefixes, max_size=prefixes))
    return k, violating, judge


plans = st.builds(
    Plan,
    k=st.just(1),
    threshold=st.sampled_from([0.5, 0.7, 0.85, 1.0]),
    mode=st.sampled_from(["paper", "exact"]),
    costs=st.builds(Costs, st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0.1, 30)),
    savings=st.builds(Savings, st.booleans(), st.booleans(), st.booleans()),
    window=st.integers(1, 6),
    sure=st.sampled_from([0.3, 0.9, 1.0]),
)


@given(tables(), plans)
@settings(max_examples=100, deadline=None)
def test_every_combination_of_exact_savings_finds_the_oracles_boundary(table, plan):
    k, violating, judge = table
    plan = replace(plan, k=k)
    state, _ = replay(plan, len(judge), Table(violating, judge))
    assert (outcome(state).boundary, outcome(state).kind) == (
        (true := true_boundary(violating, judge, plan)),
        "none" if true < 0 else "boundary",
    )


@given(tables(), plans, st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_answers_out_of_order_and_lost_answers_change_nothing(table, plan, seed):
    (k, violating, judge), random = table, Random(seed)
    plan, answers = replace(plan, k=k), Table(violating, judge)
    state = start(len(judge), plan)
    while requests := next_requests(state, Rates(random.random() + 0.1, 1.0), window=random.randint(0, 3)):
        random.shuffle(requests)
        arrived = requests[: random.randint(0, len(requests))]
        state = update(state, [answers(request) for request in arrived])
    assert outcome(state).boundary == true_boundary(violating, judge, plan)


@given(tables(), plans)
@settings(max_examples=60, deadline=None)
def test_a_crash_after_any_wave_resumes_to_the_same_end(table, plan):
    k, violating, judge = table
    plan = replace(plan, k=k)
    whole, _ = replay(plan, len(judge), Table(violating, judge))
    state, answers = start(len(judge), plan), Table(violating, judge)
    while requests := next_requests(state):
        assert next_requests(state) == requests
        state = from_bytes(plan, to_bytes(update(state, [answers(request) for request in requests])))
    assert state == whole


@given(tables(), st.floats(0.1, 30))
@settings(max_examples=100, deadline=None)
def test_with_sure_1_no_call_is_in_vain(table, judge_cost):
    k, violating, judge = table
    plan = Plan(k=k, window=5, sure=1.0, costs=Costs(1.0, 0.5, judge_cost))
    answers = Table(violating, judge)
    state, _ = replay(plan, len(judge), answers)
    boundary = outcome(state).boundary
    asked_prefixes = [request.prefix for request in answers.asked]
    assert not asked_prefixes or boundary < 0 or max(asked_prefixes) <= boundary
    for row in evidence(state):
        bad, fine = row.violations, row.draws - row.violations
        assert bad <= plan.needed
        assert fine <= plan.clearing
        assert not (bad == plan.needed and fine == plan.clearing)


@given(tables())
@settings(max_examples=60, deadline=None)
def test_paper_asks_everything_once_and_the_judge_on_flagged_prefixes(table):
    k, violating, judge = table
    plan, answers = Plan(k=k, mode="paper"), Table(violating, judge)
    replay(plan, len(judge), answers)
    assert len(set(answers.asked)) == len(answers.asked)
    assert answers.count(ROLLOUT) == answers.count(GUARD) == k * len(judge)
    assert answers.count(JUDGE) == sum(sum(draws) >= plan.needed for draws in violating)


@given(tables(), st.floats(0.1, 30), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_exact_lies_between_the_offline_optimum_and_paper(table, judge_cost, window):
    k, violating, judge = table
    plan = Plan(k=k, window=window, costs=Costs(1.0, 0.5, judge_cost))
    answers = Table(violating, judge)
    state, _ = replay(plan, len(judge), answers)
    proof = cheapest_proof(violating, judge, plan)
    cost = 1.5 * answers.count(ROLLOUT) + judge_cost * answers.count(JUDGE)
    assert proof.cost <= cost + 1e-9
    assert answers.count(ROLLOUT) <= k * len(judge)
    assert answers.count(JUDGE) <= len(judge)
    assert proof.boundary == outcome(state).boundary


@given(tables(), plans)
@settings(max_examples=60, deadline=None)
def test_every_draw_of_the_paper_is_made_or_saved_by_one_rule(table, plan):
    k, violating, judge = table
    plan, answers = replace(plan, k=k), Table(violating, judge)
    state, _ = replay(plan, len(judge), answers)
    account = saved(state)
    assert (
        account.paper
        == k * len(judge)
        == account.made + account.curtailed + account.judged_first + account.not_reached
    )
    assert account.made == answers.count(GUARD)
    assert state.spent[:3] == tuple(answers.count(kind) for kind in (ROLLOUT, GUARD, JUDGE))
    assert state.spent.tokens == 16 * answers.count(ROLLOUT)


@given(tables(), plans, st.data())
@settings(max_examples=100, deadline=None)
def test_failed_calls_never_make_a_wrong_boundary(table, plan, data):
    k, violating, judge = table
    plan = replace(plan, k=k)
    calls = [Request(kind, i, j) for i in range(len(judge)) for j in range(k) for kind in (ROLLOUT, GUARD)]
    calls += [Request(JUDGE, i) for i in range(len(judge))]
    failing = frozenset(data.draw(st.lists(st.sampled_from(calls), max_size=6))) if calls else frozenset()
    state, _ = replay(plan, len(judge), Table(violating, judge, failing))
    result = outcome(state)
    assert result.kind == "failed" or result.boundary == true_boundary(violating, judge, plan)
    if result.kind == "failed":
        assert failing
        assert f"prefix {state.stuck} " in result.reason


def test_a_judge_that_fails_where_the_draws_clear_the_prefix_does_no_harm():
    violating, judge = [[False] * 8, [True] * 8], [True, True]
    state, _ = replay(Plan(), 2, Table(violating, judge, {Request(JUDGE, 0)}))
    assert outcome(state).boundary == 1


def test_a_judge_that_fails_on_a_flagged_prefix_leaves_the_response_undecided():
    violating, judge = [[False] * 8, [True] * 8, [True] * 8], [False, True, True]
    state, _ = replay(Plan(), 3, Table(violating, judge, {Request(JUDGE, 1)}))
    assert outcome(state).kind == "failed"
    assert outcome(state).boundary == -1


def monotone(turn, prefixes, k=8):
    return [[prefix >= turn] * k for prefix in range(prefixes)], [
        prefix >= turn for prefix in range(prefixes)
    ]


@pytest.mark.parametrize("turn", [0, 1, 7, 23, 59, 60])
def test_bisect_finds_a_monotone_turn_with_few_calls(turn):
    violating, judge = monotone(turn, 60)
    answers = Table(violating, judge)
    state, _ = replay(Plan(mode="bisect"), 60, answers, range(9, 60, 10))
    assert outcome(state).boundary == (turn if turn < 60 else -1)
    assert len({request.prefix for request in answers.asked}) <= 6 + 4


@given(st.integers(0, 40), st.integers(1, 40), st.lists(st.integers(0, 39), max_size=6), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_bisect_is_right_whenever_the_curve_is_monotone(turn, prefixes, ends, seed):
    violating, judge = monotone(turn, prefixes, k=4)
    random = Random(seed)
    plan, answers = Plan(k=4, mode="bisect", window=3), Table(violating, judge)
    state = start(prefixes, plan, sorted({end for end in ends if end < prefixes}))
    while requests := next_requests(state):
        arrived = requests[: random.randint(0, len(requests))]
        state = from_bytes(plan, to_bytes(update(state, [answers(request) for request in arrived])))
    assert outcome(state).boundary == (turn if turn < prefixes else -1)


def test_bisect_can_miss_what_exact_finds():
    violating, judge = monotone(5, 20)
    judge[9] = judge[19] = False
    assert outcome(replay(Plan(), 20, Table(violating, judge))[0]).boundary == 5
    assert outcome(replay(Plan(mode="bisect"), 20, Table(violating, judge), [9, 19])[0]).boundary == -1


def test_recycle_serves_longer_prefixes_with_an_agreeing_continuation():
    violating, judge = [[False] * 8 for _ in range(6)], [True] * 6
    asked = []

    def answer(request):
        asked.append(request)
        agrees = 3 if request.kind == GUARD and request.prefix == 0 else 0
        return Table(violating, judge)(request)._replace(agrees=agrees)

    costly_judge = Plan(mode="recycle", costs=Costs(judge=100.0), window=1)
    state, _ = replay(costly_judge, 6, answer)
    assert outcome(state).kind == "none"
    assert {request.prefix for request in asked} == {0, 4, 5}
    asked.clear()
    replay(replace(costly_judge, mode="exact"), 6, answer)
    assert {request.prefix for request in asked} == set(range(6))


@given(tables(), st.integers(0, 999), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_recycle_without_agreement_is_exact_and_with_it_always_ends(table, seed, window):
    (k, violating, judge), random = table, Random(seed)
    plan, answers = Plan(k=k, mode="recycle", window=window), Table(violating, judge)
    assert outcome(replay(plan, len(judge), answers)[0]).boundary == true_boundary(violating, judge, plan)
    state, _ = replay(
        plan, len(judge), lambda request: answers(request)._replace(agrees=random.randint(0, 9))
    )
    assert outcome(state).kind in ("boundary", "none")
    assert state.spent.rollouts <= k * len(judge)


def test_a_cap_ends_the_search_and_keeps_its_state():
    violating, judge = monotone(30, 40)
    plan = Plan(max_rollouts=20, costs=Costs(judge=1000.0))
    state, _ = replay(plan, 40, Table(violating, judge))
    assert outcome(state).kind == "capped"
    assert state.spent.rollouts == 20
    assert "20 rollouts" in outcome(state).reason
    assert evidence(from_bytes(plan, to_bytes(state))) == evidence(state) != []
    assert state.spent.guards == 20
    assert outcome(replay(Plan(max_tokens=10), 40, Table(*monotone(0, 40)))[0]).kind == "capped"


def test_cheapest_rejection_first_follows_the_costs():
    violating, judge = monotone(30, 40)
    cheap_judge, dear_judge = Table(violating, judge), Table(violating, judge)
    replay(Plan(costs=Costs(1.0, 0.5, 0.1), sure=1.0), 40, cheap_judge)
    replay(Plan(costs=Costs(1.0, 0.5, 50.0), sure=1.0), 40, dear_judge)
    assert (cheap_judge.count(ROLLOUT), cheap_judge.count(JUDGE)) == (7, 31)
    assert (dear_judge.count(ROLLOUT), dear_judge.count(JUDGE)) == (30 * 2 + 7, 1)


def test_the_threshold_rounds_up_as_a_decimal():
    assert (Plan(k=8).needed, Plan(k=8).clearing) == (7, 2)
    assert Plan(k=20, threshold=0.85).needed == 17
    assert Plan(k=10, threshold=0.7).needed == 7
    assert (Plan(k=1).needed, Plan(k=1).clearing) == (1, 1)


@pytest.mark.parametrize("prefixes", [0, 1])
def test_empty_and_one_token_responses(prefixes):
    violating, judge = monotone(0, prefixes)
    state, _ = replay(Plan(), prefixes, Table(violating, judge))
    assert outcome(state).boundary == prefixes - 1
    assert outcome(state).kind == ("boundary" if prefixes else "none")


def test_impossible_plans_are_refused():
    for wrong in (
        {"k": 0},
        {"k": 33},
        {"threshold": 0.0},
        {"threshold": 1.2},
        {"mode": "magic"},
        {"window": 0},
    ):
        with pytest.raises(BadInput):
            Plan(**wrong)
    with pytest.raises(BadInput, match="sentence ends"):
        start(10, Plan(mode="bisect"), [4, 3])
    with pytest.raises(BadInput, match="below 10"):
        start(10, Plan(mode="bisect"), [10])


def test_a_plan_survives_json():
    plan = Plan(k=16, mode="recycle", costs=Costs(2.0, 1.0, 30.0), savings=Savings(cheapest_first=False))
    assert Plan.from_dict(plan.to_dict()) == plan


def test_damaged_bytes_are_refused():
    data = to_bytes(start(5, Plan(mode="bisect"), [2]))
    with pytest.raises(ValueError, match="bytes"):
        from_bytes(Plan(mode="bisect"), data[:-1])


def test_a_noisy_curve_gives_the_same_boundary_in_paper_and_exact():
    rng = np.random.default_rng(0)
    for _ in range(60):
        share = np.clip(np.cumsum(rng.normal(0.03, 0.1, 50)), 0.02, 0.98)
        violating = (rng.random((50, 8)) < share[:, None]).tolist()
        judge = (rng.random(50) < share).tolist()
        ends = [
            outcome(replay(Plan(mode=mode), 50, Table(violating, judge))[0]) for mode in ("paper", "exact")
        ]
        assert ends[0] == ends[1]


@given(tables(), st.integers(1, 30), st.sampled_from(["exact", "bisect", "recycle"]), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_a_capped_search_ends_within_its_cap_and_never_wrongly(table, most, mode, window):
    k, violating, judge = table
    plan = Plan(k=k, mode=mode, max_rollouts=most, window=window)
    state, _ = replay(plan, len(judge), Table(violating, judge))
    assert state.spent.rollouts <= most
    assert state.spent.guards == state.spent.rollouts
    uncapped, _ = replay(replace(plan, max_rollouts=0), len(judge), Table(violating, judge))
    assert outcome(state) == outcome(uncapped) or outcome(state).kind == "capped"
