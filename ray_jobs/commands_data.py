"""`guardmill data …`: what a root's tables hold, and how they came to be."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from ray_jobs.cli import print_json
from ray_jobs.store import Store, TableVersion


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


def clean(options: argparse.Namespace) -> None:
    for ref in Store(options.root).cleanup(options.keep, dry_run=options.dry_run):
        print(ref)
