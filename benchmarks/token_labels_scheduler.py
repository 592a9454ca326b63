"""The rollout search's own cost: driver time of a wave of many active responses, and memory per response.

Answers are coin tosses made outside the measured time, so that all responses stay active; time is that of
one process (CPU seconds), with a look-ahead window of 1, as the job uses from 256 open searches on, and of 8. What the
ledger adds to a wave (all states as text) is timed too.
"""

import base64
import json
import time
import tracemalloc
from random import Random

from token_labels_world import costs

from label.rollout import next_requests, start, update
from label.rollout_plan import Plan
from label.rollout_state import GUARD, Request, Result, State, to_bytes


def scheduler(states_wanted: int, seed: int) -> dict[str, float]:
    """Driver time of one wave of `states_wanted` active responses on one core, and memory per response."""
    plan, rng = Plan(k=8, costs=costs()), Random(seed)
    states = [start(rng.randint(50, 500), plan) for _ in range(states_wanted)]
    slowest = {1: 0.0, 8: 0.0}
    for wave in range(6):
        window = 8 if wave % 2 else 1
        begun = time.process_time()
        asked = [next_requests(state, window=window) for state in states]
        spent = time.process_time() - begun
        results = [[_coin(request, rng) for request in requests] for requests in asked]
        begun = time.process_time()
        states = [update(state, answer) for state, answer in zip(states, results, strict=True)]
        slowest[window] = max(slowest[window], spent + time.process_time() - begun)
    begun = time.process_time()
    ledger = json.dumps(
        {str(i): base64.b64encode(to_bytes(state)).decode() for i, state in enumerate(states)}
    )
    written = time.process_time() - begun
    return {
        "responses": states_wanted,
        "seconds_ledger": written,
        "ledger_bytes_per_response": len(ledger) / states_wanted,
        "seconds_window_1": slowest[1],
        "seconds_window_8": slowest[8],
        "bytes_per_response": _memory(plan, rng),
    }


def _coin(request: Request, rng: Random) -> Result:
    kind, prefix, draw = request
    flag = rng.random() < (0.3 if kind == GUARD else 0.02)
    return Result(kind, prefix, draw, flag=flag, probability=0.3, tokens=64)


def _memory(plan: Plan, rng: Random, rows: int = 500) -> float:
    """The most bytes per response over a whole search, by tracemalloc, requests and results gone."""
    plan.tables  # noqa: B018 - shared by all responses, so made before the count
    tracemalloc.start()
    states: list[State] = [start(rng.randint(50, 500), plan) for _ in range(rows)]
    most = 0
    while any(not state.done for state in states):
        for at, state in enumerate(states):
            states[at] = update(state, [_coin(request, rng) for request in next_requests(state)])
        most = max(most, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(len(to_bytes(state)) for state in states) < 2048
    return most / rows
