"""`guardmill evaluate`: checkpoints of guards on public benchmarks and on files of one's own, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.eval_formats import FORMATS, Columns, EvalRow, Read, read_file
from ray_jobs.file_guards import Checkpoint, judge, read_checkpoint
from ray_jobs.file_roles import named
from ray_jobs.file_scores import System, sampled, score_file
from synth.errors import BadInput
from synth.policy import load_policy

COLUMNS = ("prompt", "response", "label", "category", "refusal", "language", "group", "history", "onset")


def add_evaluate(commands: Any) -> None:
    """The command and its options."""
    about = "score checkpoints of guards on benchmark files: strict and loose, with intervals"
    one = commands.add_parser("evaluate", help=about, description=about)
    one.set_defaults(command=evaluate_files)
    one.add_argument(
        "checkpoint",
        help="a checkpoint folder, a root's table such as gen_guard@v1, RECIPE:ROLE, or openai:MODEL",
    )
    one.add_argument("data", nargs="+", help="files of labelled texts; hub:OWNER/NAME/PATH@COMMIT is fetched")
    one.add_argument("--against", action="append", default=[], metavar="CHECKPOINT",
                     help="a further checkpoint, compared on the same rows (McNemar); repeatable")  # fmt: skip
    add_formats(one)
    one.add_argument("--limit", type=int, metavar="N", help="at most N rows of each file, drawn by --seed")
    one.add_argument("--seed", type=int, default=0, help="of the draw and of the bootstraps; default: 0")
    one.add_argument("--resamples", type=int, default=1000, help="of each bootstrap; default: 1000")
    one.add_argument("--answers", action="store_true",
                     help="let generative guards write every answer out, for the categories")  # fmt: skip
    one.add_argument("--policy", default="", help="instead of the policy that the checkpoint names")
    one.add_argument("--template", default="", help="instead of the template that the checkpoint names")
    one.add_argument("--qwen3-tokenizer", metavar="FOLDER", help="reads the onsets of qwen3-guard-test")
    one.add_argument("--device", default="", help="where the models run; default: a GPU if there is one")
    one.add_argument("--root", default="mill/local")
    one.add_argument(
        "--page", default="", metavar="FILE", help="also write one HTML file with tables and charts"
    )
    one.add_argument("--json", action="store_true", help="print JSON")


def add_formats(one: Any) -> None:
    """The options that say how labelled files are read; `formats` and `columns` take them."""
    one.add_argument("--format", action="append", choices=FORMATS, metavar="FORMAT",
                     help=f"of all files, or once per file: {', '.join(FORMATS)}; default: plain")  # fmt: skip
    for name in COLUMNS:
        given = {"prompt": "prompt", "response": None, "label": "label"}.get(name, "")
        one.add_argument(
            f"--{name}", default=given, metavar="COLUMN", help=f"plain files: the column of the {name}"
        )


def formats(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Every file with its format. BadInput unless one format is named for all, or one per file."""
    told = options.format or ["plain"]
    if len(told) not in (1, len(options.data)):
        raise BadInput(
            f"{len(told)} formats for {len(options.data)} files: name one for all, or one per file"
        )
    return zip(options.data, told * len(options.data) if len(told) == 1 else told, strict=True)


def columns(options: argparse.Namespace) -> Columns:
    """What the columns of plain files are called."""
    return Columns(**{name: getattr(options, name) for name in COLUMNS})


def evaluate_files(options: argparse.Namespace) -> None:
    """Read all files, judge them with every checkpoint, one model at a time, and print the tables."""
    checkpoints = opened(options)
    files = [(path, format, read) for path, format, read in given(options, checkpoints[0])]
    chosen = [sampled(read.rows, options.limit, options.seed) for _, _, read in files]
    judged = [told_by(checkpoint, chosen, options) for checkpoint in checkpoints]
    names = system_names([checkpoint.folder for checkpoint in checkpoints])
    result: dict[str, Any] = {
        "seed": options.seed,
        "systems": [
            {
                "system": name,
                "kind": checkpoint.kind,
                "policy": checkpoint.policy.id,
                "policy_changed": checkpoint.changed,
                "template": checkpoint.template if checkpoint.kind == "gen" else None,
            }
            for name, checkpoint in zip(names, checkpoints, strict=True)
        ],
        "files": [],
    }
    for number, ((path, format, read), rows) in enumerate(zip(files, chosen, strict=True)):
        systems = [
            System(name, checkpoint.policy, told[number])
            for name, checkpoint, told in zip(names, checkpoints, judged, strict=True)
        ]
        about = {"file": path, "format": format, "texts": len(read.rows), "scored": len(rows)}
        tables = score_file(rows, systems, options.resamples, options.seed)
        result["files"].append(about | {"left_out": dict(read.left_out)} | tables)
    if options.page:
        from ray_jobs.eval_page import page

        Path(options.page).write_text(page(result), encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False, indent=1) if options.json else "\n".join(pages(result)))


def opened(options: argparse.Namespace) -> list[Checkpoint]:
    """The checkpoints, first of all, so that a wrong one costs nothing. BadInput for options that contradict."""
    from ray_jobs.commands_guards import checkpoint_folder

    if options.limit is not None and options.limit < 1:
        raise BadInput(f"--limit is a number of rows from 1, not {options.limit}")
    if options.page and not Path(options.page).parent.is_dir():
        raise BadInput(f"--page {options.page}: there is no folder {Path(options.page).parent}")
    if options.resamples < 1:
        raise BadInput(f"--resamples is a number from 1, not {options.resamples}")
    found = []
    for name in (options.checkpoint, *options.against):
        if (model := named(name)) is not None:
            policy = load_policy(options.policy or "safety")
            template = options.template or "moderation_full"
            found.append(Checkpoint(name, "gen", policy, template, model=model))
            continue
        folder = checkpoint_folder(argparse.Namespace(checkpoint=name, root=options.root))
        found.append(read_checkpoint(folder, options.policy, options.template))
    return found


def given(options: argparse.Namespace, first: Checkpoint) -> Iterator[tuple[str, str, Read]]:
    """Every file with its format and texts."""
    decode = decoder(options.qwen3_tokenizer) if options.qwen3_tokenizer else None
    for path, format in formats(options):
        yield path, format, read_file(path, format, columns(options), first.policy, decode)


def decoder(folder: str) -> Callable[[Sequence[int]], str]:
    """Token ids to text, markers kept, by the tokenizer in a folder."""
    if not Path(folder, "tokenizer.json").is_file():
        raise BadInput(f"{folder}: no tokenizer.json there")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def told_by(checkpoint: Checkpoint, chosen: list[list[EvalRow]], options: argparse.Namespace) -> list[Any]:
    """A checkpoint's judgements of all files' rows, file by file. The model is loaded once and let go after."""
    rows = [row for part in chosen for row in part]
    missing = sorted({row.side for row in rows} - set(checkpoint.policy.sides))
    if missing:
        raise BadInput(f"{checkpoint.folder}: its policy {checkpoint.policy.id} has no side {missing[0]!r}")

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            print(
                f"\r{checkpoint.folder}: {done} of {len(rows)}",
                end="\n" * (done == len(rows)),
                file=sys.stderr,
            )

    placed = (("device", options.device),) if options.device else ()
    told = iter(judge(checkpoint, rows, options.answers, placed, progress))
    return [[next(told) for _ in part] for part in chosen]


def system_names(folders: Sequence[str]) -> list[str]:
    """Short names that differ: as many of a path's last parts as it takes."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise BadInput(f"{folders[0]} is named twice: a checkpoint is compared with another")


def pages(result: dict[str, Any]) -> Iterator[str]:
    """The tables as aligned text."""
    for system in result["systems"]:
        if system["policy_changed"]:
            yield f"{system['system']}: the policy {system['policy']} is not the one it was trained on"
    for file in result["files"]:
        left_out = "".join(f"; left out: {rows} ({reason})" for reason, rows in file["left_out"].items())
        drawn = f" drawn with seed {result['seed']}" if file["scored"] < file["texts"] else ""
        yield f"\n{file['file']} ({file['format']}): {file['scored']} of {file['texts']} texts{drawn}{left_out}"
        yield from aligned(score_lines(file))
        yield from aligned(refusal_lines(file))
        yield from aligned(onset_lines(file))
        yield from aligned(pair_lines(file))
        yield from category_lines(file)
        for failed in file["failed"]:
            yield f"{failed['system']}: {failed['rows']} not judged, or not wholly: {failed['reason']}"
    if len(result["files"]) > 1:
        from ray_jobs.eval_page import summary

        yield ""
        yield from aligned(summary(result))


def score_lines(file: dict[str, Any]) -> list[list[str]]:
    head = ["guard", "side", "reading", "rows", "violating", "F1", "95 %", "precision", "recall", "AUPRC"]
    lines = [
        [
            one["system"], one["side"], one["reading"], str(one["rows"]), str(one["violating"]), share(one["f1"]),
            between(one), share(one["precision"]), share(one["recall"]),
            f"{share(one['auprc']['value'])} ({between(one['auprc'])})" if one["auprc"] else "-",
        ]
        for one in file["scores"]
    ]  # fmt: skip
    return [head, *lines] if lines else []


def refusal_lines(file: dict[str, Any]) -> list[list[str]]:
    head = ["refusal by", "rows", "refusals", "F1", "95 %", "precision", "recall"]
    lines = [
        [one["system"], str(one["rows"]), str(one["refusals"]), share(one["f1"]), between(one), share(one["precision"]),
         share(one["recall"])]
        for one in file["refusal"]
    ]  # fmt: skip
    return [head, *lines] if lines else []


def onset_lines(file: dict[str, Any]) -> list[list[str]]:
    if not file["onsets"]:
        return []
    head = ["onset by", "reading", "rows", *file["onsets"][0]["bins"], "hit", "stopped within 128"]
    return [head] + [
        [one["system"], one["reading"], str(one["rows"]), *map(str, one["bins"].values()),
         *(f"{share(one[name]['value'])} ({between(one[name])})" for name in ("hit", "stopped"))]
        for one in file["onsets"]
    ]  # fmt: skip


def pair_lines(file: dict[str, Any]) -> list[list[str]]:
    head = [
        "first",
        "second",
        "side",
        "reading",
        "rows",
        "only first right",
        "only second right",
        "p",
        "F1 gap",
        "95 %",
    ]
    lines = [
        [one["first"], one["second"], one["side"], one["reading"], str(one["rows"]), str(one["only_first"]),
         str(one["only_second"]), f"{one['p']:.2g}", f"{one['f1_difference']['value']:+.3f}",
         between(one["f1_difference"])]
        for one in file["pairs"]
    ]  # fmt: skip
    return [head, *lines] if lines else []


def category_lines(file: dict[str, Any]) -> Iterator[str]:
    """Per guard and side, each benchmark category with the guard's most frequent answers."""
    for one in file["categories"]:
        yield f"categories of violating {one['side']}s by {one['system']}:"
        for name, counts in list(zip(one["truth"], one["counts"], strict=True))[:20]:
            said = sorted(zip(counts, one["said"], strict=True), key=lambda pair: (-pair[0], pair[1]))[:3]
            yield f"  {name[:60]}: " + ", ".join(f"{other} {count}" for count, other in said if count)


def share(value: float) -> str:
    return f"{value:.3f}"


def between(one: dict[str, Any]) -> str:
    return f"{one['low']:.3f} to {one['high']:.3f}"


def aligned(lines: list[list[str]]) -> Iterator[str]:
    """Cells under each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
