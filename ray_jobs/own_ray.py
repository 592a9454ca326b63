"""Which Ray to use: the cluster that $RAY_ADDRESS names, else one of this process's own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

STARTS = 3


def start(namespace: str | None = None, **local: Any) -> None:
    """`ray.init`, joining or starting; `local` are the arguments of a Ray of one's own. Ray gives its processes 30 s,
    which on a busy machine is short: it is tried again, and TimeoutError says so in the end. A handler of SIGTERM
    stays: Ray would put its own in its place."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    for _ in range(STARTS):
        try:
            ray.init(namespace=namespace, logging_level=logging.ERROR, log_to_driver=False, **where(**local))
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            return
        except Exception as problem:  # Ray raises no narrower class
            if "timed out during startup" not in str(problem):
                raise
    raise TimeoutError(f"Ray did not start within 30 s, {STARTS} times: this machine is too busy")


def where(**local: Any) -> dict[str, Any]:
    """What tells `ray.init` which Ray is meant. Without an address it would join whatever cluster somebody has started
    on this machine, and refuse the other arguments."""
    return {"address": "auto"} if joins() else {"address": "local", **local}


def joins() -> bool:
    """Whether there is a cluster to join."""
    return bool(os.environ.get("RAY_ADDRESS"))
