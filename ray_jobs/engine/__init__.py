"""The only door to a model.
 A recipe binds each role to a `Model`; a step asks `Engines.get(role)` for a client and calls it, from the
driver or from any Ray task, without knowing which engine answers. A model is loaded once, into one named
Ray actor that lives as long as the run, not as long as one dataset execution.
"""

from collections.abc import Mapping
from typing import Any

from ray_jobs.engine.actor import Client, ModelActor, wait
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
from ray_jobs.engine.weights import fingerprint
from synth.errors import BadInput
from synth.ids import stable_hash

__all__ = [
    "Client", "Completion", "Engine", "EngineDied", "Engines", "Failure", "Message", "Model", "Prompt", "Sampling",
    "Scores", "TokenScores", "fingerprint",
]  # fmt: skip

NAMESPACE = "guardmill"


class Engines:
    """The models of a run, by role. `cache_dir` holds converted weights (default: see
    `weights.cache_folder`).

    It may be pickled into Ray tasks. An actor that the driver made ends with the driver; one that a task made
    ends with `shutdown()`.
    """

    def __init__(self, roles: Mapping[str, Model], cache_dir: str = "") -> None:
        self.roles, self.cache_dir = dict(roles), cache_dir
        self.clients: dict[str, Client] = {}
        self.in_task = False

    def __getstate__(self) -> dict[str, Any]:
        return {"roles": self.roles, "cache_dir": self.cache_dir, "clients": {}, "in_task": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def get(self, role: str) -> Client:
        """The client of a role; its model is loaded at the first call for any role bound to it.

        Raises BadInput for a role without a model and for a model that cannot be loaded; EngineDied when its
        process ended.
        """
        if role not in self.roles:
            raise BadInput(
                f"the recipe binds no model to the role {role!r} (it binds {', '.join(sorted(self.roles))})"
            )
        if role not in self.clients:
            model = self.roles[role]
            handle = self._actor(model)
            if reason := wait(handle, handle.load.remote(), model):
                raise BadInput(f"role {role!r}: {reason}")
            self.clients[role] = Client(handle, model, role)
        return self.clients[role]

    def shutdown(self) -> None:
        """End the actors of all roles, whoever made them."""
        import ray

        for model in set(self.roles.values()):
            try:
                ray.kill(ray.get_actor(actor_name(model), namespace=NAMESPACE))
            except ValueError:
                continue  # never made, or gone already
        self.clients = {}

    def _actor(self, model: Model) -> Any:
        import ray

        environment = {"GUARDMILL_CACHE": self.cache_dir} if self.cache_dir else {}
        options: dict[str, Any] = {
            "name": actor_name(model), "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 1,
            "num_gpus": _gpus(model), "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 1000,
            "lifetime": "detached" if self.in_task else None, "runtime_env": {"env_vars": environment},
        }  # fmt: skip
        return ray.remote(ModelActor).options(**options).remote(model)


def actor_name(model: Model) -> str:
    """One name per set of weights, kind and options: roles that agree in all three share an actor."""
    return f"{model.engine}-{model.kind}-{stable_hash(fingerprint(model), model.options)}"


def _gpus(model: Model) -> float:
    """GPUs the actor asks for: the option `gpus`, or a fifth of one where the cluster has any."""
    import ray

    available = ray.cluster_resources().get("GPU", 0) > 0
    return float(model.option("gpus", 0.2 if available and model.engine == "local" else 0))
