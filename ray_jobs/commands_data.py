"""`guardmill data …`: what a root's tables hold, and how they came to be."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from ray_jobs.cli import add, print_json
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput


def add_data(commands: Any) -> None:
    top = commands.add_parser(
        "data",
        help="tables: ls, log, show, tag, untag, pull, push, diff, lineage, exclude, compact, clean",
    )
    actions = top.add_subparsers(required=True, metavar="ACTION")
    for name, command, about, arguments in (
        ("ls", ls, "all tables and their newest versions", ()),
        ("log", log, "every version of a table: who made it, from what, at what price", ("table",)),
        ("show", show, "a version's schema and provenance", ("ref",)),
        ("tag", tag, "name a version", ("ref", "tag")),
        ("untag", untag, "take a name off", ("table", "tag")),
        ("pull", pull, "fetch an exact version as files, verified and resumable", ("ref", "folder")),
        ("push", push, "copy an exact version into another store (a folder or s3://…)", ("ref", "target")),
        ("diff", diff, "rows added, removed and changed between two versions", ("a", "b")),
        ("lineage", lineage, "a row and all it was made from, back to the seed", ("ref", "id")),
        ("exclude", exclude, "drop rows and all that was made from them, as new versions", ("table",)),
        ("compact", compact, "the newest version's rows in few files, as a new version", ("table",)),
        ("clean", clean, "remove versions beyond the newest N that nothing refers to", ("keep",)),
    ):
        one = add(actions, name, command, about)
        for argument in arguments:
            one.add_argument(argument, type=int if argument == "keep" else str)
        one.add_argument("--root", default="mill/local", help="where tables live; default: mill/local")
        one.add_argument("--json", action="store_true", help="print JSON")
        _add_options(one, name)


def _add_options(one: argparse.ArgumentParser, name: str) -> None:
    """What only one of the actions takes."""
    if name == "pull":
        one.add_argument("--format", choices=("parquet", "jsonl", "lance"), default="parquet")
    if name == "push":
        one.add_argument("--lineage", action="store_true", help="with all that the version was made from")
    if name == "lineage":
        one.add_argument("--children", action="store_true", help="what was made from the row instead")
    if name == "exclude":
        one.add_argument("where", nargs="+", metavar="COLUMN=VALUE", help="which rows: all must hold")
        one.add_argument("--reason", required=True, help="why, for the record")
    if name in ("clean", "exclude"):
        one.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")


def ls(options: argparse.Namespace) -> None:
    store = Store(options.root)
    versions = [store.resolve(name) for name in store.tables()]
    if options.json:
        print_json([summary(version) for version in versions])
        return
    if not versions:
        print(f"no tables under {store.root}", file=sys.stderr)
    for version in versions:
        tags = f" [{', '.join(version.tags)}]" if version.tags else ""
        print(
            f"{version.ref:<28} {version.rows:>8} rows  {version.provenance.created}  {version.provenance.step}{tags}"
        )


def summary(version: TableVersion) -> dict[str, object]:
    return {"ref": version.ref, "rows": version.rows, "tags": version.tags, **asdict(version.provenance)}


def log(options: argparse.Namespace) -> None:
    versions = Store(options.root).log(options.table)
    if options.json:
        print_json([summary(version) for version in versions])
        return
    for version in versions:
        made = version.provenance
        dropped = ", ".join(f"{count} {reason}" for reason, count in made.counts.get("dropped", {}).items())
        print(
            f"{version.ref}  {version.rows} rows  {made.created}  step {made.step}  identity {made.identity}"
        )
        print(
            f"    from {', '.join(made.inputs.values()) or 'the policy and imports'}; code {made.code_revision[:12]}"
        )
        print(f"    {made.counts.get('failed', 0)} failed; dropped: {dropped or 'none'}")
        print(f"    {made.calls} calls, {made.tokens} tokens, {made.seconds:.0f} s")


def show(options: argparse.Namespace) -> None:
    store = Store(options.root)
    version = store.resolve(options.ref)
    if options.json:
        print_json(summary(version))
        return
    print(f"{version.ref}: {version.rows} rows")
    for field in store.schema(version.ref):
        print(f"  {field.name:<20} {field.type}")
    print_json(asdict(version.provenance))


def tag(options: argparse.Namespace) -> None:
    print(f"{Store(options.root).tag(options.ref, options.tag).ref} is {options.tag}")


def untag(options: argparse.Namespace) -> None:
    Store(options.root).untag(options.table, options.tag)


def pull(options: argparse.Namespace) -> None:
    manifest = Store(options.root).pull(options.ref, options.folder, options.format)
    if options.json:
        print_json(manifest)
    else:
        print(
            f"{options.ref} -> {options.folder}: {manifest['rows']} rows in {len(manifest['files'])} files, verified"
        )


def push(options: argparse.Namespace) -> None:
    store, target = Store(options.root), Store(options.target)
    made = store.push_lineage(options.ref, target) if options.lineage else [store.push(options.ref, target)]
    if options.json:
        print_json([summary(version) for version in made])
        return
    for version in made:
        print(f"{version.provenance.origin} -> {target.root}#{version.ref}: {version.rows} rows, verified")


def diff(options: argparse.Namespace) -> None:
    found = Store(options.root).diff(options.a, options.b)
    if options.json:
        print_json(asdict(found))
        return
    print(
        f"{found.a} -> {found.b}: {len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
    )
    for column, count in sorted(found.columns.items(), key=lambda item: -item[1]):
        print(f"  {column}: differs in {count} rows")
    for name, columns in (("added", found.columns_added), ("removed", found.columns_removed)):
        if columns:
            print(f"  columns {name}: {', '.join(columns)}")


def lineage(options: argparse.Namespace) -> None:
    store = Store(options.root)
    rows = (store.children if options.children else store.lineage)(options.ref, options.id)
    if options.json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        told = [row.row.get(name) for name in ("text", "response", "prompt") if row.row.get(name)]
        kind = row.row.get("source") or row.row.get("origin") or row.row.get("outcome") or ""
        print(f"{row.ref:<22} {row.id}  {kind:<14} {' '.join(str(told[0]).split())[:100] if told else ''}")


def exclude(options: argparse.Namespace) -> None:
    where: dict[str, str] = {}
    for told in options.where:
        column, is_given, value = told.partition("=")
        if not is_given:
            raise BadInput(f"{told!r} is no condition: COLUMN=VALUE, as source=import or id=…")
        where[column] = value
    done = Store(options.root).exclude(options.table, where, options.reason, options.dry_run)
    if options.json:
        print_json(asdict(done))
        return
    print(f"{done.chosen} rows of {options.table} named; with what was made from them:")
    for name, count in done.rows.items():
        made = done.versions[name]
        print(f"  {name}: {count} rows {'would go' if options.dry_run else f'gone in {made}'}")
    for ref in done.trained:
        print(f"  {ref} was trained on some of them, and does not forget: run the recipe again")


def compact(options: argparse.Namespace) -> None:
    version = Store(options.root).compact(options.table)
    if options.json:
        print_json(summary(version))
    else:
        same = version.provenance.same_as
        print(f"{version.ref}: {version.rows} rows{f', the same as {same}' if same else ''}")


def clean(options: argparse.Namespace) -> None:
    store = Store(options.root)
    with store.lock():
        for ref in store.cleanup(options.keep, dry_run=options.dry_run):
            print(ref)
