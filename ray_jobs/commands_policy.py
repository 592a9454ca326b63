"""`guardmill policy …`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_jobs.store import Store
from synth.errors import BadInput
from synth.ids import stable_hash
from synth.policy import GoldRow, Policy, load_gold, load_policy


class Findings(RuntimeError):
    """Lint found something: printed already, told by the exit code."""


def add_policy(commands: Any) -> None:
    """The commands and their options."""
    top = commands.add_parser("policy", help="written policies: lint, show, gold, agreement, diff, new")
    actions = top.add_subparsers(required=True, metavar="ACTION")
    for name, command, about, arguments in (
        ("lint", lint, "findings, one sentence each; exit code 1 when there are any", ("policy",)),
        ("show", show, "the taxonomy as a tree, with counts", ("policy",)),
        ("gold", gold, "random rows of the gold set with their labels and reasons", ("policy",)),
        ("agreement", agreement, "how far the gold set's two labellings agree, and what was settled", ("policy",)),
        ("diff", diff, "what changed between two policies, and which rows that touches", ("a", "b")),
        ("new", new, "write a skeleton policy and gold set that pass lint", ("name",)),
    ):  # fmt: skip
        one = actions.add_parser(name, help=about, description=about)
        one.set_defaults(command=command)
        for argument in arguments:
            one.add_argument(argument)
        if name in ("lint", "diff"):
            one.add_argument(
                "--root", help="a root's tables: for lint its votes on the seeds, for diff its rows"
            )
        if name == "gold":
            one.add_argument("-n", type=int, default=30)
            one.add_argument("--seed", type=int, default=17)
            one.add_argument("--side", choices=("prompt", "response"))
            one.add_argument("--language", metavar="CODE")
        if name == "new":
            one.add_argument("--folder", default=".")


def lint(options: argparse.Namespace) -> None:
    from synth.policy_lint import lint

    policy = load_policy(options.policy)
    gold = gold_of(policy)
    votes = seed_votes(Store(options.root), policy) if options.root else {}
    findings = lint(policy, gold, votes)
    for finding in findings:
        print(finding)
    if findings:
        raise Findings(f"{policy.source}: {len(findings)} finding{'s' * (len(findings) > 1)}")
    read = f", {len(votes)} seeds by votes" if options.root else ""
    print(f"{policy.source}: nothing to mend ({len(policy.leaves)} leaves, {len(gold)} gold rows{read})")


def gold_of(policy: Policy) -> tuple[GoldRow, ...]:
    return load_gold(policy) if (Path(policy.source).parent / policy.gold).is_file() else ()


def seed_votes(store: Store, policy: Policy) -> dict[str, str]:
    """Seed id -> the severity that most voters of the root gave it, where any were asked about it. BadInput where there
    are no votes on seeds: voters fitted on the seeds themselves would only repeat them."""
    from ray_jobs.vote_leaves import voted_seeds

    told = voted_seeds(store, policy.severity_names)
    by_text = {
        (seed.leaf, seed.language, seed.text): seed.id for leaf in policy.leaves for seed in leaf.seeds
    }
    return {by_text[key]: severity for key, severity in told.items() if key in by_text}


def show(options: argparse.Namespace) -> None:
    from synth.policy_tools import show

    policy = load_policy(options.policy)
    print(show(policy, gold_of(policy)))


def gold(options: argparse.Namespace) -> None:
    """Rows drawn by the seed, each with what it is labelled and why."""
    policy = load_policy(options.policy)
    rows = [
        row
        for row in load_gold(policy)
        if options.side in (None, row.side) and options.language in (None, row.language)
    ]
    rows.sort(key=lambda row: stable_hash(options.seed, row.id))
    for row in rows[: options.n]:
        categories = ", ".join(policy.category(category).name for category in row.categories)
        refusal = {None: "", True: ", a refusal", False: ""}[row.refusal]
        print(
            f"[{row.language}] {row.severity}{f' ({categories})' if categories else ''}{refusal}: {row.reason}"
        )
        for turn in (*row.history, {"role": "user", "content": row.prompt}):
            print(f"    {turn['role']}: {visible(turn['content'])}")
        if row.side == "response":
            if row.thinking:
                print(f"    (thinking) {visible(row.thinking)}")
            cut = row.turn or 0
            turned = " ⟦turns⟧ " if row.turn is not None else ""
            print(f"    assistant: {visible(row.response[:cut])}{turned}{visible(row.response[cut:])}")


def visible(text: str) -> str:
    return "".join(char if char.isprintable() else "·" for char in text)


def agreement(options: argparse.Namespace) -> None:
    """The figures of label.gold_agreement, then the log."""
    from label.gold_agreement import agreement, beside, settled_rows

    policy = load_policy(options.policy)
    rows = load_gold(policy)
    sides = agreement(policy, rows)
    if not sides:
        raise BadInput(f"{policy.id}: no second labelling: {beside(policy, 'second')} is not there")
    for one in sides:
        unread = f", {one.unread} rows labelled once" if one.unread else ""
        print(f"{one.side}s: {one.rows} rows labelled twice{unread}; the same severity on {one.same:.1%}")
        for name, (value, low, high) in one.alpha.items():
            print(f"  Krippendorff's alpha, {name:<9} {value:.3f} [{low:.3f}, {high:.3f}]")
        print(f"  a category shared on {one.category:.1%} of the rows that both call violating")
        for name, counts in zip(policy.severity_names, one.counts, strict=True):
            told = ", ".join(f"{other} {n}" for other, n in zip(policy.severity_names, counts, strict=True))
            print(f"  first {name}: second {told}")
    log = settled_rows(policy, rows)
    changed = sum(row.first != row.settled for row in log)
    print(f"log: {len(log)} rows, {changed} of them changed")
    for row in log:
        words = " | ".join(
            f"{label.severity} {'+'.join(label.categories)}".strip()
            for label in (row.first, row.second, row.settled)
        )
        print(f"  {words}: {visible(row.text)}\n      {row.why}")


def diff(options: argparse.Namespace) -> None:
    """What changed, what it touches, and with a root how many of its rows that is."""
    from synth.policy_tools import diff, touched

    old, new = load_policy(options.a), load_policy(options.b)
    lines = diff(old, new)
    for line in lines or ["no difference"]:
        print(line)
    found = touched(old, new)
    if found.labels:
        print("touches every label: severities, categories or the rules of refusal changed")
    if found.leaves:
        print(f"touches the rows of {len(found.leaves)} leaves: {', '.join(found.leaves)}")
    if found.templates:
        print(f"touches what is made with the templates {', '.join(found.templates)}")
    if lines and not (found.labels or found.leaves or found.templates):
        print("touches no row")
    if options.root:
        for line in touched_rows(Store(options.root), found.leaves, found.labels):
            print(line)


def touched_rows(store: Store, leaves: Sequence[str], labels: bool) -> list[str]:
    """Per table of the root with a column `leaf`: rows of the leaves; where labels changed, all labelled rows."""
    from ray_jobs.report.source import quoted

    wanted, lines = f"leaf in ({', '.join(map(quoted, leaves))})", []
    for name in store.tables():
        columns = store.schema(name).names
        if "leaf" not in columns:
            continue
        every = labels and "severity" in columns
        rows = store.read(name, columns=["id"]).num_rows
        hit = rows if every else store.read(name, columns=["id"], filter=wanted).num_rows if leaves else 0
        lines.append(f"  {store.resolve(name).ref}: {hit} of {rows} rows")
    return lines


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
