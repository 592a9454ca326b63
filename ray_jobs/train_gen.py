"""The training of the generative guard as a job: examples in, a checkpoint folder out (train/gen.py)."""

from pathlib import Path
from typing import Any

from ray_jobs.train_common import TrainResult, read_rows, run_training
from train.control import CONTROL, shuffled_gen
from train.curves import check_place
from train.data import GenExample, check_classes
from train.fit_config import GenConfig


def train_gen(
    examples: Path | str | list[Any],
    config: GenConfig,
    out_dir: Path,
    workers: int = 2,
    use_gpu: bool = False,
    provenance: dict[str, Any] | None = None,
    control: bool = True,
) -> TrainResult:
    """Fine-tunes a generative guard under Ray Train and DeepSpeed, and its shuffled-labels control beside it.

    `examples`: a Parquet file or a list of GenExample or dicts with id, group_id, prompt (the rendered
    moderation instruction), answer and, optional, label. The guard lies in `out_dir/guard`, the control in
    `out_dir/control`.
    """
    rows = read_rows(examples, GenExample)
    check_classes(rows)
    check_place(config.curves)
    variants = {"guard": rows, **({CONTROL: shuffled_gen(rows, config.seed)} if control else {})}
    return run_training("gen", variants, config, Path(out_dir), workers, use_gpu, provenance or {})
