"""`guardmill serve`: a streaming guard as a Ray Serve application on 127.0.0.1.

One replica holds the guard on its device; every open stream is a slot in one batch (batch.py), so many texts that are
being written at once cost little more than one. session.py moderates text as it comes, gate.py stops or passes, chat.py
and proxy.py put the gate before an OpenAI-compatible endpoint, server.py has the routes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from ray_jobs import own_ray
from ray_jobs.serve.server import Settings
from synth.errors import BadInput

__all__ = ["Settings", "served", "stop"]

HOST = "127.0.0.1"
NAME = "guardmill"


def served(settings: Settings, port: int, threads: int = 0, gpu: bool = False) -> str:
    """Starts Ray (a cluster of its own, unless RAY_ADDRESS names one) and the application; returns its address.

    BadInput for a port that is taken. What is wrong with the checkpoint is found before Ray is started, by the caller.
    """
    free(port)
    import ray
    from ray import serve

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    cpus = threads or os.cpu_count() or 1
    if not ray.is_initialized():
        own_ray.start(NAME, num_cpus=max(4, cpus + 2), include_dashboard=False, object_store_memory=128 << 20)
    serve.start(http_options={"host": HOST, "port": port}, logging_config={"enable_access_log": False})
    placed = {"num_cpus": cpus, **({"num_gpus": 1} if gpu else {})}
    deployment: Any = serve.deployment(serve.ingress(builder(settings, cpus))())
    most = (
        4 * settings.streams + 16
    )  # requests beyond the streams are refused by the application, which says why
    configured = deployment.options(name=NAME, ray_actor_options=placed, max_ongoing_requests=most)
    serve.run(configured.bind(), name=NAME, route_prefix="/")
    return f"http://{HOST}:{port}/"


def builder(settings: Settings, threads: int) -> Callable[[], Any]:
    """What a replica calls to get its application: the guard is loaded there."""

    def build() -> Any:
        import torch

        from ray_jobs.serve.server import Guard, application
        from train.stream_score import load_guard

        torch.set_num_threads(threads)
        guard, tokenizer = load_guard(settings.checkpoint)
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return application(Guard(guard.to(device), tokenizer, settings))  # type: ignore[arg-type]

    return build


def free(port: int) -> None:
    """BadInput unless the port can be listened on."""
    try:
        with socket.create_server((HOST, port)):
            pass
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise BadInput(f"port {port} of {HOST} cannot be used: {reason}") from problem


def stop() -> None:
    """Ends the application, and Ray where it is ours."""
    import ray
    from ray import serve

    serve.shutdown()
    if not own_ray.joins():
        ray.shutdown()
