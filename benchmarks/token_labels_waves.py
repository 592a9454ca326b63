"""How full the devices are: requests per wave when many simulated responses are searched side by side.

The loop is the job's (ray_jobs.token_waves): one wave is what all open searches ask next; from 256 open ones on, none
looks ahead; the rates seen so far steer all. A model with `SLOTS` slots answers a wave of r requests in ceil(r / SLOTS)
batches, of which r // SLOTS are full, and a batch takes as long full or not: the share of full batches is the share of
time in which the model was full.
"""

from collections import Counter
from typing import Any

from token_labels_world import answers, simulate

from label.rollout import DEFAULT_RATES, next_requests, start, update
from label.rollout_plan import Plan, Rates
from label.rollout_state import GUARD, JUDGE, ROLLOUT, Request, Result

SLOTS, BATCH = 256, 256


def waves(plan: Plan, rows: int, seed: int, batch: int = BATCH) -> list[dict[str, int]]:
    """Open searches, draws and judge calls of every wave; `batch`: from so many open searches on none looks ahead."""
    responses = [simulate(index, seed, plan.k) for index in range(rows)]
    tables = [answers(one) for one in responses]
    states = [start(len(one.judge), plan, one.sentence_ends) for one in responses]
    rates, told = DEFAULT_RATES, []
    while True:
        still = [at for at, state in enumerate(states) if not state.done]
        window = 1 if len(still) >= batch else 0
        asked = {at: next_requests(states[at], rates, window) for at in still}
        if not asked:
            return told
        kinds = Counter(request.kind for requests in asked.values() for request in requests)
        told.append({"open": len(still), "draws": kinds[ROLLOUT] + kinds[GUARD], "judges": kinds[JUDGE]})
        seen: Counter[tuple[str, bool]] = Counter()
        for at, requests in asked.items():
            results = [one for request in requests for one in answered(tables[at], request)]
            seen.update((one.kind, one.flag) for one in results)
            states[at] = update(states[at], results)
        rates = Rates(*rates).plus(
            seen[GUARD, True], seen[GUARD, False], seen[JUDGE, True], seen[JUDGE, False]
        )


def answered(table: Any, request: Request) -> list[Result]:
    """The table's answers; a rollout and the guard's verdict on it belong to one wave."""
    if request.kind != ROLLOUT:
        return [table(request)]
    return [table(request), table(Request(GUARD, request.prefix, request.draw))]


def full_share(told: list[dict[str, int]], kind: str, slots: int = SLOTS) -> float:
    """The share of a model's batches that are full."""
    full = sum(wave[kind] // slots for wave in told)
    return full / max(1, sum(-(-wave[kind] // slots) for wave in told))


def fullness(plan: Plan, rows: int, seed: int) -> dict[str, Any]:
    """The run as the job makes it, and with a look-ahead always or never."""
    found: dict[str, Any] = {"rows": rows, "slots": SLOTS}
    for name, batch in (
        ("as the job", BATCH),
        ("always looking ahead", rows + 1),
        ("never looking ahead", 1),
    ):
        told = waves(plan, rows, seed, batch)
        line: dict[str, Any] = {kind: sum(wave[kind] for wave in told) for kind in ("draws", "judges")}
        line |= {f"full_{kind}": full_share(told, kind) for kind in ("draws", "judges")}
        found[name] = line | {"waves": len(told), "per_wave": told}
    return found
