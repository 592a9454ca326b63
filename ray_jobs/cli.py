"""The `guardmill` command. Exit codes: 0 done, 1 failed, 2 wrong use. Figures go to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from synth.errors import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every failure that has a cause a user can act on is one sentence on stderr."""
    options = parser().parse_args(arguments)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return exit_code(lambda: options.command(options))


def exit_code(work: Callable[[], object]) -> int:
    """Do a command's work; its exit code, after one sentence on stderr if it failed."""
    try:
        work()
    except BadInput as problem:
        print(f"guardmill: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (RuntimeError, OSError) as problem:
        if not expected(problem) or os.environ.get("GUARDMILL_TRACEBACK"):
            raise
        print(f"guardmill: {problem}", file=sys.stderr)
        return 1
    return 0


def expected(problem: BaseException) -> bool:
    """Whether an error carries its own sentence: a failed step, a busy or broken store, a dead engine, what lint found,
    a full disk."""
    from ray_jobs.commands_policy import Findings
    from ray_jobs.engine.calls import EngineDied
    from ray_jobs.step import StepFailed
    from ray_jobs.store import StoreError

    return isinstance(problem, StepFailed | StoreError | EngineDied | Findings | OSError)


def parser() -> argparse.ArgumentParser:
    from ray_jobs.commands_data import add_data
    from ray_jobs.commands_dedup import add_dedup
    from ray_jobs.commands_evaluate import add_evaluate
    from ray_jobs.commands_models import add_models
    from ray_jobs.commands_policy import add_policy
    from ray_jobs.commands_review import add_review
    from ray_jobs.commands_serve import add_serve
    from ray_jobs.commands_tokens import add_tokens
    from ray_jobs.commands_train import add_train

    top = argparse.ArgumentParser(prog="guardmill", description="A written policy in, guard models out.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_models(commands)
    add_data(commands)
    add_dedup(commands)
    add_files(commands)
    add_tokens(commands)
    add_guards(commands)
    add_evaluate(commands)
    add_serve(commands)
    add_review(commands)
    add_train(commands)
    add_policy(commands)
    return top


def add(commands: Any, name: str, command: Callable[[argparse.Namespace], None], about: str) -> Any:
    one = commands.add_parser(name, help=about, description=about)
    one.set_defaults(command=command)
    return one


def add_run(commands: Any) -> None:
    from ray_jobs import commands_run as run
    from ray_jobs.commands_cluster import add_cluster

    for name, command, about in (
        ("run", run.run, "run a recipe from the policy to the report; what is done is not done again"),
        ("plan", run.plan, "show which steps are cached and which would run, and at what price"),
    ):
        one = add(commands, name, command, about)
        one.add_argument("recipe", help="a recipe's name: tiny, local, …")
        one.add_argument("--root", help="where tables live (a folder or s3://…); default: mill/RECIPE")
        one.add_argument("--policy", help="another policy: a packaged name or a YAML file")
        one.add_argument("--import", dest="imports", action="append", default=[], metavar="FILE",
                         help="rows of your own (JSONL, Parquet, CSV) as a further source; repeatable")  # fmt: skip
        one.add_argument("--evaluation", dest="evaluations", action="append", default=[], metavar="FILE",
                         help="a file of texts to keep training away from; repeatable")  # fmt: skip
        one.add_argument("--until", metavar="STEP", help="stop after this step")
        one.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "plan":
            add_cluster(one)
    one = add(commands, "report", run.report, "write the newest report of a root to a file")
    one.add_argument("out", help="the HTML file to write")
    one.add_argument("--root", default="mill/local")
    one = add(commands, "vote", run.vote, "what the votes are worth on the gold set")
    one.add_argument("--root", default="mill/local")
    one.add_argument("--audit", action="store_true", help="per voter: confusion, agreement, what each adds")
    one.add_argument("--json", action="store_true")
    one = add(
        commands, "show", run.show, "print a table's rows; token labels with the boundary marked in the text"
    )
    one.add_argument("table")
    one.add_argument("id", nargs="?")
    one.add_argument("-n", type=int, default=10)
    one.add_argument("--root", default="mill/local")


def add_files(commands: Any) -> None:
    from ray_jobs import commands_files as files

    one = add(commands, "mixing", files.mixing, "find foreign words in texts that claim one language")
    one.add_argument("input")
    one.add_argument("output")
    one.add_argument("--text", required=True, metavar="COLUMN")
    one.add_argument("--lang", required=True, metavar="COLUMN")
    one.add_argument("--source", metavar="COLUMN", help="the text that was translated")


def add_guards(commands: Any) -> None:
    from ray_jobs import commands_guards as guards

    one = add(
        commands, "moderate", guards.moderate, "a streaming guard's verdict on a prompt and on every token"
    )
    one.add_argument("checkpoint", help="a checkpoint folder, or a root's table such as stream_guard@v1")
    one.add_argument("--prompt", help="the user's turn; without it, JSON lines are read from stdin")
    one.add_argument("--response", default="", help="the assistant's turn")
    one.add_argument("--reading", choices=("strict", "loose"), default="strict")
    one.add_argument("--root", default="mill/local")
    one.add_argument("--json", action="store_true")


def print_json(value: Any) -> None:
    print(shown_json(value))


def shown_json(value: Any) -> str:
    """JSON for people's terminals too: what is not printable is escaped, in every script."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
