"""`guardmill policy …`."""

from __future__ import annotations

import argparse
from pathlib import Path

from synth.errors import BadInput
from synth.policy import load_gold, load_policy


class Findings(BadInput):
    """Lint found something: printed already, told by the exit code."""


def lint(options: argparse.Namespace) -> None:
    from synth.policy_lint import lint

    policy = load_policy(options.policy)
    gold = load_gold(policy) if (Path(policy.source).parent / policy.gold).is_file() else ()
    findings = lint(policy, gold)
    for finding in findings:
        print(finding)
    if findings:
        raise Findings(f"{policy.source}: {len(findings)} findings")
    print(f"{policy.source}: nothing to mend ({len(policy.leaves)} leaves, {len(gold)} gold rows)")


def show(options: argparse.Namespace) -> None:
    from synth.policy_tools import show

    policy = load_policy(options.policy)
    gold = load_gold(policy) if (Path(policy.source).parent / policy.gold).is_file() else ()
    print(show(policy, gold))


def diff(options: argparse.Namespace) -> None:
    from synth.policy_tools import diff

    for line in diff(load_policy(options.a), load_policy(options.b)) or ["no difference"]:
        print(line)


def new(options: argparse.Namespace) -> None:
    from synth.policy_tools import skeleton, skeleton_gold

    folder = Path(options.folder)
    files = {f"{options.name}.yaml": skeleton(options.name), f"{options.name}_gold.jsonl": skeleton_gold()}
    for name in files:
        if (folder / name).exists():
            raise BadInput(f"{folder / name}: the file is there already")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
