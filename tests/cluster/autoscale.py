"""The node types of cluster.yaml under Ray's real autoscaler, with nodes that are processes of this machine.

    python -m tests.cluster.autoscale --json FILE [--plot docs/autoscaling.svg]

The types, their resources, minima and maxima are read from cluster.yaml; only the provider is Ray's `fake_multinode`
and the idle timeout is short. A flow of steps then asks for what real ones ask for: units of CPU work, a model of one
GPU, and eight GPUs in one strictly packed placement group, as a tensor-parallel model takes them. Nodes by type are
sampled from Ray's control store. The head's port must be Ray's default one, so this runs apart or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml

from tests import apart
from tests.ray_nodes import until

CLUSTER = yaml.safe_load((apart.ROOT / "cluster.yaml").read_text(encoding="utf-8"))
IDLE_MINUTES = 0.1
STORE_BYTES = 80 << 20


def fake_config() -> dict[str, Any]:
    """cluster.yaml with the fake provider. GPUs are only counted, so that any process may start a node of eight."""
    fake_head = "ray.head.default"  # the provider knows the head by this name only
    types = {
        fake_head if name == CLUSTER["head_node_type"] else name: {
            "resources": {**kind["resources"], "object_store_memory": STORE_BYTES},
            "node_config": {},
            "min_workers": kind.get("min_workers", 0),
            "max_workers": kind.get("max_workers", 0),
        }
        for name, kind in CLUSTER["available_node_types"].items()
    }
    nothing = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
               "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude",
               "rsync_filter")  # fmt: skip
    return {
        **{name: [] for name in nothing},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_name": CLUSTER["cluster_name"],
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,  # all nodes share this machine's
            "head_resources": types[fake_head]["resources"],
        },
        "head_node_type": fake_head,
        "available_node_types": types,
        "max_workers": CLUSTER["max_workers"],
        "upscaling_speed": CLUSTER["upscaling_speed"],
        "idle_timeout_minutes": IDLE_MINUTES,
    }


class Timeline:
    """Samples the nodes there are, by type, twice a second."""

    def __init__(self, types: list[str]) -> None:
        self.types, self.samples, self.marks = types, list[dict[str, Any]](), list[dict[str, Any]]()
        self.started, self.over = time.monotonic(), Event()
        self.thread = Thread(target=self.sample, daemon=True)

    def now(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def sample(self) -> None:
        while not self.over.wait(0.5):
            self.samples.append({"at": self.now(), **self.nodes()})

    def nodes(self) -> dict[str, int]:
        """Living workers by type: by the resources that only a node of that type has."""
        import ray

        found: Counter[str] = Counter()
        for node in ray.nodes():
            if node["Alive"]:
                found[node_type(node["Resources"])] += 1
        return {name: found[name] for name in self.types}

    def mark(self, what: str) -> None:
        self.marks.append({"at": self.now(), "what": what})
        print(f"{self.now():6.1f} s  {what}  {self.nodes()}", file=sys.stderr, flush=True)


def node_type(resources: dict[str, float]) -> str:
    for name, kind in CLUSTER["available_node_types"].items():
        given = {key: value for key, value in kind["resources"].items() if value}
        if all(resources.get(key) == value for key, value in given.items()) and bool(
            given.get("GPU")
        ) == bool(resources.get("GPU")):
            if not given and resources.get("CPU"):
                continue
            return str(name)
    return "unknown"


def cpu_units() -> None:
    """Units of a CPU step, of a quarter CPU each."""
    import ray

    @ray.remote(num_cpus=0.25)
    def unit() -> int:
        time.sleep(1.5)
        return os.getpid()

    ray.get([unit.remote() for _ in range(4)])


def small_model() -> None:
    """A model on one GPU, as the engine's actor asks for it."""
    import ray

    @ray.remote(num_cpus=1, num_gpus=1)
    class Model:
        def answer(self) -> int:
            time.sleep(1.5)
            return 1

    model = Model.remote()
    ray.get(model.answer.remote())  # type: ignore[attr-defined]
    ray.kill(model)


def large_model() -> None:
    """Eight GPUs of one node."""
    import ray
    from ray.util import placement_group, remove_placement_group

    group = placement_group([{"CPU": 1, "GPU": 1}] * 8, strategy="STRICT_PACK")
    ray.get(group.ready(), timeout=300)
    time.sleep(1.5)
    remove_placement_group(group)


PHASES: dict[str, Callable[[], None]] = {"cpu": cpu_units, "gpu1": small_model, "gpu8": large_model}


def measure() -> dict[str, Any]:
    """From zero workers through every phase and back to zero."""
    import ray

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    types = list(CLUSTER["available_node_types"])
    workers = [name for name in types if name != CLUSTER["head_node_type"]]
    timeline = Timeline(types)
    zero = dict.fromkeys(workers, 0)

    def count() -> dict[str, int]:
        return {name: number for name, number in timeline.nodes().items() if name in workers}

    assert count() == zero, f"workers before any work: {count()}"
    timeline.thread.start()
    phases = []
    for name, work in PHASES.items():
        timeline.mark(f"{name}: asks")
        asked = timeline.now()
        work()
        timeline.mark(f"{name}: done")
        done = timeline.now()
        until(lambda: count() == zero, 300, f"no worker after {name}", every=0.5)
        timeline.mark(f"{name}: gone")
        during = [s for s in timeline.samples if asked <= s["at"] <= timeline.now()]
        most = {kind: max(sample[kind] for sample in during) for kind in workers}
        phases.append(
            {
                "phase": name,
                "most": most,
                "work_s": round(done - asked, 1),
                "gone_s": round(timeline.now() - done, 1),
            }
        )
    time.sleep(1)
    timeline.over.set()
    timeline.thread.join()
    return {
        "environment": {
            "cores": os.cpu_count(),
            "provider": "fake_multinode",
            "idle_timeout_minutes": IDLE_MINUTES,
        },
        "phases": phases,
        "marks": timeline.marks,
        "samples": timeline.samples,
    }


def with_cluster() -> dict[str, Any]:
    """Start the head with the autoscaler, measure, and end what was started."""
    folder = Path(tempfile.mkdtemp(prefix="gmas", dir="/tmp"))
    config = folder / "cluster.yaml"
    config.write_text(yaml.safe_dump(fake_config()))
    environment = apart.environment() | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    command = ["ray", "start", "--head", "--num-cpus=0", "--num-gpus=0", "--port=6379"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--autoscaling-config={config}"]
    command += [f"--object-store-memory={STORE_BYTES}"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=400)
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})
    return measure()


def plot(told: dict[str, Any], path: Path) -> None:
    """Nodes by type over time, one line a type, with the phases in grey."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "guardmill", "svg.fonttype": "none", "font.size": 10})
    import matplotlib.pyplot as plt

    types = [name for name in CLUSTER["available_node_types"] if name != CLUSTER["head_node_type"]]
    figure, axes = plt.subplots(len(types), 1, figsize=(7, 3.6), sharex=True)
    at = [sample["at"] for sample in told["samples"]]
    marks = {mark["what"]: mark["at"] for mark in told["marks"]}
    for axis, name in zip(axes, types, strict=True):
        for phase in types:
            axis.axvspan(marks[f"{phase}: asks"], marks[f"{phase}: done"], color="0.9", lw=0)
        axis.step(at, [sample[name] for sample in told["samples"]], where="post", color="#1f5fa8")
        axis.set_ylabel(f"{name} nodes", rotation=0, ha="right", va="center")
        axis.set_yticks([0, 1])
        axis.set_ylim(-0.1, 1.3)
        axis.spines[["top", "right"]].set_visible(False)
    for phase in types:
        axes[0].text(
            (marks[f"{phase}: asks"] + marks[f"{phase}: done"]) / 2, 1.36, phase, ha="center", va="bottom"
        )
    axes[-1].set_xlabel("seconds (grey: the step that asks for this type)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    inside = apart.prefix()
    if inside is None:
        print(
            "the kernel permits no namespaces here, and Ray's default port may be another's", file=sys.stderr
        )
        return 3
    if not os.environ.get(apart.MARK):
        command = [*inside, sys.executable, "-m", "tests.cluster.autoscale", *sys.argv[1:]]
        return subprocess.run(command, env=apart.environment(), cwd=apart.ROOT, check=False).returncode
    told = with_cluster()
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    if options.plot:
        plot(told, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
