"""The search for the first unsafe token as a pure state machine (METHOD.md §5), one small state per response.

    state = start(prefixes, plan)
    while (requests := next_requests(state)):
        state = update(state, answers_to(requests))
    outcome(state), evidence(state), saved(state)

Prefix i is flagged when ceil(threshold * k) of its k draws violate (a draw is a rollout, then the guard's
verdict on prefix + continuation); the boundary is the first prefix that is flagged and that the judge
calls unsafe as it stands.

* paper evaluates every prefix and every draw, and asks the judge on flagged prefixes.
* exact finds the same boundary for the same draws by the savings of `rollout_plan`.
* bisect (approximate: assumes a violation, once there, stays within a sentence) scans sentence ends left
  to right, then halves the sentence before the first one accepted.
* recycle (approximate) is exact, except that a continuation which begins as the response goes on also
  serves as a draw of the longer prefixes it agrees with: not independent of the verdict at the shorter one.

Nothing here waits or draws: `next_requests` is a function of the state, so a crash between two waves costs
the wave in flight. Failed calls make an outcome unknown, not false: a prefix that cannot be decided
without them, and that no earlier boundary makes irrelevant, ends the search as `failed`.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

from label import rollout_cell as cell_of
from label.rollout_cell import (
    ACCEPTED,
    BAD,
    FIELDS,
    FINE,
    FRESH,
    LOST,
    OPEN,
    REJECTED,
    ROLLED,
    STUCK,
    Cell,
)
from label.rollout_plan import BINS, Plan, Rates
from label.rollout_state import (
    BOUNDARY,
    CAPPED,
    FAILED,
    GUARD,
    JUDGE,
    NONE,
    ROLLOUT,
    Outcome,
    Request,
    Result,
    Spent,
    State,
)
from synth.errors import BadInput

DEFAULT_RATES = Rates()
# Once one of the two tests has passed, the other is believed to pass at least so often:
# they agree on the turn.
_AGREEMENT = 0.5


def start(prefixes: int, plan: Plan, sentence_ends: Sequence[int] = ()) -> State:
    """A search over prefixes 0 to `prefixes` - 1; bisect needs the prefix index at which each sentence ends.

    BadInput for sentence ends that are not ascending prefix indices. The last prefix always counts as an end.
    """
    if plan.mode != "bisect":
        return State(plan, prefixes, done="" if prefixes else NONE)
    given = list(sentence_ends)
    if given != sorted(set(given)) or (given and not 0 <= given[0] <= given[-1] < prefixes):
        raise BadInput(f"sentence ends {given[:5]} are not ascending prefix indices below {prefixes}")
    ends = sorted({*given, prefixes - 1}) if prefixes else []
    return State(plan, prefixes, tuple(ends), done="" if prefixes else NONE)


def outcome(state: State) -> Outcome | None:
    """What was found, or None while the search goes on."""
    spent = state.spent
    if state.done == FAILED:
        return Outcome(FAILED, -1, f"prefix {state.stuck} cannot be decided: calls failed")
    if state.done == CAPPED:
        return Outcome(CAPPED, -1, f"stopped after {spent.rollouts} rollouts, {spent.tokens} tokens")
    return Outcome(state.done, state.found) if state.done else None


def next_requests(state: State, rates: Rates = DEFAULT_RATES, window: int = 0) -> list[Request]:
    """The calls to make now, none when done.

    rates (seen in all responses) and window (prefixes to open, at most the plan's; 0 for the plan's) steer
    cost and the number of waves, never the outcome: with many active responses a window of 1 fills the
    devices and wastes least.
    """
    requests: list[Request] = []
    if state.done:
        return requests
    plan = state.plan
    share, agree = beliefs = plan.bins(state.trend, rates)
    # What of all prefixes about which nothing is known yet is the same, since a wave may hold a million of them.
    judged = plan.active.cheapest_first and plan.tables.judge_first[(share * BINS + agree) * plan.cells]
    unlikely = 1.0 - plan.tables.accept[share * plan.cells] * (agree + 0.5) / BINS
    relevant, sure = 1.0, plan.sure if plan.active.left_to_right else 0.0
    cells = chain(cell_of.each(state.cells), repeat(FRESH))
    for prefix, cell in zip(_open_prefixes(state)[: window or None], cells, strict=False):
        if judged and cell is FRESH:
            requests.append(Request(JUDGE, prefix))
            relevant *= unlikely
        else:
            relevant *= 1.0 - _ask(plan, prefix, cell, beliefs, requests)
        if relevant < sure:
            break
    return _within_cap(state, requests) if plan.max_rollouts or plan.max_tokens else requests


def _open_prefixes(state: State) -> Sequence[int]:
    """The prefixes that may be asked about now, in order."""
    if state.bracket is not None:
        return (sum(state.bracket) // 2,)
    if state.coarse:
        return state.coarse[state.low : state.low + state.plan.window]
    return range(state.low, min(state.low + state.plan.window, state.prefixes))


def _within_cap(state: State, requests: list[Request]) -> list[Request]:
    """The requests without the rollouts that exceed the response's cap."""
    plan, spent = state.plan, state.spent
    left = max(plan.max_rollouts - spent.rollouts, 0) if plan.max_rollouts else len(requests)
    left = 0 if 0 < plan.max_tokens <= spent.tokens else left
    over = {request for request in requests if request.kind == ROLLOUT and (left := left - 1) < 0}
    return [request for request in requests if request not in over]


def _ask(plan: Plan, prefix: int, cell: Cell, beliefs: tuple[int, int], requests: list[Request]) -> float:
    """Append what this prefix needs next; returns the believed probability that it is the boundary."""
    rolled, bad_mask, fine_mask, lost, judge = cell
    counts = waiting = 0
    if rolled or judge:
        closed = cell_of.status(plan, cell)
        if closed != OPEN:
            return 0.0 if closed == REJECTED else 1.0
        bad, fine = bad_mask.bit_count(), fine_mask.bit_count()
        if cell_of.drawn(plan, bad, fine, lost.bit_count()) != OPEN:
            requests.append(Request(JUDGE, prefix))
            return _AGREEMENT
        counts = bad * (plan.k + 1) + fine
        waiting = rolled & ~(bad_mask | fine_mask | lost)
    share, agree = beliefs
    at, both = share * plan.cells + counts, (share * BINS + agree) * plan.cells + counts
    undecided_judge = judge == cell_of.UNASKED
    if undecided_judge and plan.active.cheapest_first and not waiting and plan.tables.judge_first[both]:
        requests.append(Request(JUDGE, prefix))
    else:
        _ask_draws(plan, prefix, rolled, waiting, plan.tables.burst[at], requests)
    flagged = plan.tables.accept[at]
    return flagged * (agree + 0.5) / BINS if undecided_judge else max(flagged, _AGREEMENT)


def _ask_draws(
    plan: Plan, prefix: int, rolled: int, waiting: int, burst: int, requests: list[Request]
) -> None:
    """The guard on continuations that wait for it, and rollouts in the lowest free slots up to the burst."""
    asked = 0
    if waiting:
        pending = cell_of.bits(waiting)
        asked = len(pending)
        requests.extend([Request(GUARD, prefix, draw) for draw in pending])
    wanted = burst if plan.active.curtail else plan.k
    if wanted > asked:
        free = cell_of.bits(~rolled & ((1 << plan.k) - 1))
        requests.extend([Request(ROLLOUT, prefix, draw) for draw in free[: wanted - asked]])


def update(state: State, results: Iterable[Result]) -> State:
    """The state after these answers, in any order; requests left unanswered will be asked again."""
    cells = state.cells[:]
    rollouts, guards, judges, tokens = state.spent
    scanning = state.bracket is None and not state.coarse
    steps = {} if scanning else {prefix: step for step, prefix in enumerate(_open_prefixes(state))}
    low = state.low
    for result in results:
        kind, prefix, _, flag, probability, generated, _, failed = result
        step = prefix - low if scanning else steps.get(prefix, -1)
        if kind == JUDGE:
            judges += 1
            if step >= 0:
                cell_of.record_judge(cells, step * FIELDS, flag, probability, failed)
            continue
        if kind == GUARD:
            guards += 1
        else:
            rollouts += 1
            tokens += generated
        if step >= 0:
            _record_draw(state, cells, step, result)
    spent = Spent(rollouts, guards, judges, tokens)
    return _halve(state, cells, spent) if state.bracket is not None else _advance(state, cells, spent)


def _record_draw(state: State, cells: array, step: int, result: Result) -> None:
    """Write a rollout or a verdict into its cell, and in recycle mode a verdict into the cells it also serves."""
    at, draw = step * FIELDS, result.draw
    if result.failed:
        cell_of.record_draw(cells, at, draw, LOST)
    elif result.kind == ROLLOUT:
        cell_of.record_draw(cells, at, draw, ROLLED)
    else:
        field = BAD if result.flag else FINE
        cell_of.record_draw(cells, at, draw, field)
        if result.agrees and state.plan.mode == "recycle":
            reach = min(step + result.agrees, state.prefixes - 1 - state.low)
            for served in range(at + FIELDS, reach * FIELDS + 1, FIELDS):
                if served >= len(cells) or not cells[served] >> draw & 1:
                    cell_of.record_draw(cells, served, draw, field)


def _advance(state: State, cells: array, spent: Spent) -> State:
    """Close the leading steps that are decided, and end the scan when its answer is known."""
    plan, low, found, stuck = state.plan, state.low, state.found, state.stuck
    verdicts, trend = cell_of.close(plan, cells, state.trend)
    for verdict in verdicts:
        if verdict != REJECTED and found < 0 and stuck < 0:
            prefix = state.coarse[low] if state.coarse else low
            found, stuck = (prefix, stuck) if verdict == ACCEPTED else (found, prefix)
        low += 1
    last = low == len(state.coarse or range(state.prefixes))
    ended = last or (plan.active.left_to_right and max(found, stuck) >= 0)
    closed = len(cells) if ended else len(verdicts) * FIELDS
    evidence = _noted(state, cells[:closed])
    state = state._replace(
        low=low, cells=cells[closed:], found=found, stuck=stuck, evidence=evidence, trend=trend, spent=spent
    )
    if not ended:
        return _capped(state)
    if state.coarse and found >= 0:
        before = state.coarse[low - 2] if low > 1 else -1
        return _bracketed(state, (before, found))
    return state._replace(done=FAILED if stuck >= 0 else BOUNDARY if found >= 0 else NONE)


def _noted(state: State, cells: array) -> bytes:
    """The evidence with what these cells, the first open ones, say."""
    if not state.coarse:
        return state.evidence.ljust(3 * state.low, b"\0") + cell_of.notes(cells)
    evidence = bytearray(state.evidence)
    for prefix, cell in zip(state.coarse[state.low :], cell_of.each(cells), strict=False):
        cell_of.note(evidence, prefix, cell)
    return bytes(evidence)


def _halve(state: State, cells: array, spent: Spent) -> State:
    """Bisect's second phase: one prefix at a time between the last rejected and the first accepted one."""
    bracket = state.bracket
    assert bracket is not None
    cell = next(cell_of.each(cells), FRESH)
    verdicts, trend = cell_of.close(state.plan, cells[:FIELDS], state.trend)
    state = state._replace(cells=cells, spent=spent)
    if not verdicts:
        return _capped(state)
    (low, high), middle = bracket, sum(bracket) // 2
    evidence = bytearray(state.evidence)
    cell_of.note(evidence, middle, cell)
    state = state._replace(cells=cells[:0], evidence=bytes(evidence), trend=trend)
    if verdicts[0] == STUCK:
        return state._replace(stuck=middle, found=-1, done=FAILED)
    return _bracketed(state, (low, middle) if verdicts[0] == ACCEPTED else (middle, high))


def _bracketed(state: State, bracket: tuple[int, int]) -> State:
    low, high = bracket
    if high - low == 1:
        return state._replace(bracket=None, found=high, done=BOUNDARY)
    return _capped(state._replace(bracket=bracket, found=-1))


def _capped(state: State) -> State:
    """The end of a search whose first open prefix needs a rollout beyond the cap and nothing else."""
    plan, spent = state.plan, state.spent
    over = 0 < plan.max_rollouts <= spent.rollouts or 0 < plan.max_tokens <= spent.tokens
    return state._replace(done=CAPPED) if over and not next_requests(state, window=1) else state


def reopened(state: State, plan: Plan) -> State:
    """The search under a plan that differs in its caps only: a capped one goes on if the new caps let it."""
    state = state._replace(plan=plan)
    return _capped(state._replace(done="")) if state.done == CAPPED else state
