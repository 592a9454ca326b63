"""The real models of the token label benchmark, in this process: a root's guard and judge, SmolLM2 rolling out.

The calls, prompts and seeds are the job's own (ray_jobs.token_calls, ray_jobs.token_waves); only Ray is left out, so
that what is timed is the work. There is no cache of requests: what a mode asks, it pays for. While a model generates,
its rows are counted at every step, which says how full the device was.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from label.rollout_state import JUDGE, Request
from label.token_labels import prefixes_of
from ray_jobs.engine import Failure, Model
from ray_jobs.engine.client import HeadClient
from ray_jobs.engine.local import LocalModel
from ray_jobs.pipeline import run_of
from ray_jobs.recipes import Recipe
from ray_jobs.step import Work
from ray_jobs.token_calls import Search, judge
from ray_jobs.token_labels import TokenLabelsConfig, begin, parts, step, tokenizer
from ray_jobs.token_waves import Ledger
from synth.policy import load_policy

SLOTS = 64


class Base:
    """What a fitted head asks its embedder, as a client of an actor would."""

    def __init__(self, model: Model) -> None:
        self.loaded = LocalModel(model)

    def _call(self, method: str, columns: tuple[list[Any], ...]) -> list[Any]:
        return self.loaded.embed(columns[0])


@dataclass
class Fullness:
    """Seconds of decoding steps, by the number of rows that were active."""

    seconds: dict[int, float] = field(default_factory=dict)

    def add(self, rows: int, seconds: float) -> None:
        self.seconds[rows] = self.seconds.get(rows, 0.0) + seconds

    def share(self, least: int) -> float:
        """The share of the time with at least so many rows."""
        total = sum(self.seconds.values())
        return sum(s for rows, s in self.seconds.items() if rows >= least) / total if total else 0.0


class Here:
    """Engines in this process. `fullness` counts the rollout model's steps."""

    def __init__(self, roles: dict[str, Model]) -> None:
        self.roles, self.clients, self.fullness = roles, dict[str, Any](), Fullness()

    def open(self, *roles: str) -> None:
        for role in roles:
            self.get(role)

    def get(self, role: str) -> Any:
        if role not in self.clients:
            self.clients[role] = self._load(self.roles[role], role)
        return self.clients[role]

    def _load(self, model: Model, role: str) -> Any:
        from ray_jobs.engine import head as heads

        if model.kind == "head":
            head = heads.load(model.name)
            return HeadClient(head, Base(head.base) if head.base else None, model)  # type: ignore[arg-type]
        client = LocalModel(
            Model(model.engine, model.name, model.kind, options=(("slots", SLOTS), ("cache_gb", 3.0)))
        )
        if role.startswith("rollout"):
            extend = client.loaded.extend

            def counted(token_BQ: Any, *arguments: Any, **named: Any) -> Any:
                started = time.perf_counter()
                out = extend(token_BQ, *arguments, **named)
                if token_BQ.shape[1] == 1 and out is not None:
                    self.fullness.add(token_BQ.shape[0], time.perf_counter() - started)
                return out

            client.loaded.extend = counted
        return client


def make_work(recipe: Recipe, root: str, config: TokenLabelsConfig) -> tuple[Work, Here]:
    """The work of a token_labels step with a root's guards, and its engines."""
    run = run_of(recipe, load_policy(recipe.policy), root)
    here = Here(run.models(step(config)))
    work = Work("all", "benchmark", {}, config, run.policy, run.seed, here, run.store, {})  # type: ignore[arg-type]
    return work, here


def searches(work: Work, rows: Iterable[dict[str, Any]]) -> list[Search]:
    """A fresh search per answer."""
    split, made = tokenizer(work), []
    for row in rows:
        (part,) = parts(row)
        told = split(part.text, add_special_tokens=False, return_offsets_mapping=True)
        prefixes = prefixes_of(part.text, told["offset_mapping"])
        made.append(begin(row["id"], row, part, prefixes, work.config.plan, Ledger()))
    return made


def judged(work: Work, open_searches: list[Search]) -> tuple[dict[str, list[float]], float]:
    """The judge's probability at every prefix of every search, by row, and the seconds it took."""
    begun = time.perf_counter()
    pairs = [(search, Request(JUDGE, i)) for search in open_searches for i in range(len(search.prefixes))]
    found: dict[str, list[float]] = {}
    for (search, _), chance in zip(pairs, judge(work, pairs), strict=True):
        assert not isinstance(chance, Failure), chance
        found.setdefault(search.row["id"], []).append(chance)
    return found, time.perf_counter() - begun


def sample(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the job reads it: what a source lacks is empty."""
    return {
        "group_id": row["id"],
        "history": [],
        "thinking": "",
        "language": "en",
        "severity": "Unsafe",
    } | row
