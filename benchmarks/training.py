"""Training speed of both guards against the plain Hugging Face Trainer: same model, rows, steps and processes.

    python benchmarks/training.py [--json FILE] [--examples 48] [--tasks gen-short gen-full stream] [--layers all 4]
        [--row-length 512]

The peer does what a plain SFT script does: every batch padded to its longest sample, logits (or head outputs) at
every position, no packing, torch DDP over two gloo processes. Ours packs rows as prefix trees, asks for outputs where
something is labelled, and runs frozen layers once. Both get the same examples in the same steps with the same
optimizer, schedule and clipping, so their loss curves must agree; time is from the first step to the last, features
included, model loading not. Rows: the policy's gold set under its short or full moderation template.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from training_peer import EPOCHS, WORKERS, peer, prepare, rows

from ray_jobs.engine.weights import SMOLLM2, locate
from train.fit import fit
from train.fit_config import GenConfig
from train.trunk import Features


def ours(spec: dict[str, Any], rank: int) -> dict[str, Any]:
    """Our training loop on this rank."""
    task, batches, samples = prepare(spec)
    module = task.build()
    dist.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    if task.lower is not None:
        features = Features(Path(spec["folder"]) / "features.f32", samples, task.lower.config.hidden_size)
        if rank == 0:
            features.create()
        dist.barrier()
        features.fill(task.lower.eval(), rank, WORKERS)
        dist.barrier()
        batches.use(features)
    result = fit(lambda: module, batches, task.loss, task.config, Path(spec["folder"]) / "resume")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "losses": [entry["loss"] for entry in result.history]}


def worker(spec_file: str, rank: int) -> None:
    """One process of one training."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORKERS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=spec["port"],
        DS_ACCELERATOR="cpu",
    )
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    result = ours(spec, rank) if spec["system"] == "ours" else peer(spec, rank)
    (Path(spec["folder"]) / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")


def free_port() -> str:
    """A port nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Both processes of one training; seconds are the slower rank's, CPU seconds their sum."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps({**spec, "folder": folder, "port": free_port()}), encoding="utf-8")
        command = [sys.executable, __file__, "--worker", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(WORKERS)]
        if [process.wait() for process in processes] != [0] * WORKERS:
            raise RuntimeError(f"{spec['system']} on {spec['task']} failed")
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    return {
        "seconds": max(each["seconds"] for each in ranks),
        "cpu_seconds": sum(each["cpu_seconds"] for each in ranks),
        "losses": ranks[0]["losses"],
    }


def compare(
    task: str, layers: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measurements and claims for one task."""
    base = {
        "task": task,
        "layers": layers,
        "rows": rows(task, options.examples),
        "backbone": str(locate(SMOLLM2)),
        "row_length": options.row_length,
    }
    samples = prepare(base)[2]
    tokens = EPOCHS * sum(len(sample) for sample in samples)
    found = {system: measure({**base, "system": system}) for system in ("plain Trainer", "ours")}
    name = f"{task}, {layers} layers trained"
    measurements = []
    for system, each in found.items():
        speed = tokens / each["seconds"]
        measurements.append(
            {"task": name, "system": system, "tokens": tokens, "tokens_per_second": speed, **each}
        )
        curve = f"{each['losses'][0]:.3f} -> {each['losses'][-1]:.3f}"
        print(
            f"{name:<32}{system:<14}{speed:>8.0f} tokens/s {each['cpu_seconds']:>8.1f} CPU s   loss {curve}"
        )
    plain, mine = found["plain Trainer"], found["ours"]
    worst = float(
        np.max(np.abs(np.array(plain["losses"]) - np.array(mine["losses"])) / np.array(plain["losses"]))
    )
    speedup, saved = plain["seconds"] / mine["seconds"], plain["cpu_seconds"] / mine["cpu_seconds"]
    claims = [
        {
            "name": f"{name}: speed over the plain Trainer",
            "value": round(speedup, 2),
            "unit": "x",
            "goal": 2.0,
        },
        {"name": f"{name}: the same in CPU time", "value": round(saved, 2), "unit": "x", "goal": 2.0},
        {
            "name": f"{name}: largest difference of the loss curves",
            "value": worst,
            "unit": "relative",
            "goal": 0.02,
        },
    ]
    for claim in claims:
        under = claim["unit"] == "relative"
        claim["holds"] = claim["value"] <= claim["goal"] if under else claim["value"] >= claim["goal"]
        print(
            f"  {claim['name']}: {claim['value']:.4g} {claim['unit']} (goal {claim['goal']}) {claim['holds']}"
        )
    return measurements, claims


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write {environment, measurements, claims} here")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--tasks", nargs="+", default=["gen-short", "gen-full", "stream"])
    parser.add_argument("--layers", nargs="+", default=["all", "4"])
    parser.add_argument("--row-length", type=int, default=512, help="tokens of a row; a step is two rows")
    options = parser.parse_args()
    measurements: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for task in options.tasks:
        for layers in options.layers:
            more, said = compare(task, layers, options)
            measurements, claims = measurements + more, claims + said
    environment = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": WORKERS,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": SMOLLM2,
        "settings": asdict(
            GenConfig(
                "", epochs=EPOCHS, row_length=options.row_length, batch_tokens=WORKERS * options.row_length
            )
        ),
    }
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(
                {"environment": environment, "measurements": measurements, "claims": claims}, out, indent=2
            )


if __name__ == "__main__":
    main()
