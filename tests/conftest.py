"""What the tests of the jobs share: steps that run in this process without Ray, and engines without a model.

The stand-ins know no policy: a writer that shuffles the words it is shown, a voter that hashes what it reads, an
embedder that counts words. Fitted heads are real.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.engine.calls import Completion, Failure, Model, Sampling, Scores, TokenScores
from ray_jobs.engine.client import COUNTED
from ray_jobs.step import Run, Step, Work, run_step
from ray_jobs.step.units import run_unit
from ray_jobs.store import Provenance, Store, TableVersion
from synth.ids import stable_hash
from synth.policy import Policy, load_policy

POISON = "poison"  # an engine fails on every text that holds this word


class FakeClient:
    """The four calls of one role, a pure function of what it is asked. `usage` as a real client's."""

    def __init__(self, model: Model, fails: Callable[[str], bool]) -> None:
        self.model, self.fails = model, fails
        self.usage = dict.fromkeys(COUNTED, 0)
        self.asked: list[Any] = []

    def generate(self, prompts: Sequence[Any], sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        assert len(prompts) == len(seeds)
        return [
            self._answer(p, lambda text, s=s: self._written(text, s))
            for p, s in zip(prompts, seeds, strict=True)
        ]

    def score(self, prompts: Sequence[Any], continuations: Sequence[tuple[str, ...]]) -> list[Any]:
        def told(text: str, labels: tuple[str, ...]) -> Scores:
            weights = [int(stable_hash(self.model.name, text, label)[:4], 16) + 1 for label in labels]
            return Scores(tuple(weight / sum(weights) for weight in weights), False, len(text.split()))

        pairs = zip(prompts, continuations, strict=True)
        return [self._answer(prompt, lambda text, ls=labels: told(text, ls)) for prompt, labels in pairs]

    def score_tokens(self, conversations: Sequence[list[dict[str, str]]]) -> list[Any]:
        return [self._answer(turns, lambda _text, t=turns: self._tokens(t)) for turns in conversations]

    def embed(self, texts: Sequence[str]) -> list[Any]:
        return [self._answer(text, word_vector) for text in texts]

    def _answer(self, prompt: Any, make: Callable[[str], Any]) -> Any:
        text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        self.asked.append(prompt)
        self.usage["calls"] += 1
        if self.fails(text):
            return Failure("the engine refused this row", "what came back")
        answer = make(text)
        self.usage["prompt_tokens"] += len(text.split())
        self.usage["completion_tokens"] += getattr(answer, "completion_tokens", 0)
        return answer

    def _written(self, text: str, seed: int) -> Completion:
        """Continues a twin ("… ->") with one word changed, anything else with ten of its words and its quoted one."""
        rng, lines = random.Random(seed), [line for line in text.splitlines() if line.strip()]
        if lines[-1].rstrip().endswith("->"):
            words = lines[-1].rstrip()[:-2].split()
            words[rng.randrange(len(words))] = "otherwise"
        else:
            listed = [word for line in lines if line.startswith("- ") for word in line[2:].split()]
            words = rng.sample(listed or lines[-1].split() * 6, 6) + re.findall(r'"([^"]+)"', lines[-2:][0])
        return Completion(" ".join(words) + ".", "stop", len(text.split()), len(words))

    def _tokens(self, turns: list[dict[str, str]]) -> TokenScores:
        answer = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        offsets = [match.span() for match in re.finditer(r"\S+", answer)]
        risk = (
            np.eye(3)[[1 if word == "bad" else 0 for word in answer.split()]] if offsets else np.zeros((0, 3))
        )
        query = np.eye(3)[1 if "bad" in turns[-1]["content"].split() else 0]
        return TokenScores(
            np.array(offsets), risk, np.ones((len(offsets), 8)), query, np.ones(9), len(offsets)
        )


def word_vector(text: str) -> np.ndarray:
    """[64] float32, the hashed words of a text, of length 1."""
    vector = np.full(64, 1e-3, np.float32)
    for word in text.casefold().split():
        vector[int(stable_hash(word)[:6], 16) % 64] += 1
    return vector / np.linalg.norm(vector)


class FakeEngines:
    """Stands in for Engines: heads are loaded for real, every other role is a FakeClient."""

    def __init__(
        self, roles: Mapping[str, Model], cache_dir: str = "", fails: Callable[[str], bool] | None = None
    ):
        self.roles, self.clients, self.kept = dict(roles), dict[str, Any](), list[str]()
        self.fails = fails or (lambda text: POISON in text.casefold())

    def open(self, *roles: str) -> None:
        for role in roles:
            self.get(role)

    def get(self, role: str) -> Any:
        from ray_jobs.engine import head
        from ray_jobs.engine.client import HeadClient

        model = self.roles[role]
        if role not in self.clients:
            fitted = model.kind == "head"
            self.clients[role] = (
                HeadClient(head.load(model.name), None, model) if fitted else FakeClient(model, self.fails)
            )
        return self.clients[role]

    def take_usage(self) -> dict[str, dict[str, int]]:
        taken = {role: client.usage for role, client in self.clients.items()}
        for client in self.clients.values():
            client.usage = dict.fromkeys(COUNTED, 0)
        return taken

    def shutdown(self, keep: Sequence[str] = ()) -> None:
        """Nothing is held; what was to be kept is noted."""
        self.kept = list(keep)


class Inline:
    """Counts what a run in this process does: starts of Ray, units run by step, opened engines."""

    def __init__(self) -> None:
        self.ray_starts = 0
        self.units: list[tuple[str, str]] = []
        self.engines: list[FakeEngines] = []

    def done(self) -> list[str]:
        """The keys of the units run since the last time it was asked, sorted."""
        keys, self.units = sorted(key for _, key in self.units), []
        return keys


@pytest.fixture(scope="module")
def inline() -> Iterator[Inline]:
    """Steps of this module run here: no Ray, no model."""
    seen = Inline()

    def units_here(step: Step, units: list[Any], work: Work, cpus: float) -> Iterator[dict[str, Any]]:
        for unit in units:
            seen.units.append((step.name, unit.key))
            yield run_unit(step, unit, work)

    def engines(roles: Mapping[str, Model], cache_dir: str = "", requests: Any = None) -> FakeEngines:
        seen.engines.append(FakeEngines(roles, cache_dir))
        return seen.engines[-1]

    def start(run: Run) -> None:
        seen.ray_starts += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.step.run._run_on_ray", units_here)
        patch.setattr("ray_jobs.step.run.Run.start_ray", start)
        patch.setattr("ray_jobs.engine.Engines", engines)
        patch.setattr("ray_jobs.engine.fingerprint", lambda model: f"{model.name}:{model.revision}")
        patch.setattr("ray_jobs.engine.actor_name", lambda model: model.name)
        yield seen


@pytest.fixture(scope="session")
def safety() -> Policy:
    return load_policy("safety")


@pytest.fixture(scope="session")
def data_quality() -> Policy:
    return load_policy("data_quality")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture(scope="session")
def put() -> Callable[..., TableVersion]:
    """put(store, name, schema, rows, identity) commits rows as a table's next version, as a step would; columns that a
    row lacks are null."""

    def commit(
        store: Store, name: str, schema: pa.Schema, rows: list[dict[str, Any]], identity: str = ""
    ) -> TableVersion:
        table = pa.Table.from_pylist(rows, schema=pa.schema([f for f in schema if f.name != "digest"]))
        made = Provenance(name, identity or stable_hash(name, len(rows), [row["id"] for row in rows]))
        return store.commit(name, schema, store.write_fragments(name, table, schema), made)

    return commit


@pytest.fixture(scope="session")
def quiet_run() -> Callable[..., Run]:
    """quiet_run(store, policy, roles, …) is a Run that reports nothing."""

    def make(store: Store, policy: Policy, roles: Mapping[str, Model] | None = None, **fields: Any) -> Run:
        from ray_jobs.progress import Progress

        return Run(
            store, policy, fields.pop("seed", 17), roles or {}, progress=Progress(quiet=True), **fields
        )

    return make


@pytest.fixture(scope="session")
def make_work() -> Callable[..., Work]:
    """make_work(policy, store, config, roles, rows, …) is a step's work built by hand."""

    def make(
        policy: Policy, store: Store, config: Any, roles: Mapping[str, Model] | None = None, **fields: Any
    ) -> Work:
        given = {"unit": "u", "identity": "made-by-hand", "rows": {}, "seed": 17, "versions": {}}
        engines = fields.pop("engines", None) or FakeEngines(roles or {})
        return Work(config=config, policy=policy, engines=engines, store=store, **(given | fields))

    return make


@pytest.fixture(scope="session")
def step_on() -> Callable[..., dict[str, TableVersion]]:
    """step_on(run, step) runs one step and keeps its versions on the run, as a flow does."""

    def go(run: Run, step: Step) -> dict[str, TableVersion]:
        made = run_step(step, run)
        run.versions.update(made)
        return made

    return go
