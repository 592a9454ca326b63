"""Shared plumbing of the training jobs: Ray Train's TorchTrainer around `train.variants`.

Examples travel as one Parquet file in the output folder, which every worker must see (a local disk on one
machine, a shared one on a cluster). Workers write checkpoints there themselves: Ray Train V2 hands metrics
back only with a checkpoint, so the driver reads guardmill.json and history.jsonl instead. DeepSpeed's start-
up is in each worker.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs import own_ray
from synth.errors import BadInput
from synth.ids import stable_hash

REFUSED = "refused.txt"
# glibc gives large tensors back to the system after every step and fetches them anew, page by page: a tenth of the CPU
# time of a training (49.6 against 55.1 s for 120 rows of two epochs; two cores).
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


@dataclass(frozen=True)
class TrainResult:
    """A trained checkpoint: folder, figures, curve (one entry per step), and its control if there is one."""

    path: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    control: "TrainResult | None" = None


def read_rows(examples: "Path | str | list[Any]", kind: type) -> list[Any]:
    """Examples from a Parquet file or a list (dicts or `kind`); BadInput names file, row and column."""
    where = "examples" if isinstance(examples, list) else str(examples)
    rows = examples if isinstance(examples, list) else _read_parquet(Path(examples))
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    known = {f.name for f in fields}
    out = []
    for number, row in enumerate(rows):
        if isinstance(row, kind):
            out.append(row)
            continue
        for name in needed:
            if row.get(name) is None:
                raise BadInput(f"{where}: row {number}: column '{name}' is missing or empty")
        values = {key: value for key, value in row.items() if key in known}
        if "history" in known:
            values["history"] = tuple(dict(turn) for turn in values.get("history") or ())
            values["response"] = values.get("response") or ""
        out.append(kind(**values))
    if not out:
        raise BadInput(f"{where}: no rows to train on")
    return out


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path}: not a readable Parquet file ({error})") from error


def run_training(
    kind: str,
    variants: dict[str, list[Any]],
    config: Any,
    out_dir: Path,
    workers: int,
    use_gpu: bool,
    provenance: dict,
    worker: Callable[[dict[str, Any]], None] | None = None,
    extra: dict[str, Any] | None = None,
    cpus: int = 1,
) -> TrainResult:
    """Trains every variant of `kind` ("gen", "stream" or "rl") with Ray Train; the first is the one asked for.

    `worker` is what each process runs (default: train.variants), `extra` what it is given beside the config, `cpus` its
    share of the cores. Finished variants in `out_dir` with the same config, examples and provenance are not trained
    again; leftovers of another training there are removed.
    """
    out_dir = out_dir.resolve()
    _claim(kind, variants, config, out_dir, provenance)
    if not all((out_dir / name / "guardmill.json").is_file() for name in variants):
        loop = {
            "kind": kind,
            "config": config,
            "names": list(variants),
            "out": str(out_dir),
            "provenance": provenance,
            **(extra or {}),
        }
        _fit(worker or _worker, loop, workers, use_gpu, cpus)
        refused = out_dir / REFUSED
        if refused.is_file():
            sentence = refused.read_text(encoding="utf-8")
            refused.unlink()
            raise BadInput(sentence)
    results = [read_result(out_dir / name) for name in variants]
    return dataclasses.replace(results[0], control=results[1] if len(results) > 1 else None)


def _fit(
    worker: Callable[[dict[str, Any]], None], loop: dict[str, Any], workers: int, use_gpu: bool, cpus: int
) -> None:
    """Runs `worker` in `workers` processes, and again from the last checkpoint when one dies (twice at most)."""
    import ray
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig

    if not ray.is_initialized():
        own_ray.start(num_cpus=max(4, workers + 2), include_dashboard=False)
    trainer = _trainer_class(one_node=len(ray.nodes()) == 1)(
        worker,
        train_loop_config=loop,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(Path(loop["out"]) / "ray"),
            worker_runtime_env={"env_vars": KEPT_MEMORY},
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    trainer.fit()


def _trainer_class(one_node: bool) -> Any:
    """TorchTrainer; on one node without the actors that watch over a cluster (each takes seconds of CPU to start).

    The placement-group cleaner also asks Ray's dashboard every second, which a local run does not have.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    if not one_node:
        return TorchTrainer
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

    base: Any = TorchTrainer

    class LocalTrainer(base):
        def _create_default_callbacks(self) -> list[Any]:
            every = super()._create_default_callbacks()
            return [each for each in every if not isinstance(each, PlacementGroupCleanerCallback)]

    return LocalTrainer


def read_result(folder: Path) -> TrainResult:
    """A finished checkpoint folder as a TrainResult; BadInput for one without its guardmill.json."""
    about = folder / "guardmill.json"
    if not about.is_file():
        raise BadInput(f"{folder}: no guardmill.json there, so no finished training of ours")
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return TrainResult(
        folder,
        json.loads(about.read_text(encoding="utf-8"))["metrics"],
        [json.loads(line) for line in lines if line],
    )


def _claim(kind: str, variants: dict[str, list[Any]], config: Any, out_dir: Path, provenance: dict) -> None:
    """Marks `out_dir` as this training's; what another left there goes."""
    rows = {
        name: [dataclasses.asdict(example) for example in examples] for name, examples in variants.items()
    }
    identity = stable_hash(kind, dataclasses.asdict(config), rows, provenance)
    marker = out_dir / "identity"
    if marker.is_file() and marker.read_text() == identity:
        return
    for leftover in (*variants, *(f"{name}.resume" for name in variants), "ray"):
        shutil.rmtree(out_dir / leftover, ignore_errors=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, examples in rows.items():
        (out_dir / f"{name}.examples.json").write_text(
            json.dumps(examples, ensure_ascii=False), encoding="utf-8"
        )
    marker.write_text(identity)


def _worker(loop: dict[str, Any]) -> None:
    """One training process. Imports are here: the driver needs none of them."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    from train.data import GenExample, StreamExample
    from train.gen import GenTask
    from train.stream_task import StreamTask
    from train.variants import train_variants

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.set_float32_matmul_precision(loop["config"].matmul)
    folder = Path(loop["out"])
    example_type, task_type = (GenExample, GenTask) if loop["kind"] == "gen" else (StreamExample, StreamTask)
    variants: dict[str, Sequence[Any]] = {
        name: read_rows(
            json.loads((folder / f"{name}.examples.json").read_text(encoding="utf-8")), example_type
        )
        for name in loop["names"]
    }
    try:
        train_variants(task_type(loop["config"]), variants, folder, loop["provenance"])
    except BadInput as error:  # the driver raises it again; Ray Train would retry it
        (folder / REFUSED).write_text(str(error), encoding="utf-8")
