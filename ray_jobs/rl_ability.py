"""rl_ability: what the policy can do besides being safe, before and after, by lm-eval (the extra `ability`).

lm-eval is the field's harness: any of its tasks can be named, but most of them fetch their data from a hub. The default
set needs no network (ray_jobs/ability): facts, grammar and sums as choices by log-likelihood, and facts asked openly
through the policy's chat template, the one that a policy which only refuses fails. The report's own four are in
docs/rl.md. Standard errors are lm-eval's; both systems answer the same questions, greedily.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_jobs.rl_evaluation import SYSTEMS
from ray_jobs.step import Output, Step, Work
from ray_jobs.store import table_schema
from synth.errors import BadInput
from synth.ids import row_id

ABILITY = table_schema(
    [
        pa.field("system", pa.string()),
        pa.field("task", pa.string()),
        pa.field("measure", pa.string()),
        pa.field("samples", pa.int64()),
        pa.field("value", pa.float64()),
        pa.field("stderr", pa.float64()),
    ]
)
OURS = Path(__file__).parent / "ability"


@dataclass(frozen=True)
class RLAbilityConfig:
    """lm-eval's `tasks` as they stand, and those asked through the `chat` template; `limit` questions of each (0: all)
    in batches of `batch`. A process takes `cpus` cores, or one GPU."""

    tasks: tuple[str, ...] = ("guardmill_facts", "guardmill_grammar", "guardmill_sums")
    chat: tuple[str, ...] = ("guardmill_facts_open",)
    limit: int = 0
    batch: int = field(default=16, metadata={"identity": False})
    cpus: int = field(default=2, metadata={"identity": False})
    use_gpu: bool = field(default=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        if not (self.tasks or self.chat):
            raise BadInput("general ability is measured by some task of lm-eval, and none is named")


def step(config: RLAbilityConfig) -> Step:
    return Step(
        "rl_ability",
        run,
        config,
        {"rl_ability": ABILITY},
        sides=("rl_policy",),
        roles=tuple(SYSTEMS.values()),
    )


def run(work: Work) -> Output:
    import ray

    from ray_jobs.engine.weights import locate

    require_harness()
    config: RLAbilityConfig = work.config
    task = ray.remote(num_cpus=config.cpus, num_gpus=int(config.use_gpu))(measured)
    rows = []
    for system, role in SYSTEMS.items():  # one after the other: each loads a model
        found, problem = ray.get(task.remote(locate(work.engines.roles[role].name), config))
        if problem:
            raise BadInput(f"step rl_ability: {problem}")
        rows += [
            {"id": row_id(work.identity, system, [row["task"], row["measure"]]), "parent_id": "",
             "group_id": work.identity, "system": system, **row}
            for row in found
        ]  # fmt: skip
    return Output({"rl_ability": rows})


def require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput("general ability is measured by lm-eval: pip install 'guardmill[ability]'")


def measured(folder: str, config: RLAbilityConfig) -> tuple[list[dict[str, Any]], str]:
    """A model's figures, one row per task and measure, or why there are none; in a process of its own."""
    import logging

    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = (*config.tasks, *config.chat)
    ours = all(name.startswith("guardmill_") for name in names)
    manager = TaskManager(include_path=str(OURS), include_defaults=not ours)  # theirs take seconds to index
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        return [], f"lm-eval has no task {', '.join(map(repr, unknown))}"
    device, dtype = ("cuda", "bfloat16") if config.use_gpu else ("cpu", "float32")
    model = HFLM(folder, device=device, dtype=dtype, batch_size=config.batch)
    torch.set_num_threads(config.cpus)
    rows = []
    for asked, chat in ((config.tasks, False), (config.chat, True)):
        if not asked:
            continue
        try:
            told = lm_eval.simple_evaluate(
                model, tasks=list(asked), limit=config.limit or None, apply_chat_template=chat, log_samples=False,
                task_manager=manager,
            )  # fmt: skip
        except OSError as problem:  # the hub's errors are all of this kind
            return [], f"the data of {', '.join(asked)} cannot be read ({problem})"
        rows += list(figures(told))
    return rows, ""


def figures(told: Any) -> Iterator[dict[str, Any]]:
    """lm-eval's results as rows: "acc,none" and its "acc_stderr,none" are one."""
    for task, found in sorted(told["results"].items()):
        for name, value in sorted(found.items()):
            measure, comma, which = name.partition(",")
            if not comma or measure.endswith("_stderr"):
                continue
            error = found.get(f"{measure}_stderr,{which}")
            yield {
                "task": task,
                "measure": measure if which == "none" else name,
                "samples": told["n-samples"].get(task, {}).get("effective", 0),
                "value": float(value),
                "stderr": float(error) if isinstance(error, float) else float("nan"),
            }
