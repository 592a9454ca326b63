"""The waves of token labelling: all open searches advance together, and every wave is recorded.

One wave is the union of what the open searches ask next, grouped by model and sorted so that shared prefixes are
neighbours; a rollout and the guard's verdict on it belong to one wave. From `batch` open searches on each looks at one
prefix only: the devices are full without looking ahead, and nothing is drawn in vain. What has been seen so far (the
ledger's rates) decides with which test each prefix begins.

The ledger is one record per run, replaced atomically after each wave, so that a crash costs the wave in flight. A
search that ended as failed is forgotten on the next start: its calls are tried again, with the same draws.
"""

from __future__ import annotations

import base64
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from label.rollout import DEFAULT_RATES, next_requests, reopened, update
from label.rollout_plan import Plan, Rates
from label.rollout_state import FAILED, GUARD, JUDGE, ROLLOUT, Request, Result, State, from_bytes, to_bytes
from ray_jobs.engine import Failure
from ray_jobs.step import Work
from ray_jobs.token_calls import Search, guard_verdicts, judge, rollout_roles, rollouts


@dataclass(frozen=True)
class Wave:
    """What one wave asked: open searches, calls by kind, generated tokens, and seconds by kind."""

    number: int
    open: int
    rollouts: int
    guards: int
    judges: int
    tokens: int
    rollout_seconds: float
    guard_seconds: float
    judge_seconds: float


@dataclass
class Ledger:
    """States and problems by search, the rates seen, and the waves so far."""

    states: dict[str, str] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    rates: Rates = DEFAULT_RATES
    waves: list[Wave] = field(default_factory=list)

    @classmethod
    def load(cls, work: Work) -> Ledger:
        told = work.store.get_json(wave_path(work))
        if told is None:
            return cls()
        waves = [Wave(**wave) for wave in told["waves"]]
        return cls(told["states"], told["problems"], Rates(*told["rates"]), waves)

    def save(self, work: Work) -> None:
        waves = [asdict(wave) for wave in self.waves]
        told = {"states": self.states, "problems": self.problems, "rates": list(self.rates), "waves": waves}
        work.store.put_json(wave_path(work), told)

    def state(self, key: str, plan: Plan) -> State | None:
        """Where the last recorded wave left a search, which may have been capped lower; None for a new one and for one
        that failed."""
        if key not in self.states:
            return None
        state = from_bytes(plan, base64.b64decode(self.states[key]))
        return None if state.done == FAILED else reopened(state, plan)

    def record(self, searches: list[Search], wave: Wave, seen: Counter[str]) -> None:
        """Take up the searches that a wave moved."""
        for search in searches:
            self.states[search.key] = base64.b64encode(to_bytes(search.state)).decode()
            if search.problems:
                self.problems[search.key] = search.problems
        self.rates = self.rates.plus(seen["bad"], seen["fine"], seen["yes"], seen["no"])
        self.waves.append(wave)


def wave_path(work: Work) -> str:
    return f"ledger/token_labels/waves-{work.identity}.json"


def advance(
    work: Work, searches: list[Search], ledger: Ledger, told: Callable[[Wave], None] = lambda wave: None
) -> None:
    """Advance all searches until each has an outcome; `told` hears of every wave once it is recorded."""
    if any(not search.state.done for search in searches):
        work.engines.open(*rollout_roles(work), "guard", "judge")
    while True:
        still = [search for search in searches if not search.state.done]
        window = 1 if len(still) >= work.config.batch else 0
        asked = [(search, next_requests(search.state, ledger.rates, window)) for search in still]
        if not asked:
            return
        results, wave = answer(work, asked, len(ledger.waves) + 1)
        for search, _ in asked:
            search.state = update(search.state, results[search.key])
        ledger.record([search for search, _ in asked], wave, outcomes(results))
        ledger.save(work)
        told(wave)


def answer(
    work: Work, asked: list[tuple[Search, list[Request]]], number: int
) -> tuple[dict[str, list[Result]], Wave]:
    """The answers to one wave, by search. A guard request of an earlier wave's rollout repeats that rollout, whose seed
    gives the same text."""
    draws = [(s, r) for s, requests in asked for r in requests if r.kind in (ROLLOUT, GUARD)]
    judged = [(s, r) for s, requests in asked for r in requests if r.kind == JUDGE]
    draws.sort(key=lambda draw: (draw[0].key, draw[1].prefix, draw[1].draw))
    results: dict[str, list[Result]] = defaultdict(list)
    marks = [time.monotonic()]
    completions = rollouts(work, draws)
    marks.append(time.monotonic())
    told = guard_verdicts(work, draws, completions)
    marks.append(time.monotonic())
    for (search, request), (violates, tokens, agrees, problem) in zip(draws, told, strict=True):
        where = (request.prefix, request.draw)
        if request.kind == ROLLOUT:
            results[search.key].append(Result(ROLLOUT, *where, tokens=tokens, failed=bool(problem)))
        if problem:
            search.problems.append(f"prefix {request.prefix}, draw {request.draw}: {problem}")
        if request.kind == GUARD or not problem:
            verdict = Result(GUARD, *where, flag=violates, agrees=agrees, failed=bool(problem))
            results[search.key].append(verdict)
    for (search, request), chance in zip(judged, judge(work, judged), strict=True):
        lost = isinstance(chance, Failure)
        if isinstance(chance, Failure):
            search.problems.append(f"prefix {request.prefix}: judge: {chance.reason}")
            chance = 0.0
        verdict = Result(JUDGE, request.prefix, flag=chance >= 0.5, probability=chance, failed=lost)
        results[search.key].append(verdict)
    marks.append(time.monotonic())
    seconds = [round(end - begin, 3) for begin, end in pairwise(marks)]
    guards, tokens = sum(not problem for *_, problem in told), sum(tokens for _, tokens, _, _ in told)
    return results, Wave(number, len(asked), len(draws), guards, len(judged), tokens, *seconds)


def outcomes(results: dict[str, list[Result]]) -> Counter[str]:
    """How often draws violated or not, and the judge said yes or no."""
    seen: Counter[str] = Counter()
    for result in (one for many in results.values() for one in many if not one.failed):
        if result.kind == GUARD:
            seen["bad" if result.flag else "fine"] += 1
        elif result.kind == JUDGE:
            seen["yes" if result.flag else "no"] += 1
    return seen


def summary(waves: list[Wave]) -> dict[str, Any]:
    """Waves, calls and seconds of a run."""
    total = {
        name: sum(getattr(wave, name) for wave in waves)
        for name in ("rollouts", "guards", "judges", "tokens")
    }
    spent = sum(wave.rollout_seconds + wave.guard_seconds + wave.judge_seconds for wave in waves)
    return {"waves": len(waves), **total, "seconds": round(spent, 1)}
