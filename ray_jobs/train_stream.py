"""The training of the streaming guard as a job: examples in, a checkpoint out (train/stream_task.py)."""

from pathlib import Path
from typing import Any

from ray_jobs.train_common import TrainResult, read_rows, run_training
from train.control import CONTROL, shuffled_stream
from train.curves import check_place
from train.data import StreamExample, check_classes
from train.fit_config import StreamConfig


def train_stream(
    examples: Path | str | list[Any],
    config: StreamConfig,
    out_dir: Path,
    workers: int = 2,
    use_gpu: bool = False,
    provenance: dict[str, Any] | None = None,
    control: bool = True,
) -> TrainResult:
    """Trains a streaming guard under Ray Train and DeepSpeed, and its shuffled-labels control beside it.

    `examples`: a Parquet file or a list of StreamExample or dicts with its fields (id, group_id, prompt;
    response, history, query_risk, query_category, response_risk, response_category, onset). The guard lies in
    `out_dir/guard`, the control in `out_dir/control`.
    """
    rows = read_rows(examples, StreamExample)
    check_classes(rows)
    check_place(config.curves)
    variants = {"guard": rows, **({CONTROL: shuffled_stream(rows, config.seed)} if control else {})}
    return run_training("stream", variants, config, Path(out_dir), workers, use_gpu, provenance or {})
