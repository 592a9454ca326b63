"""How the flow grows: without models, at several sizes, and over several nodes.

    python benchmarks/scale.py [--json FILE] [--prompts 10000 100000] [--nodes 1 2 4] [--root FOLDER]

Sizes: seeds → prompts → dedup → responses → votes → translations → controversial → distilled, on Ray on this machine,
with a scripted engine (scale_engine.py) that answers at once, so that what is measured is ours. One process per size.
Of every step, per prompt of the run: wall seconds, CPU seconds (driver and all of its Ray processes), bytes stored; the
growth of the driver's resident memory; and the fragments of its largest table. Flat means: at the largest size at most
1.5 times what it is at the smallest.

Nodes: one step of many units on 1, 2 and 4 simulated nodes of two CPUs, with an engine that only sleeps, since two
cores allow no other claim: the share of the ideal speed-up.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

FLAT, MIB = 1.5, 1 << 20
PER_ROW = 0.0  # seconds a row that the scripted engine takes at the sizes
SLEEP, SLEEPERS, UNITS = 0.5, 480, 48  # of the runs over nodes: seconds a row, rows, units
CPUS = 2  # of a simulated node


class Watch:
    """This process and its children: CPU seconds so far, and the driver's peak memory since the last reset."""

    def __init__(self) -> None:
        self.me, self.peak, self.ended = psutil.Process(), 0, False
        self.seen: dict[int, float] = {}
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, self.me.memory_info().rss)
            self._children()
            time.sleep(0.2)

    def _children(self) -> None:
        for child in self.me.children(recursive=True):
            try:
                used = child.cpu_times()
                self.seen[child.pid] = max(self.seen.get(child.pid, 0.0), used.user + used.system)
            except psutil.Error:
                continue

    def reset(self) -> tuple[float, int]:
        """(CPU seconds, resident bytes) now; the peak starts again from here."""
        self._children()
        own = self.me.cpu_times()
        self.peak = self.me.memory_info().rss
        return own.user + own.system + sum(dict(self.seen).values()), self.peak


def recipe(prompts: int) -> tuple[Any, Any]:
    """The local recipe with scripted roles, and quotas that make about `prompts` prompts of the safety policy."""
    from ray_jobs import recipes, translations
    from ray_jobs.combiner import CombinerConfig
    from ray_jobs.engine import Model
    from ray_jobs.prompts import PromptsConfig
    from ray_jobs.responses import ResponsesConfig
    from ray_jobs.voters import VotersConfig
    from ray_jobs.votes import VotesConfig
    from synth.policy import load_policy

    policy = load_policy("safety")
    kinds = {
        (leaf.id, seed.severity) for leaf in policy.leaves for seed in leaf.seeds if seed.language == "en"
    }
    names = {"writer": "instruct", "responder": "instruct", "translator": "instruct", "teacher": "embedder"}
    names |= {"voter-1": "instruct", "voter-2": "instruct"}
    roles = {role: Model("local", role, kind) for role, kind in names.items()}
    made = replace(
        recipes.local(),
        roles=roles,
        units=64,
        prompts=PromptsConfig(
            self_instruct=-(-prompts // len(kinds)), keyword=0, contrastive=0, rounds=2, oversample=1.05
        ),
        responses=ResponsesConfig(),
        voters=VotersConfig(features=()),
        combiner=CombinerConfig(repeats=1),
        votes=VotesConfig(people=False),
        translations=translations.TranslationsConfig(pairs=(("en", "es", 0.3),)),
    )
    return made, policy


def measure(prompts: int, root: str, until: str) -> dict[str, Any]:
    """One size, in this process: the flow, step by step."""
    from scale_engine import script

    script(PER_ROW)
    from ray_jobs import human_labels, pipeline
    from ray_jobs.progress import Progress
    from ray_jobs.step import run_step

    made, policy = recipe(prompts)
    run = pipeline.run_of(made, policy, root)
    run.progress = Progress(quiet=True)
    human_labels.ensure(run.store)
    run.start_ray()
    watch, told = Watch(), []
    for step in pipeline.flow_until(made, policy, until):
        began, (cpu, memory) = time.perf_counter(), watch.reset()
        run.versions.update(run_step(step, run))
        seconds, peak = time.perf_counter() - began, watch.peak
        used, _ = watch.reset()
        told.append(
            {"step": step.name, "seconds": seconds, "cpu_seconds": used - cpu, "driver_bytes": peak - memory}
            | stored(run.store, step)
        )
        print(f"{prompts} {told[-1]}", file=sys.stderr, flush=True)
    rows = {name: version.rows for name, version in run.versions.items()}
    return {"prompts": rows.get("prompts", 0), "rows": rows, "steps": told}


def stored(store: Any, step: Any) -> dict[str, int]:
    """Bytes of a step's tables, and the fragments of the one with the most."""
    from ray_jobs.store import tables

    size, fragments = 0, 0
    for name in step.tables:
        if name not in store.tables():
            continue
        listed = tables.fragments_of(store.files, store.resolve(name))
        size += sum(file["file_size_bytes"] for text in listed for file in json.loads(text)["files"])
        fragments = max(fragments, len(listed))
    return {"bytes": size, "fragments": fragments}


def over_nodes(nodes: int, root: str) -> dict[str, Any]:
    """Seconds that one step takes on so many simulated nodes, after a step that started their workers."""
    from scale_engine import script

    script(SLEEP)
    import pyarrow as pa
    import ray
    from ray.cluster_utils import Cluster

    from ray_jobs.engine import Model
    from ray_jobs.progress import Progress
    from ray_jobs.responses import ResponsesConfig, step
    from ray_jobs.seeds import PROMPT, RESPONSE
    from ray_jobs.step import Run, run_step
    from ray_jobs.store import Provenance, Store
    from synth.policy import load_policy

    small = {"object_store_memory": 100 * MIB, "temp_dir": tempfile.mkdtemp(prefix="scale-", dir="/tmp")}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | small
    )
    for _ in range(nodes):
        cluster.add_node(num_cpus=CPUS, object_store_memory=100 * MIB)
    ray.init(address=cluster.address, namespace="guardmill", log_to_driver=False)
    store = Store(root)
    told = []
    for name, rows in (("warm", UNITS), ("measured", SLEEPERS)):
        ids = [f"{name}{i}" for i in range(rows)]
        plain = {f.name: [""] * rows for f in PROMPT if pa.types.is_string(f.type) and f.name != "digest"}
        plain |= {"id": ids, "group_id": ids, "text": ids, "language": ["en"] * rows}
        table = pa.table(plain | {"history": pa.array([[]] * rows, PROMPT.field("history").type)})
        store.commit(
            "deduped", PROMPT, store.write_fragments("deduped", table, PROMPT), Provenance("x", name)
        )
        store.commit("written_responses", RESPONSE, [], Provenance("x", name))
        run = Run(store, load_policy("safety"), 1, {"responder": Model("local", "responder", "instruct")})
        run.units, run.unit_cpus, run.progress = UNITS, 1.0, Progress(quiet=True)
        began = time.perf_counter()
        made = run_step(step(ResponsesConfig()), run)
        told.append(time.perf_counter() - began)
        assert made["responses"].rows == rows
    ray.shutdown()
    cluster.shutdown()
    return {"nodes": nodes, "seconds": told[1], "ideal_seconds": SLEEP * SLEEPERS / (nodes * CPUS)}


def apart(arguments: list[str]) -> dict[str, Any]:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        subprocess.run([sys.executable, __file__, *arguments, "--out", str(out)], check=True)
        return json.loads(out.read_text())


def flatness(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Claims on the largest size against the smallest."""
    small, large = sizes[0], sizes[-1]
    growth = large["prompts"] / small["prompts"]
    claims = []

    def claim(name: str, value: float, unit: str, goal: float) -> None:
        claims.append(
            {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "holds": value <= goal}
        )

    for one, two in zip(small["steps"], large["steps"], strict=True):
        name = one["step"]
        for what in ("seconds", "cpu_seconds", "bytes"):
            if one[what]:
                claim(
                    f"{name}: {what} per prompt, largest over smallest",
                    two[what] / one[what] / growth,
                    "times",
                    FLAT,
                )
        claim(f"{name}: driver memory at the largest size", two["driver_bytes"] / MIB, "MiB", 256)
        claim(f"{name}: fragments of its largest table", two["fragments"], "fragments", 256)
    return claims


def table(sizes: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> None:
    """What was measured, for people."""
    for size in sizes:
        count = size["prompts"]
        print(f"\n{count} prompts: {', '.join(f'{n} {name}' for name, n in size['rows'].items())}")
        print(
            f"{'step':<14} {'seconds':>8} {'CPU s':>8} {'CPU µs':>8} {'bytes':>8} {'driver':>8} {'fragments':>10}"
        )
        print(f"{'':<14} {'':>8} {'':>8} {'/prompt':>8} {'/prompt':>8} {'MiB':>8}")
        for one in size["steps"]:
            print(
                f"{one['step']:<14} {one['seconds']:>8.1f} {one['cpu_seconds']:>8.1f} "
                f"{one['cpu_seconds'] / count * 1e6:>8.0f} {one['bytes'] / count:>8.0f} "
                f"{one['driver_bytes'] / MIB:>8.0f} {one['fragments']:>10}"
            )
    for one in nodes:
        print(f"{one['nodes']} nodes: {one['seconds']:.1f} s (ideal {one['ideal_seconds']:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    parser.add_argument("--prompts", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--until", default="distilled")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, _, value = options.one.partition("=")
        with tempfile.TemporaryDirectory() as root:
            found = (
                measure(int(value), root, options.until) if kind == "size" else over_nodes(int(value), root)
            )
        Path(options.out).write_text(json.dumps(found))
        return
    sizes = [apart(["--one", f"size={n}", "--until", options.until]) for n in options.prompts]
    nodes = [apart(["--one", f"nodes={n}"]) for n in options.nodes]
    claims = flatness(sizes) if len(sizes) > 1 else []
    for one in nodes[1:]:
        share = nodes[0]["seconds"] * nodes[0]["nodes"] / one["seconds"] / one["nodes"]
        name = f"share of the ideal speed-up on {one['nodes']} nodes"
        claims.append(
            {"name": name, "value": round(share, 3), "unit": "share", "goal": 0.8, "holds": share >= 0.8}
        )
    table(sizes, nodes)
    for claim in claims:
        verdict = "holds" if claim["holds"] else "FAILS"
        print(f"{verdict:<6} {claim['name']}: {claim['value']} {claim['unit']} (goal {claim['goal']})")
    if options.json:
        about = {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "load": os.getloadavg(),
        }
        told = {"environment": about, "measurements": {"sizes": sizes, "nodes": nodes}, "claims": claims}
        Path(options.json).write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
