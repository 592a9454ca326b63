"""`guardmill train rl RECIPE`: a policy model trained with the guard of a root as its reward (docs/rl.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_jobs.cli import print_json
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput


def add_rl(actions: Any) -> None:
    """The command, under `train`."""
    about = "choose prompts, train the policy with the guard as its reward, evaluate it with other judges"
    one = actions.add_parser("rl", help=about, description=about)
    one.set_defaults(command=train_rl)
    one.add_argument("recipe", help="a recipe's name: tiny, local, …")
    one.add_argument("--root", help="where a run of the recipe left its tables; default: mill/RECIPE")
    one.add_argument("--policy", help="another policy: a packaged name or a YAML file")
    one.add_argument(
        "--until", metavar="STEP", help="stop after rl_prompts, rl_policy, rl_evaluation or rl_ability"
    )
    one.add_argument("--ability", action="store_true",
                     help="general ability before and after too, by lm-eval (the recipe names its tasks)")  # fmt: skip
    one.add_argument("--circular", action="store_true",
                     help="let the rewarding guard also be a judge of the result")  # fmt: skip
    one.add_argument("--json", action="store_true", help="print the result as JSON")


def train_rl(options: argparse.Namespace) -> None:
    """Run the three steps on the root of a finished run; what is done is not done again."""
    from ray_jobs.commands_run import prepared
    from ray_jobs.pipeline import rl_steps, run_of
    from ray_jobs.rl_ability import require_harness
    from ray_jobs.step import run_steps

    options.imports = options.evaluations = []
    recipe, policy, root = prepared(options)
    recipe = replace(recipe, roles={**recipe.roles, **recipe.rl_roles})
    if options.circular:
        recipe = replace(recipe, rl_evaluation=replace(recipe.rl_evaluation, circular=True))
    if options.ability:
        require_harness()
    flow = rl_steps(recipe, policy, options.ability)
    names = [step.name for step in flow]
    if options.until is not None and options.until not in names:
        raise BadInput(f"unknown step {options.until!r}; there are {', '.join(names)}")
    flow = flow[: names.index(options.until) + 1] if options.until else flow
    run = run_of(recipe, policy, root)
    if "deduped" not in run.store.tables():
        raise BadInput(
            f"{root} has no table of prompts: `guardmill run {recipe.name}` makes them, and the guard"
        )
    with run.store.lock():
        versions = run_steps(flow, run)
    report(run.store, versions, options.json)


def report(store: Store, versions: dict[str, TableVersion], as_json: bool) -> None:
    """What was kept, what was trained, and what changed."""
    from ray_jobs.rl_prompts import share_kept

    told: dict[str, Any] = {"prompts": share_kept(store, versions["rl_prompts"])}
    if "rl_policy" in versions:
        row = store.read(versions["rl_policy"].ref).to_pylist()[0]
        told["policy"] = str(Path(store.root) / row["uri"])
    if "rl_evaluation" in versions:
        told["evaluation"] = [
            {
                name: row[name]
                for name in ("system", "prompts", "thinking", "measure", "rows", "rate", "low", "high")
            }
            for row in store.read(versions["rl_evaluation"].ref).to_pylist()
        ]
    if "rl_ability" in versions:
        told["ability"] = [
            {name: row[name] for name in ("system", "task", "measure", "samples", "value", "stderr")}
            for row in store.read(versions["rl_ability"].ref).to_pylist()
        ]
    if as_json:
        print_json(told)
        return
    for line in lines(told):
        print(line)


def lines(told: dict[str, Any]) -> Iterator[str]:
    kept = told["prompts"]
    yield f"Prompts: {kept['share']:.1%} of {kept['sampled']} kept ({kept['kept']}); dropped: {kept['dropped']}"
    if "policy" in told:
        yield f"Policy: {told['policy']} (curves.svg beside it; table rl_curve has every step)"
    for row in sorted(
        told.get("evaluation", []), key=lambda r: (r["prompts"], r["measure"], r["system"] == "after")
    ):
        mode = "thinking" if row["thinking"] else "plain"
        yield (
            f"  {row['prompts']:<8} {mode:<9} {row['measure']:<24} {row['system']:<7} {row['rate']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}]  ({row['rows']} prompts)"
        )
    for row in sorted(
        told.get("ability", []), key=lambda r: (r["task"], r["measure"], r["system"] == "after")
    ):
        yield (
            f"  {row['task']:<22} {row['measure']:<20} {row['system']:<7} {row['value']:.3f} ± {row['stderr']:.3f} "
            f"({row['samples']} questions)"
        )
