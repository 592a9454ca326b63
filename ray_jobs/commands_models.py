"""`guardmill check-models`, `preview`, `strategies`: what models answer, a few rows through a step, prompts to read."""

from __future__ import annotations

import argparse
from typing import Any

from ray_jobs.cli import add, print_json
from ray_jobs.commands_run import prepared
from ray_jobs.commands_tokens import visible
from ray_jobs.store import Store


def add_models(commands: Any) -> None:
    one = add(
        commands, "check-models", check_models, "ask every model of a recipe once, and say what answered"
    )
    one.add_argument("recipe", help="a recipe's name: tiny, local, …")
    one.add_argument("--root", help="where the run's own checkpoints live; default: mill/RECIPE")
    one.add_argument("--policy", help="another policy: a packaged name or a YAML file")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(imports=[], evaluations=[])
    one = add(commands, "preview", preview, "a few rows through one step; nothing is committed")
    one.add_argument("step", help="prompts, responses, votes, …: a step that works row by row")
    one.add_argument("-n", type=int, default=5, help="rows that go in, about, and rows shown of each table")
    one.add_argument("--recipe", default="local")
    one.add_argument("--root", help="where its inputs live; default: mill/RECIPE")
    one.add_argument("--policy", help="another policy: a packaged name or a YAML file")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(imports=[], evaluations=[])

    one = add(
        commands, "strategies", strategies, "accepted and rejected prompts of every strategy, with reasons"
    )
    one.add_argument("-n", type=int, default=20, help="rows of each kind")
    one.add_argument("--root", default="mill/local")
    one.add_argument("--json", action="store_true", help="print JSON")


def strategies(options: argparse.Namespace) -> None:
    """What each strategy made: its yield, then rows that were kept and rows that were not, and why."""
    from ray_jobs.strategies import read

    told = read(Store(options.root), options.n)
    if options.json:
        print_json(told)
        return
    for name, one in told.items():
        print(
            f"{name}: {one['accepted']} of {one['asked']} generations accepted, {one['wanted']} wanted, "
            f"{one['tokens']} tokens"
        )
        for reason, count in one["reasons"].items():
            print(f"    {count:>5} {reason}")
        for kind in ("kept", "turned_down"):
            for row in one[kind]:
                why = f"[{row['reason']}] " if kind == "turned_down" else ""
                turns = "".join(f"{turn['role']}: {turn['content']} | " for turn in row.get("history") or [])
                where = f"{row['leaf']} {row['language']} {row['intended']}"
                print(visible(f"  {kind.replace('_', ' ')}: {why}{where}: {turns}{row['text']}"))
        for why, count in one["unmet"].items():
            print(f"  quota not met, {count} times: {why}")


def check_models(options: argparse.Namespace) -> None:
    """One line per model; exit code 1 when one of them did not answer."""
    from ray_jobs.check_models import check
    from ray_jobs.pipeline import run_of, steps
    from ray_jobs.step import StepFailed

    recipe, policy, root = prepared(options)
    answers = check(steps(recipe, policy), run_of(recipe, policy, root))
    if options.json:
        print_json([vars(answer) for answer in answers])
    else:
        for answer in answers:
            print(visible(answer.line()))
    if silent := [role for answer in answers if answer.state == "failed" for role in answer.roles]:
        raise StepFailed(f"no answer from the model of {', '.join(silent)}")


def preview(options: argparse.Namespace) -> None:
    """The step's own tables, failed rows and costs on a few rows."""
    from ray_jobs.pipeline import run_of, steps
    from ray_jobs.preview import preview as run_preview

    recipe, policy, root = prepared(options)
    shown = run_preview(steps(recipe, policy), options.step, run_of(recipe, policy, root), max(1, options.n))
    if options.json:
        print_json(shown)
        return
    for name, rows in shown["tables"].items():
        print(f"{name}: {shown['counts'][name]} rows{'' if not rows else ', of them'}")
        for row in rows:
            print(f"  {visible(told(row))}")
    for row in shown["failed"]:
        print(f"  failed: {visible(row['reason'])}  {visible(row['raw'][:200])}")
    dropped = ", ".join(f"{reason} {count}" for reason, count in shown["dropped"].items())
    print(
        f"{shown['rows']} rows in, {shown['seconds']} s; dropped: {dropped or 'none'}; nothing was committed"
    )
    for role, used in shown["usage"].items():
        print(f"  {role}: {', '.join(f'{count} {name}' for name, count in used.items() if count)}")


def told(row: dict[str, Any]) -> str:
    """A row in one line: what it says, without ids and what is empty."""
    hidden = ("id", "parent_id", "group_id", "digest")
    said = {name: value for name, value in row.items() if name not in hidden and value not in ("", [], None)}
    return "  ".join(f"{name}={value!r}" for name, value in said.items())
