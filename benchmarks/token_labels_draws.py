"""The stored table of draws of the token label benchmark, and searches that fill it or run beside it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from token_labels_models import SLOTS, judged

from label.rollout import next_requests, update
from label.rollout_state import GUARD, JUDGE, ROLLOUT, Request, Result
from ray_jobs.step import Work
from ray_jobs.token_calls import Search
from ray_jobs.token_waves import Wave, answer


class OutOfTime(Exception):
    """The budget of --seconds is spent; what was drawn is stored."""


@dataclass
class Draws:
    """The table of outcomes, kept in a file: verdicts and tokens by row, prefix and draw, the judge's probabilities."""

    path: Path
    until: float
    draws: dict[str, tuple[bool, int]] = field(default_factory=dict)
    judge: dict[str, list[float]] = field(default_factory=dict)
    waves: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            told = json.loads(self.path.read_text())
            self.draws = {key: tuple(value) for key, value in told["draws"].items()}  # type: ignore[misc]
            self.judge, self.waves = told["judge"], told["waves"]

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"draws": self.draws, "judge": self.judge, "waves": self.waves}))
        part.replace(self.path)
        if time.monotonic() > self.until:
            raise OutOfTime

    def read_judge(self, work: Work, unread: list[Search]) -> None:
        """Ask the judge about every prefix."""
        found, spent = judged(work, unread)
        self.judge |= found
        self.waves.setdefault("judge", []).append([spent, float(sum(map(len, found.values())))])
        self.save()

    def knows(self, search: Search, request: Request) -> bool:
        return request.kind == JUDGE or place(search, request) in self.draws

    def answers(self, search: Search) -> Callable[[Request], Result]:
        """The table's answers to one search, all it asks."""

        def told(request: Request) -> Result:
            if request.kind == JUDGE:
                chance = self.judge[search.row["id"]][request.prefix]
                return Result(JUDGE, request.prefix, flag=chance >= 0.5, probability=chance)
            flag, tokens = self.draws[place(search, request)]
            return Result(request.kind, request.prefix, request.draw, flag=flag, tokens=tokens)

        return told

    def outcomes(self, search: Search, k: int) -> tuple[list[list[bool]], list[bool]]:
        """violating [n][k] and judge [n]."""
        rows = range(len(search.prefixes))
        found = [[self.draws[place(search, Request(GUARD, i, j))][0] for j in range(k)] for i in rows]
        return found, [chance >= 0.5 for chance in self.judge[search.row["id"]]]


def place(search: Search, request: Request) -> str:
    return f"{search.row['id']}/{request.prefix}/{request.draw}"


def draw_all(work: Work, open_searches: list[Search], draws: Draws, name: str) -> dict[str, float]:
    """Run `paper`: every wave's draws are made or, when an earlier try made them, read; what all cost together."""
    spent = draws.waves.setdefault(name, [])
    while asked := [(s, requests) for s in open_searches if (requests := next_requests(s.state))]:
        if not all(draws.knows(s, r) for s, requests in asked for r in requests):
            begun = time.process_time()
            work.engines.fullness.seconds.clear()  # type: ignore[attr-defined]
            results, wave = answer(work, asked, 0)
            for search, _ in asked:
                tokens = {(r.prefix, r.draw): r.tokens for r in results[search.key] if r.kind == ROLLOUT}
                for one in results[search.key]:
                    if one.kind == GUARD:
                        key = place(search, Request(GUARD, one.prefix, one.draw))
                        draws.draws[key] = (one.flag, tokens[one.prefix, one.draw])
            full = work.engines.fullness  # type: ignore[attr-defined]
            steps = sum(full.seconds.values())
            spent.append(
                [
                    *seconds(wave),
                    wave.rollouts,
                    wave.tokens,
                    time.process_time() - begun,
                    steps,
                    steps * full.share(SLOTS),
                ]
            )
            draws.save()
            print(f"  {name}: {wave.rollouts} draws in {sum(seconds(wave)):.0f} s", flush=True)
        for search, requests in asked:
            # a rollout request stands for its verdict too, as in a real wave
            told, verdict = draws.answers(search), []
            for request in requests:
                verdict.append(told(request))
                if request.kind == ROLLOUT:
                    verdict.append(told(Request(GUARD, request.prefix, request.draw)))
            search.state = update(search.state, verdict)
    columns = [sum(column) for column in zip(*spent, strict=True)]
    names = ("rollout_seconds", "guard_seconds", "judge_seconds", "rollouts", "tokens", "cpu_seconds",
             "step_seconds", "full_step_seconds")  # fmt: skip
    return dict(zip(names, columns, strict=True))


def seconds(wave: Wave) -> tuple[float, float, float]:
    return wave.rollout_seconds, wave.guard_seconds, wave.judge_seconds


def run_mode(work: Work, open_searches: list[Search], draws: Draws) -> dict[str, Any]:
    """A mode for real; every answer is new work. Draws that came out otherwise than the stored ones are counted."""
    begun, cpu = time.perf_counter(), time.process_time()
    waves: list[Wave] = []
    made = other = 0
    while asked := [(s, requests) for s in open_searches if (requests := next_requests(s.state))]:
        results, wave = answer(work, asked, len(waves) + 1)
        waves.append(wave)
        for search, _ in asked:
            search.state = update(search.state, results[search.key])
            for one in (one for one in results[search.key] if one.kind == GUARD):
                known = draws.draws.get(place(search, Request(GUARD, one.prefix, one.draw)))
                made, other = made + 1, other + (known is not None and known[0] != one.flag)
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "waves": [{"open": w.open, "rollouts": w.rollouts, "judges": w.judges} for w in waves],
        "draws": made,
        "draws_unlike_stored": other,
    }
