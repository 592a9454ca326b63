"""`guardmill run`, `plan`, `report`, `vote`, `show`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

from ray_jobs.cli import print_json
from ray_jobs.store import Store
from synth.errors import BadInput


def prepared(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The recipe with the command line's overrides, its policy and its root."""
    from ray_jobs.dedup import held_out
    from ray_jobs.files import import_file, read_import
    from ray_jobs.recipes import named
    from synth.policy import load_policy

    recipe = named(options.recipe)
    if options.policy:
        recipe = replace(recipe, policy=options.policy)
    policy = load_policy(recipe.policy)
    if options.imports:
        files = tuple(import_file(path) for path in options.imports)
        for file in files:  # a bad row is told before anything starts
            deque(read_import(file, policy), maxlen=0)
        recipe = replace(recipe, seeds=replace(recipe.seeds, imports=files))
    if options.evaluations:
        sets = tuple(import_file(path) for path in options.evaluations)
        held_out(None, sets)  # a file that is no evaluation set is told before anything starts
        recipe = replace(
            recipe,
            dedup=replace(recipe.dedup, evaluations=sets),
            translations=replace(recipe.translations, evaluations=sets),
            gate=replace(recipe.gate, evaluations=sets),
        )
    return recipe, policy, options.root or f"mill/{recipe.name}"


def run(options: argparse.Namespace) -> None:
    """Run the flow and say what it found and where it is."""
    from ray_jobs.pipeline import mill

    recipe, policy, root = prepared(options)
    versions = mill(recipe, policy, root, until=options.until)
    if options.json:
        print_json({name: version.ref for name, version in versions.items()})
        return
    for line in summary(Store(root), versions):
        print(line)


def summary(store: Store, versions: dict) -> list[str]:  # type: ignore[type-arg]
    """What a person wants to know after a run: where things are, and what was found."""
    lines = [f"Tables: {store.root} ({', '.join(v.ref for v in versions.values())})"]
    for guard in ("gen_guard", "stream_guard"):
        if guard in versions:
            row = next(r for r in store.read(versions[guard].ref).to_pylist() if r["name"] == "guard")
            lines.append(f"{guard}: {store.root}/{row['uri']}")
    if "evaluation" in versions:
        lines.append("F1 of the violating class on gold rows that no step has seen, with 95 % intervals:")
        rows = store.read(versions["evaluation"].ref).to_pylist()
        for row in sorted(rows, key=lambda row: (row["side"], row["reading"], -row["f1"])):
            lines.append(
                f"  {row['side']:<9} {row['reading']:<7} {row['system']:<22} {row['f1']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}], macro F1 {row['macro_f1']:.3f}  "
                f"({row['rows']} rows, {row['violating']} violating)"
            )
    if "report" in versions:
        row = store.read(versions["report"].ref).to_pylist()[0]
        lines.append(f"Report: {store.root}/{row['uri']}/report.html")
    return lines


def plan(options: argparse.Namespace) -> None:
    """What a run would do now, without Ray and without a model."""
    from ray_jobs.commands_cluster import plan_cluster
    from ray_jobs.pipeline import flow_until, run_of
    from ray_jobs.step.plan import plan as make_plan

    recipe, policy, root = prepared(options)
    if options.cluster:
        plan_cluster(options, recipe, policy)
        return
    entries = make_plan(flow_until(recipe, policy, options.until), run_of(recipe, policy, root))
    if options.json:
        print_json([vars(entry) for entry in entries])
        return
    print(
        f"{'step':<16} {'state':<8} {'units':>11} {'rows':>8} {'calls':>8} {'tokens':>9} {'seconds':>8}  why"
    )
    for entry in entries:
        units = f"{entry.units_to_do}/{entry.units}" if entry.units else "?"
        print(
            f"{entry.step:<16} {entry.state:<8} {units:>11} {shown(entry.rows):>8} {shown(entry.calls):>8} "
            f"{shown(entry.tokens):>9} {shown(entry.seconds):>8}  {entry.why}"
        )


def shown(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def report(options: argparse.Namespace) -> None:
    store = Store(options.root)
    row = store.read(store.resolve("report").ref).to_pylist()[0]
    page = Path(store.get_folder(row["uri"], row["sha256"])) / "report.html"
    Path(options.out).write_bytes(page.read_bytes())
    print(options.out)


def vote(options: argparse.Namespace) -> None:
    """The combination beside the best voter and the majority, on gold rows, out of fold."""
    store = Store(options.root)
    fitted = store.read(store.resolve("combiner").ref).to_pylist()
    audits = {row["side"]: json.loads(row["audit"]) for row in fitted}
    severities = json.loads(fitted[0]["combiner"])["severities"]
    if options.json:
        print_json(audits)
        return
    for side, audit in audits.items():
        if not audit:
            print(f"{side}: no gold rows; the labels are the majority of the voters, uncalibrated")
            continue
        print(f"{side}: {audit['rows']} gold rows, Krippendorff's alpha {audit['alpha']:.3f}")
        for name in ("combination", "best_voter", "majority"):
            low, high = audit[name]["interval"]
            print(f"  {name:<12} F1 {audit[name]['f1']:.3f} [{low:.3f}, {high:.3f}]")
        low, high = audit["calibration_interval"]
        print(
            f"  calibration error {audit['calibration']['debiased']:.3f} [{low:.3f}, {high:.3f}] (debiased)"
        )
        surest = ", ".join(f"{float(share):.0%} {f1:.3f}" for share, f1 in audit["surest"].items())
        for share, f1 in audit["surest_violating"].items():
            surest += f"; on the {float(share):.0%} surest of whether they violate {f1:.3f}"
        kept = audit["precision_kept"]
        right = "" if kept is None else f", {kept:.0%} of the others labelled right"
        print(f"  F1 on the surest rows: {surest}; {audit['abstained']:.0%} abstained{right}")
        for warning in audit["warnings"]:
            print(f"  warning: {warning}", file=sys.stderr)
        for voter, told in audit["voters"].items() if options.audit else ():
            print_voter(voter, told)
    if options.audit and "votes" in store.tables():
        print_leaves(store, severities)


def print_voter(voter: str, told: dict) -> None:  # type: ignore[type-arg]
    """One voter's figures and confusions: true severities by row, voted ones and silence by column."""
    print(
        f"  {voter}: F1 {told['f1']:.3f}, abstains {told['abstained']:.1%}, adds {told.get('adds_f1', 0):+.3f}, "
        f"{told['cost'] or 1:g} calls per row"
    )
    for truth, row in enumerate(told["confusion"]):
        print(f"    true {truth}: {row}")
    for attribute, values in told["by"].items():
        for value, table in values.items():
            print(f"    {attribute} {value}: {table}")


def print_leaves(store: Store, severities: list[str]) -> None:
    """The votes by leaf, those that agree least with what rows were written for first."""
    from ray_jobs.vote_leaves import by_leaf

    print(
        f"confusion by leaf (rows: {', '.join(severities)} asked for or given by people; columns: voted, silent)"
    )
    for one in by_leaf(store, severities, store.resolve("votes")):
        print(
            f"  {one.leaf} {one.side}: {one.rows} rows, same {one.agree:.0%}, abstained {one.abstained:.0%}, "
            f"alpha {one.alpha:.2f}  {one.confusion}"
        )


def show(options: argparse.Namespace) -> None:
    """Rows of a table; a token-labelled response with its boundary marked."""
    from ray_jobs.commands_tokens import agreement, marked

    store = Store(options.root)
    version = store.resolve(options.table)
    rows = store.read(version.ref).to_pylist()
    if options.id:
        rows = [row for row in rows if row["id"] == options.id]
        if not rows:
            raise BadInput(f"{version.ref} has no row with the id {options.id}")
    for row in rows[: options.n]:
        if version.name == "token_labels":
            print(marked(row))
            continue
        print_json({name: value for name, value in row.items() if name != "digest"})
    if version.name == "token_labels" and (told := agreement(store, version)):
        print(told)
