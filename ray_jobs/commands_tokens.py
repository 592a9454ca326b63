"""`guardmill label-tokens` on a file of one's own, and token labels as people read them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from label.rollout_plan import MODES
from ray_jobs.cli import add, print_json
from ray_jobs.files import check_writable, read_table, write_table

if TYPE_CHECKING:
    from ray_jobs.step import Output
    from ray_jobs.store import Store, TableVersion
    from ray_jobs.token_waves import Wave

MODES_TOLD = "paper evaluates everything; exact finds the same token for less; bisect and recycle approximate"


def add_tokens(commands: Any) -> None:
    about = "find the token at which flagged responses of a file of your own turn"
    one = add(commands, "label-tokens", label_tokens, about)
    one.add_argument("input")
    one.add_argument("output")
    one.add_argument("--prompt", required=True, metavar="COLUMN")
    one.add_argument("--response", required=True, metavar="COLUMN")
    one.add_argument("--label", required=True, metavar="COLUMN", help="a severity of the policy per response")
    one.add_argument("--thinking", default="", metavar="COLUMN", help="thinking text that stands apart")
    one.add_argument("--recipe", default="local", help="whose models roll out, guard and judge")
    one.add_argument("--root", help="whose guards are used (a folder or s3://…); default: mill/RECIPE")
    one.add_argument("--mode", choices=MODES, help=MODES_TOLD)
    one.add_argument("--k", type=int, help="continuations per prefix")
    one.add_argument(
        "--threshold", type=float, help="share of them that must violate; rounded up to whole ones"
    )
    one.add_argument("--continuation", type=int, metavar="TOKENS", help="length of a continuation")
    one.add_argument(
        "--max-rollouts", type=int, metavar="N", help="most continuations per response; 0: no limit"
    )
    one.add_argument(
        "--max-generated", type=int, metavar="N", help="most generated tokens per response; 0: no limit"
    )
    one.add_argument("--max-tokens", type=int, metavar="N", help="longer texts are left unlabelled")
    one.add_argument(
        "--checked", type=int, metavar="N", help="searches of an approximate mode to repeat exactly"
    )
    one.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the first N searched texts, boundaries marked"
    )
    one.add_argument(
        "--no-request-cache",
        action="store_true",
        help="ask the models again what the root's earlier runs asked, and keep no answers",
    )
    one.add_argument("--json", action="store_true", help="print the summary as JSON")


def label_tokens(options: argparse.Namespace) -> None:
    """The input's columns and those of ray_jobs.file_token_labels; what is not said is the recipe's."""
    from ray_jobs.file_token_labels import Columns, label_file, labelled, read_rows, summary
    from ray_jobs.pipeline import run_of
    from ray_jobs.recipes import named
    from synth.policy import load_policy

    recipe = named(options.recipe)
    if options.no_request_cache:
        recipe = replace(recipe, request_cache_gb=0.0)
    policy, config = load_policy(recipe.policy), overridden(recipe.token_labels, options)
    check_writable(options.output)
    table = read_table(options.input)
    columns = Columns(options.prompt, options.response, options.label, options.thinking)
    rows = read_rows(table, options.input, columns, policy)
    waves: list[Wave] = []

    def told(wave: Wave) -> None:
        waves.append(wave)
        print(
            f"  wave {wave.number}: {wave.open} open, {wave.rollouts} continuations, {wave.judges} judge calls",
            file=sys.stderr,
            flush=True,
        )

    output = label_file(run_of(recipe, policy, options.root or f"mill/{recipe.name}"), config, rows, told)
    write_table(labelled(table, rows, output), options.output)
    found = summary(output, waves)
    if options.json:
        print_json(found)
        return
    for row in searched(output)[: max(options.show, 0)]:
        print(f"{marked(row)}\n")
    print(", ".join(f"{count} {name}" for name, count in found["outcomes"].items()))
    print(
        f"{found['rollouts']} continuations of {found['paper_rollouts']} (every prefix, all draws), "
        f"{found['guard_calls']} guard and {found['judge_calls']} judge calls"
    )
    if found["checked"]:
        print(f"{found['same_as_exact']} of {found['checked']} checked responses as in exact mode")


def overridden(config: Any, options: argparse.Namespace) -> Any:
    """The recipe's config with what the command line says. BadInput for a plan that cannot be."""
    plan = {"mode": options.mode, "k": options.k, "threshold": options.threshold}
    plan |= {"max_rollouts": options.max_rollouts, "max_tokens": options.max_generated}
    rest = {"max_tokens": options.max_tokens, "checked": options.checked}
    sampling = config.sampling
    if options.continuation is not None:
        sampling = replace(sampling, max_tokens=options.continuation)
    return replace(
        config, plan=replace(config.plan, **given(plan)), sampling=sampling, responses=0, **given(rest)
    )


def given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def searched(output: Output) -> list[dict[str, Any]]:
    """The token labels of the texts on which something was spent."""
    rows: list[dict[str, Any]] = output.tables["token_labels"]  # type: ignore[assignment]
    return [row for row in rows if row["evidence"]]


def marked(row: dict[str, Any]) -> str:
    """A token-labelled text with its boundary marked, and the evidence under it."""
    text, onset = visible(row["response"]), row["onset"]
    body = text if onset is None else f"{text[:onset]}⟦{row['severity']}⟧{text[onset:]}"
    where = "" if onset is None else f" at token {row['boundary']} of {row['tokens']}, character {onset}"
    reason = f" ({row['reason']})" if row["reason"] else ""
    lines = [f"{row['id']}  {row['severity']}, {row['outcome']}{where}{reason}"]
    lines += [f"  prompt:   {visible(row['prompt'])}", f"  {row['part'] + ':':<9} {body}"]
    lines += [evidence_line(text, run) for run in runs(row["evidence"])]
    lines.append(
        f"  cost: {row['rollouts']} continuations ({row['generated_tokens']} tokens), {row['guard_calls']} guard and "
        f"{row['judge_calls']} judge calls; every prefix with all draws: {row['paper_rollouts']} continuations "
        f"({row['paper_generated_tokens']} tokens)"
    )
    return "\n".join(lines)


def agreement(store: Store, labels: TableVersion) -> str:
    """How far the run's approximate mode agreed with the exact one; "" where the mode was exact."""
    checks = store.find("token_label_checks", labels.provenance.identity)
    rows = store.read(checks.ref, columns=["mode", "same"]).to_pylist() if checks and checks.rows else []
    if not rows:
        return ""
    return f"{sum(row['same'] for row in rows)} of {len(rows)} texts checked: {rows[0]['mode']} as exact"


def runs(evidence: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The examined prefixes, neighbours together on which only the judge was asked."""
    found: list[list[dict[str, Any]]] = []
    for one in evidence:
        if found and not one["draws"] and not found[-1][-1]["draws"]:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def evidence_line(text: str, run: list[dict[str, Any]]) -> str:
    """One prefix: its draws, the judge, its end. Or several that nothing was drawn for, with the judge's highest."""
    first, last = run[0], run[-1]
    asked = [one["judge"] for one in run if one["judge"] is not None]
    judge = f"{'<= ' if len(asked) > 1 else ''}{max(asked):.2f}" if asked else "not asked"
    where = f"{first['token']}" if first is last else f"{first['token']}-{last['token']}"
    draws = f"{last['violations']} of {last['draws']} violate" if last["draws"] else "nothing drawn"
    tail = text[max(0, last["char_end"] - 24) : last["char_end"]]
    return f"    token {where:>7}  {draws:<16} judge {judge:<9}  {'…' if last['char_end'] > 24 else ''}{tail}"


def visible(text: str) -> str:
    """Generated text for a terminal: control characters become dots, so that none of them acts, and offsets hold. The
    joiner of emoji stays: it acts on its neighbours only."""
    return "".join(char if char.isprintable() or char in " \u200d" else "·" for char in text)
