"""Fills the object store of every worker node over its brim, says what Ray spilled, and holds it for a while.

python -m tests.faults.fill SECONDS
"""

from __future__ import annotations

import re
import sys
import time

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECES, PIECE_BYTES = 16, 10 << 20


@ray.remote(num_cpus=0)
class Hoard:
    def take(self) -> int:
        self.held = [ray.put(np.ones(PIECE_BYTES, np.uint8)) for _ in range(PIECES)]
        return sum(ray.get(ref).nbytes for ref in self.held)


def main(seconds: float) -> None:
    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    workers = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    hoards = [
        Hoard.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()  # type: ignore[attr-defined]
        for node in workers
    ]
    held = sum(ray.get([hoard.take.remote() for hoard in hoards]))
    from ray._private.internal_api import memory_summary

    told = memory_summary(stats_only=True)
    spilled = re.search(r"Spilled (\d+) MiB", told)
    print(f"{held >> 20} {spilled[1] if spilled else 0}", flush=True)
    time.sleep(seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]))
