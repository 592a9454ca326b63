"""Safety RL on two cores: does a reward of safety alone teach a policy to refuse, and does the hybrid one not?

    python benchmarks/rl.py [--json FILE] [--figure FILE] [--work DIR] [--only prepare guard hybrid truncated]

The report has a 4B policy go from 12.9 to 96.6 % refusals under the guard-only reward. Here SmolLM2-135M, first fine-
tuned to refuse about a quarter of the time (benchmarks/rl_world.py), is trained by the project's own steps
(selection, GSPO, evaluation) with one reward after the other, on the same prompts and seed: 40 steps of 16 answers of
up to 32 tokens. The helpfulness score is a stand-in, the relevance of the answer by MiniLM (ray_jobs/rl_judge.py). A
third run has the hybrid reward with credit cut where a streaming guard says that the answer turned.

Each part leaves its result in the work folder and is not done again; a killed one goes on from its last checkpoint.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rl_world import fit_heads, prompts, sft_examples, stream_examples

from ray_jobs import rl_evaluation, rl_prompts, train_rl
from ray_jobs.engine import Model, Sampling
from ray_jobs.engine.weights import SMOLLM2, locate
from ray_jobs.progress import Progress
from ray_jobs.rl_evaluation import RLEvaluationConfig
from ray_jobs.rl_judge import JudgeConfig
from ray_jobs.rl_plot import curves
from ray_jobs.rl_prompts import RLPromptsConfig, share_kept
from ray_jobs.seeds import PROMPT
from ray_jobs.step import Run, run_step
from ray_jobs.store import Provenance, Store
from ray_jobs.stream_guard import label_maps
from ray_jobs.train_gen import train_gen
from ray_jobs.train_rl import RLJobConfig
from ray_jobs.train_stream import train_stream
from synth.policy import Policy, load_policy
from train.fit_config import GenConfig, StreamConfig
from train.rewards import RewardConfig

SEED, TOKENS = 7, 32
SHORT = Sampling(max_tokens=TOKENS, temperature=1.0, top_p=1.0, top_k=0)
HYBRID = RLJobConfig(
    steps=40, batch=16, group=8, reuse=2, max_tokens=TOKENS, lr=2e-4, train_layers=8, checkpoint_steps=4, workers=1,
    judge=JudgeConfig(refusals="rule"),
)  # fmt: skip
VARIANTS = {
    "guard": replace(HYBRID, reward=RewardConfig("guard", fallback=0.0)),
    "hybrid": HYBRID,
    "truncated": replace(HYBRID, credit="truncated"),
}
NAMES = {"guard": "guard only", "hybrid": "hybrid", "truncated": "hybrid, credit cut at the turn"}


def prepare(policy: Policy, work: Path) -> dict[str, float]:
    """Guard, judge, the policy that refuses now and then, and the table of prompts."""
    about = work / "prepared.json"
    if about.is_file():
        return json.loads(about.read_text())
    found = fit_heads(policy, work)
    start_ray()
    config = GenConfig(
        locate(SMOLLM2), epochs=3, lr=5e-4, batch_tokens=1024, row_length=256, max_length=256, train_layers=8,
        eval_share=0.05, seed=SEED,
    )  # fmt: skip
    sft = train_gen(sft_examples(policy), config, work / "sft", workers=1, control=False)
    store = Store(str(work / "root"))
    rows = prompts(policy)
    table = pa.Table.from_pylist(
        rows, schema=pa.schema([field for field in PROMPT if field.name != "digest"])
    )
    store.commit(
        "deduped", PROMPT, store.write_fragments("deduped", table, PROMPT), Provenance("deduped", "rl world")
    )
    found |= {"sft loss, last step": sft.history[-1]["loss"], "prompts": len(rows)}
    about.write_text(json.dumps(found, indent=1))
    return found


def streaming_guard(policy: Policy, work: Path) -> None:
    """Token heads on the frozen SmolLM2."""
    start_ray()
    config = StreamConfig(
        locate(SMOLLM2), epochs=12, lr=1e-3, batch_tokens=2048, row_length=256, max_length=256, train_layers=0,
        seed=SEED, workers=1, **label_maps(policy),
    )  # fmt: skip
    train_stream(stream_examples(policy), config, work / "stream", workers=1, control=False)


def start_ray() -> None:
    """Ray on this machine, with as many logical CPUs as trainer and actors ask for."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, namespace="guardmill", logging_level="error",
                 object_store_memory=512 << 20)  # fmt: skip


def roles(work: Path) -> dict[str, Model]:
    return {
        "policy": Model("local", str(work / "sft" / "guard"), "instruct"),
        "policy_trained": Model("local", "@rl_policy/policy", "instruct"),
        "guard": Model("local", str(work / "guard"), "head"),
        "reward": Model("local", "minilm", "embedder"),
        "safety_judge-1": Model("local", str(work / "judge"), "head"),
        "stream_guard": Model("local", str(work / "stream" / "guard"), "stream_guard"),
    }


def variant(policy: Policy, work: Path, name: str) -> dict[str, Any]:
    """One training and its evaluation, on the prompts that all variants share."""
    result = work / f"{name}.json"
    if result.is_file():
        return json.loads(result.read_text())
    if VARIANTS[name].credit != "sequence":
        streaming_guard(policy, work)
    start_ray()
    run = Run(Store(str(work / "root")), policy, SEED, roles(work), units=1, progress=Progress(quiet=True))
    judge = JudgeConfig(refusals="rule")
    selection = RLPromptsConfig(samples=8, test_share=0.3, sampling=SHORT, judge=judge)
    steps = (
        rl_prompts.step(selection),
        train_rl.step(VARIANTS[name]),
        rl_evaluation.step(RLEvaluationConfig(limit=0, judge=judge, sampling=SHORT)),
    )
    began = time.monotonic()
    for step in steps:
        run.versions.update(run_step(step, run))
    told = {
        "seconds": time.monotonic() - began,
        "kept": share_kept(run.store, run.versions["rl_prompts"]),
        "training": json.loads(run.store.read(run.versions["rl_policy"].ref).to_pylist()[0]["metrics"]),
        "curve": sorted(
            run.store.read(run.versions["rl_curve"].ref).to_pylist(), key=lambda row: row["step"]
        ),
        "evaluation": run.store.read(run.versions["rl_evaluation"].ref).to_pylist(),
    }
    run.release([])
    result.write_text(json.dumps(told, indent=1))
    return told


def ends(found: dict[str, Any], key: str, steps: int = 10) -> tuple[float, float]:
    """A figure's mean over the first and over the last steps."""
    values = [row[key] for row in found["curve"] if row[key] is not None]
    if not values:
        return float("nan"), float("nan")
    return sum(values[:steps]) / len(values[:steps]), sum(values[-steps:]) / len(values[-steps:])


def rate(found: dict[str, Any], system: str, prompts: str, measure: str) -> dict[str, Any]:
    rows = found["evaluation"]
    return next(r for r in rows if (r["system"], r["prompts"], r["measure"]) == (system, prompts, measure))


def claims(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the report's finding would look like here; `holds` says whether it was seen."""
    made = []
    for name, told in found.items():
        first, last = ends(told, "refusal_rate")
        rises = name == "guard"
        made.append(
            {"name": f"{NAMES[name]}: refusals in training, last 10 steps less first 10", "value": last - first,
             "unit": "share", "goal": "above 0.10" if rises else "at most 0.10",
             "holds": (last - first > 0.10) == rises}
        )  # fmt: skip
        first, last = ends(told, "reward")
        made.append(
            {"name": f"{NAMES[name]}: reward, last 10 steps less first 10", "value": last - first,
             "unit": "reward", "goal": "above 0", "holds": last > first}
        )  # fmt: skip
        before, after = (rate(told, system, "benign", "refusal")["rate"] for system in ("before", "after"))
        made.append(
            {"name": f"{NAMES[name]}: refusals of held-out benign prompts, after less before",
             "value": after - before, "unit": "share", "goal": "above 0" if rises else "at most 0",
             "holds": (after > before) == rises}
        )  # fmt: skip
    return made


def table(found: dict[str, dict[str, Any]]) -> None:
    for name, told in found.items():
        kept = told["kept"]
        print(
            f"{NAMES[name]}: {kept['share']:.0%} of {kept['sampled']} prompts kept, {told['training']['seconds']:.0f} s"
        )
        for key in ("reward", "refusal_rate", "safety_rate", "helpfulness", "tokens"):
            first, last = ends(told, key)
            print(f"  {key:<14} first 10 steps {first:8.3f}   last 10 {last:8.3f}")
        for row in sorted(
            told["evaluation"], key=lambda r: (r["prompts"], r["measure"], r["system"] == "after")
        ):
            print(f"  {row['prompts']:<8} {row['measure']:<24} {row['system']:<7} {row['rate']:.3f} "
                  f"[{row['low']:.3f}, {row['high']:.3f}] ({row['rows']})")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    parser.add_argument("--figure", help="an SVG of all curves")
    parser.add_argument("--work", default="build/rl")
    parser.add_argument("--only", nargs="+", choices=("prepare", *VARIANTS), default=["prepare", *VARIANTS])
    options = parser.parse_args()
    policy, work = load_policy("safety"), Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepared = prepare(policy, work)
    print(json.dumps(prepared, indent=1), file=sys.stderr)
    found = {name: variant(policy, work, name) for name in VARIANTS if name in options.only}
    if not found:
        return 0
    table(found)
    if options.figure:
        figure = curves(
            {NAMES[name]: told["curve"] for name, told in found.items()}, "Safety RL, SmolLM2-135M"
        )
        Path(options.figure).write_text(figure, encoding="utf-8")
    made = claims(found)
    for claim in made:
        print(
            f"{'holds' if claim['holds'] else 'FAILS'}  {claim['name']}: {claim['value']:.3f} ({claim['goal']})"
        )
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        measured = {"prepared": prepared, "seed": SEED, "runs": found}
        Path(options.json).write_text(
            json.dumps({"environment": about, "measurements": measured, "claims": made}, indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
