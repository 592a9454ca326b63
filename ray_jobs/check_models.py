"""One tiny call to every model that a recipe binds: what answered, how fast, or why it did not.

A model is asked what its kind is used for: a language model writes eight tokens, an embedder or a reward model reads a
sentence, a head or a guard scores, a streaming guard reads tokens. Models of the run itself ("@gen_guard/guard") are
asked where the root has them. Steps whose needed roles are unbound are told as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_jobs.engine import EngineDied, Failure, Model, Sampling
from ray_jobs.engine.client import HeadClient
from ray_jobs.step import Run, Step
from ray_jobs.step.artifacts import resolve_model
from ray_jobs.step.definition import resolve_roles
from ray_jobs.store import StoreError
from synth.errors import BadInput

TEXT = "Name a fruit that is yellow."
CHAT = [{"role": "user", "content": TEXT}]
WRITERS = ("instruct", "base", "reasoning")
PATIENCE = 15  # seconds for an endpoint that is down: a run waits for its return, who asks here wants to know


@dataclass(frozen=True)
class Answer:
    """What one model said. state: "ok", "failed", or "waiting" for one that the run has yet to make."""

    roles: tuple[str, ...]
    engine: str
    model: str
    kind: str
    state: str
    told: str
    load_seconds: float = 0.0
    call_seconds: float = 0.0
    tokens: int = 0

    def line(self) -> str:
        speed = f"loaded in {self.load_seconds:.1f} s, answered in {self.call_seconds:.2f} s"
        rate = (
            f" ({self.tokens / self.call_seconds:.0f} tokens/s)" if self.tokens and self.call_seconds else ""
        )
        costs = f"  [{speed}{rate}]" if self.state == "ok" else ""
        what = f"{self.engine} {self.model} ({self.kind})" if self.model else "no model"
        return f"{self.state:<8} {', '.join(self.roles)}: {what}: {self.told}{costs}"


def check(steps: Sequence[Step], run: Run) -> list[Answer]:
    """Ask every model once, side by side roles together. Weights are loaded one after the other, and let go when all
    that use them were asked."""
    bound: dict[Model, list[str]] = {}
    for role, model in run.roles.items():
        bound.setdefault(_impatient(model), []).append(role)
    sharing: dict[str, list[Model]] = {}
    for model in bound:
        sharing.setdefault(_actor(model), []).append(model)
    answers = unbound(steps, run)
    run.start_ray()
    for actor, models in sharing.items():
        for model in models:
            kept = () if model is models[-1] else (actor,)
            answers.append(_asked(tuple(bound[model]), model, run, kept))
    return answers


def _impatient(model: Model) -> Model:
    if model.engine != "openai" or "patience_s" in dict(model.options):
        return model
    return replace(model, options=(*model.options, ("patience_s", PATIENCE)))


def _actor(model: Model) -> str:
    """The actor that a model shares with others of the same weights; one of its own where that cannot be told."""
    from ray_jobs.engine import actor_name

    try:
        name = "" if model.name.startswith("@") else actor_name(model)
    except BadInput:  # told when it is asked
        name = ""
    return name or repr(model)


def unbound(steps: Sequence[Step], run: Run) -> list[Answer]:
    """The roles that a step needs and the recipe binds to nothing."""
    missing = []
    for step in steps:
        for role in (role for role in step.roles if not role.endswith("?")):
            try:
                resolve_roles(replace(step, roles=(role,)), run.roles)
            except BadInput as problem:
                missing.append(Answer((role,), "", "", "", "failed", str(problem)))
    return missing


def _asked(roles: tuple[str, ...], model: Model, run: Run, kept: Sequence[str]) -> Answer:
    """What the model said; its actor goes, unless it is among those kept."""
    from ray_jobs.engine import Engines

    about = (roles, model.engine, model.name, model.kind)
    try:
        found = resolve_model(model, run.store, run.version)
    except (BadInput, StoreError) as problem:
        return Answer(*about, "waiting", f"made by the run itself: {problem}")
    engines = Engines({roles[0]: found})
    started = time.monotonic()
    try:
        client = engines.get(roles[0])
        loaded = time.monotonic()
        answer = _ask(client, found)
        ended = time.monotonic()
    except (BadInput, EngineDied, TypeError) as problem:
        return Answer(*about, "failed", str(problem), time.monotonic() - started)
    finally:
        engines.shutdown(kept)
    if isinstance(answer, Failure):
        return Answer(*about, "failed", f"{answer.reason} {answer.raw[:200]}".strip(), loaded - started)
    return Answer(
        *about, "ok", _said(answer), loaded - started, ended - loaded, getattr(answer, "completion_tokens", 0)
    )


def _ask(client: Any, model: Model) -> Any:
    """One row of the call that this kind of model is used for."""
    if model.kind in WRITERS:
        return client.generate([TEXT if model.kind == "base" else CHAT], Sampling(max_tokens=8), [1])[0]
    if isinstance(client, HeadClient):
        return client.score([TEXT], [client.head.outputs[0].labels])[0]
    if model.kind == "stream_guard":
        return client.score_tokens([[*CHAT, {"role": "assistant", "content": "A banana."}]])[0]
    if model.kind == "embedder":
        return client.embed([TEXT])[0]
    return client.score([TEXT], [("Yes", "No")])[0]


def _said(answer: Any) -> str:
    if hasattr(answer, "text"):
        return repr(answer.text)
    if hasattr(answer, "probabilities"):
        return "scores " + ", ".join(f"{value:.2f}" for value in answer.probabilities)
    if hasattr(answer, "risk"):
        return f"verdicts on {len(answer.risk)} tokens"
    return f"a vector of {len(answer)} numbers"
