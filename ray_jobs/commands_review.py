"""`guardmill review` and `guardmill labels`: people read rows, and what they say is kept."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ray_jobs.store import Store


def add_review(commands: Any) -> None:
    """The commands and their options."""
    about = "a local page to label rows one by one; what is saved is a new version of human_labels"
    one = commands.add_parser("review", help=about, description=about)
    one.set_defaults(command=review)
    one.add_argument(
        "table", help="a table of labelled samples: votes, translations, controversial, distilled"
    )
    one.add_argument("--port", type=int, default=0, help="of 127.0.0.1; default: a free one")
    one.add_argument("--blind", action="store_true", help="hide votes and labels until the row is labelled")
    add_choice(one)
    about = "what people said: export, import, agreement"
    actions = commands.add_parser("labels", help=about).add_subparsers(required=True, metavar="ACTION")
    one = actions.add_parser("export", help="human labels as JSON Lines; with --table, rows to be labelled")
    one.set_defaults(command=export)
    one.add_argument("file")
    one.add_argument("--table", default="")
    add_choice(one)
    one = actions.add_parser("import", help="labelled lines into a new version of human_labels")
    one.set_defaults(command=import_file)
    one.add_argument("file")
    one.add_argument("--table", default="", help="where the rows stand, for lines that do not say it")
    add_person(one)
    one = actions.add_parser("agreement", help="how far people agree on the rows they share")
    one.set_defaults(command=agreement)
    one.add_argument("--root", default="mill/local")
    one.add_argument("--json", action="store_true")


def add_person(one: argparse.ArgumentParser) -> None:
    one.add_argument("--reviewer", default="", metavar="NAME", help="who reads")
    one.add_argument("--policy", default="safety", help="a packaged name or a YAML file; default: safety")
    one.add_argument("--root", default="mill/local")


def add_choice(one: argparse.ArgumentParser) -> None:
    from ray_jobs.review_choice import ORDERS

    add_person(one)
    one.add_argument("--order", choices=ORDERS, default="stratified", help="default: stratified")
    one.add_argument("--query", default="", metavar="SQL", help="only these rows: \"language = 'es'\"")
    one.add_argument("-n", type=int, default=200, help="at most so many rows; default: 200")
    one.add_argument("--seed", type=int, default=17, help="of the order; default: 17")


def choice(options: argparse.Namespace) -> Any:
    from ray_jobs.review_choice import Choice

    return Choice(options.order, options.query, options.n, options.seed)


def review(options: argparse.Namespace) -> None:
    """Serve the page until interrupted, then save."""
    from ray_jobs.review import Session
    from ray_jobs.review_server import serve
    from synth.policy import load_policy

    session = Session(
        Store(options.root),
        load_policy(options.policy),
        options.table,
        choice(options),
        options.reviewer,
        options.blind,
    )
    print(
        f"{len(session.rows)} rows of {session.version.ref}. Open this address; Ctrl-C saves and ends.",
        file=sys.stderr,
    )
    serve(session, options.port, lambda address: print(address, flush=True))
    print(f"{session.progress()['labels']} labels of {session.reviewer} in all", file=sys.stderr)


def export(options: argparse.Namespace) -> None:
    from ray_jobs.review_files import export_labels, export_rows

    store = Store(options.root)
    if options.table:
        lines = export_rows(store, options.table, choice(options), options.reviewer, options.file)
    else:
        lines = export_labels(store, options.file)
    print(f"{options.file}: {lines} lines")


def import_file(options: argparse.Namespace) -> None:
    from ray_jobs.review_files import import_labels
    from synth.policy import load_policy

    version, added, empty = import_labels(
        Store(options.root), load_policy(options.policy), options.file, options.table, options.reviewer
    )
    print(f"{version.ref}: {added} labels added; {empty} lines without a label")


def agreement(options: argparse.Namespace) -> None:
    from ray_jobs import human_labels
    from ray_jobs.cli import print_json

    told = human_labels.agreement(human_labels.read(Store(options.root)))
    if options.json:
        print_json(told)
        return
    for name, count in told["reviewers"].items():
        print(f"{name}: {count} rows")
    if not told["shared"]:
        print("no row has labels of two people")
        return
    print(
        f"{told['shared']} rows by two or more: Krippendorff's alpha {told['alpha']:.3f}, same on {told['same']:.0%}"
    )
    for sample in told["disputed"]:
        print(f"  disputed: {sample}")
