"""The only door to a model.

A recipe binds each role to a `Model`; a step asks `Engines.get(role)` for a client and calls it, from the
driver or from any Ray task, without knowing which engine answers. A model is loaded once, into one named Ray
actor that lives as long as the run, not as long as one dataset execution.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_jobs.engine import head as heads
from ray_jobs.engine.actor import start
from ray_jobs.engine.calls import (
    Completion,
    Engine,
    EngineDied,
    Failure,
    Message,
    Model,
    Prompt,
    Sampling,
    Scores,
    TokenScores,
)
from ray_jobs.engine.client import Client, HeadClient, gone, wait
from ray_jobs.engine.replicas import spread
from ray_jobs.engine.vllm import available
from ray_jobs.engine.weights import IDENTITY_OPTIONS, fingerprint, form, locate
from synth.errors import BadInput
from synth.ids import stable_hash

__all__ = [
    "Client", "Completion", "Engine", "EngineDied", "Engines", "Failure", "Message", "Model", "Prompt",
    "Sampling", "Scores", "TokenScores", "actor_name", "fingerprint",
]  # fmt: skip

NAMESPACE = "guardmill"
# Two threads of a process must not open two clients of one role: what one of them counts would be lost.
_OPENING: dict[str, threading.Lock] = {}
CLOSE_SECONDS = 20  # an engine that has not ended its processes by then is killed with them running
# Where cores are shared, OpenMP threads that spin at a barrier burn the time slice of the one they wait for:
# twelve decoding steps beside other busy processes took 11 to 55 s spinning and 2 s sleeping.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


class Engines:
    """The models of a run, by role. `cache_dir` holds converted weights (default: `weights.cache_folder`); `requests`
    are the root and the bytes of the request cache (requests.py), None for a run without one.

    It may be pickled into Ray tasks. An actor that the driver made ends with the driver; one that a task made
    ends with `shutdown()`.
    """

    def __init__(
        self, roles: Mapping[str, Model], cache_dir: str = "", requests: tuple[str, int] | None = None
    ) -> None:
        self.roles, self.cache_dir, self.requests = dict(roles), cache_dir, requests
        self.clients: dict[str, Client] = {}
        self.spent: dict[str, Counter[str]] = {}  # by clients that `shutdown` let go
        self.in_task = False

    def __getstate__(self) -> dict[str, Any]:
        return {
            "roles": self.roles,
            "cache_dir": self.cache_dir,
            "requests": self.requests,
            "clients": {},
            "spent": {},
            "in_task": True,
        }

    def get(self, role: str) -> Client:
        """The client of a role; its weights are loaded at the first call for any role that uses them.

        Raises BadInput for a role without a model and for a model that cannot be loaded; EngineDied when its
        process ended.
        """
        if role not in self.roles:
            bound = ", ".join(sorted(self.roles)) or "nothing"
            raise BadInput(f"the recipe binds no model to the role {role!r} (it binds {bound})")
        with _OPENING.setdefault(role, threading.Lock()):
            if role not in self.clients:
                try:
                    self.clients[role] = self._client(self.roles[role])
                except BadInput as error:
                    raise BadInput(f"role {role!r}: {error}") from error
            return self.clients[role]

    def open(self, *roles: str) -> None:
        """Load the models of several roles side by side: most of a load is one core's work. Raises as `get`."""
        with ThreadPoolExecutor(max(1, len(roles))) as pool:
            list(pool.map(self.get, roles))

    def take_usage(self) -> dict[str, dict[str, int]]:
        """Calls and tokens by role of this object's clients since the last time it was asked."""
        total, self.spent = self.spent, {}
        for role, client in self.clients.items():
            total.setdefault(role, Counter()).update(client.take_usage())
        return {role: dict(usage) for role, usage in sorted(total.items()) if any(usage.values())}

    def shutdown(self, keep: Collection[str] = ()) -> None:
        """End the actors of all roles, whoever made them, but those named in `keep`."""
        import ray

        for model in self.roles.values():
            with suppress(BadInput, ValueError):  # it cannot be loaded, was never loaded, or is gone already
                if (name := actor_name(model)) and name not in keep:
                    _end(ray.get_actor(name, namespace=NAMESPACE), model)
        gone = {role for role, client in self.clients.items() if actor_name(client.model) not in keep}
        for role in gone:
            self.spent.setdefault(role, Counter()).update(self.clients.pop(role).usage)

    def _client(self, model: Model) -> Client:
        import ray

        if form(model) == "head":
            head, base = _head_and_base(model)
            return HeadClient(head, self._client(base) if base else None, model)
        if model.engine == "vllm":
            available(model)
        handle = self._actor(model)
        try:
            reason = self._load(handle, model)
        except EngineDied:  # a dead actor keeps its name until it is also killed by it: clear it away, once
            ray.kill(handle)
            time.sleep(1)
            handle = self._actor(model)
            reason = self._load(handle, model)
        if reason:
            raise BadInput(reason)
        return Client(handle, model)

    def _load(self, handle: Any, model: Model) -> str:
        return wait(handle, handle.load.remote(model, self.requests), model, loading=True)

    def _actor(self, model: Model) -> Any:
        environment = {**PATIENT_THREADS, **({"GUARDMILL_CACHE": self.cache_dir} if self.cache_dir else {})}
        return start(
            model, name=actor_name(model), namespace=NAMESPACE, get_if_exists=True,
            lifetime="detached" if self.in_task else None, runtime_env={"env_vars": environment},
        )  # fmt: skip


def _end(handle: Any, model: Model) -> None:
    """Kill an actor. vLLM's own processes are asked to end first: they would outlive a killed parent."""
    import ray
    from ray.exceptions import GetTimeoutError

    if model.engine == "vllm" or spread(model):
        with suppress(GetTimeoutError, *gone()):
            ray.get(handle.close.remote(), timeout=CLOSE_SECONDS)
    ray.kill(handle)


def actor_name(model: Model) -> str:
    """One name per set of weights and way to run them: roles that agree in these share an actor, whether they
    chat, continue a text or read a hidden layer. A head's is its base model's; "" for one that needs no
    model."""
    if model.kind == "head":
        base = _head_and_base(model)[1]
        return actor_name(base) if base else ""
    runtime = sorted(option for option in model.options if option[0] not in IDENTITY_OPTIONS)
    weights = fingerprint(replace(model, options=tuple(o for o in model.options if o[0] == "tuned")))
    return f"{model.engine}-{form(model)}-{stable_hash(weights, runtime)}"


def _head_and_base(model: Model) -> tuple[heads.Head, Model | None]:
    """A head and the model whose vectors it reads, run with the head's own options."""
    head = heads.load(locate(model.name))
    if head.base is None:
        return head, None
    if (found := fingerprint(head.base)) != head.base_fingerprint:
        raise BadInput(f"head {model.name!r} was fitted on {head.base_fingerprint}, but {found} is at hand")
    options = head.base.options + tuple(one for one in model.options if one[0] not in IDENTITY_OPTIONS)
    if (tuned := Path(locate(model.name)) / heads.TUNED).is_file():
        options += (("tuned", str(tuned)),)
    return head, replace(head.base, options=options)
