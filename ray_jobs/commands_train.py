"""`guardmill train gen|stream`: a guard from labelled files, without the mill before it."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_jobs.cli import print_json
from ray_jobs.commands_evaluate import add_formats, columns, formats
from ray_jobs.commands_rl import add_rl
from ray_jobs.eval_formats import EvalRow, read_file
from ray_jobs.eval_formats.hub import local
from ray_jobs.file_scores import sampled
from synth.errors import BadInput
from synth.ids import stable_hash
from synth.policy import Policy, load_policy

KINDS = {
    "gen": "the generative guard, which answers a moderation instruction",
    "stream": "the streaming guard, which judges every token",
}


def add_train(commands: Any) -> None:
    """The commands and their options."""
    top = commands.add_parser(
        "train", help="train: gen, stream (a guard on labelled files), rl (a policy model)"
    )
    actions = top.add_subparsers(required=True, metavar="WHAT")
    add_rl(actions)
    for kind, about in KINDS.items():
        one = actions.add_parser(kind, help=about, description=f"Train {about}, on files of labelled texts.")
        one.set_defaults(command=train_files, kind=kind)
        one.add_argument("data", nargs="+", help="files of labelled texts")
        one.add_argument("--out", required=True, metavar="FOLDER", help="the guard comes to FOLDER/guard")
        add_formats(one)
        one.add_argument("--limit", type=int, metavar="N", help="at most N rows of each file")
        one.add_argument("--policy", default="safety", help="a packaged policy's name or a YAML file")
        if kind == "gen":
            one.add_argument("--template", default="moderation_short", help="of the policy")
        one.add_argument("--backbone", default="smollm2-135m", help="a packaged model or a folder of weights")
        one.add_argument("--layers", type=int, help="train only the top N layers; default: all")
        one.add_argument(
            "--lora", type=int, default=0, metavar="RANK", help="adapters of this rank; default: none"
        )
        one.add_argument("--epochs", type=int, default=3)
        one.add_argument("--lr", type=float, default=2e-4)
        one.add_argument("--batch-tokens", type=int, default=1024, help="tokens of one step; default: 1024")
        one.add_argument("--row-length", type=int, default=512,
                         help="tokens of one row, in which samples share what they begin with; longer ones for a long "
                              "template (moderation_full: 4096); default: 512")  # fmt: skip
        one.add_argument("--max-length", type=int, default=512, help="tokens of one sample; default: 512")
        one.add_argument("--zero-stage", type=int, choices=range(4), default=2)
        one.add_argument("--balance", choices=("none", "sqrt", "full"), default="sqrt",
                         help="weight of a class: its count to the power of 0, -1/2 or -1; default: sqrt")  # fmt: skip
        one.add_argument("--patience", type=int, default=2, metavar="EPOCHS",
                         help="stop after so many without a better held-out loss, keep the best; 0: never")  # fmt: skip
        one.add_argument("--curves", choices=("tensorboard", "wandb"), default="",
                         help="also write the training's curves there")  # fmt: skip
        one.add_argument("--workers", type=int, default=2)
        one.add_argument("--gpu", action="store_true", help="one GPU per worker")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument(
            "--control", action="store_true", help="also train on shuffled labels, to compare with"
        )
        one.add_argument("--replace", action="store_true", help="train anew where FOLDER holds another guard")
        one.add_argument("--json", action="store_true", help="print the figures as JSON")


def train_files(options: argparse.Namespace) -> None:
    """Read and check everything, then train; the same call on the same files again does nothing."""
    from ray_jobs.file_training import examples

    policy = load_policy(options.policy)
    template = getattr(options, "template", "")
    rows = [row for part in given(options, policy) for row in part]
    made = examples(options.kind, rows, policy, template)
    config = training(options, policy)
    out = Path(options.out)
    provenance = {
        "step": f"train_{options.kind}",
        "policy": policy.hash,
        "policy_id": options.policy if Path(options.policy).is_file() else policy.id,
        "template": template,
        "data": {path: hashlib.sha256(Path(local(path)).read_bytes()).hexdigest() for path in options.data},
    }
    result = trained(options, made, config, out, provenance)
    if options.json:
        print_json({"guard": str(result.path), "examples": len(made), **result.metrics})
        return
    figures = ", ".join(f"{name} {value}" for name, value in sorted(result.metrics.items()))
    print(f"{result.path}: trained on {len(made)} texts; {figures}")


def given(options: argparse.Namespace, policy: Policy) -> list[list[EvalRow]]:
    """Every file's labelled texts."""
    found = []
    for path, format in formats(options):
        read = read_file(path, format, columns(options), policy)
        for reason, count in read.left_out.items():
            print(f"{path}: {count} rows left out ({reason})", file=sys.stderr)
        found.append(sampled(read.rows, options.limit, options.seed))
    return found


def training(options: argparse.Namespace, policy: Policy) -> Any:
    """The config of the training. BadInput for a number out of range or an unknown backbone."""
    from ray_jobs.engine.weights import locate
    from ray_jobs.stream_guard import label_maps
    from train.fit_config import GenConfig, StreamConfig

    for name in ("epochs", "lr", "batch_tokens", "row_length", "max_length", "workers", "limit"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise BadInput(f"--{name.replace('_', '-')} is above 0, not {value}")
    if options.lora < 0:
        raise BadInput(f"--lora is a rank from 1, or 0 for none, not {options.lora}")
    fields: dict[str, Any] = {
        "backbone": str(locate(options.backbone)), "epochs": options.epochs, "lr": options.lr,
        "train_layers": options.layers, "lora_rank": options.lora, "batch_tokens": options.batch_tokens,
        "max_length": options.max_length,
        "zero_stage": options.zero_stage, "class_balance": options.balance, "patience": options.patience,
        "row_length": min(options.row_length, options.batch_tokens), "seed": options.seed, "curves": options.curves,
        "workers": options.workers, "bf16": options.gpu,
    }  # fmt: skip
    if options.kind == "gen":
        return GenConfig(**fields)
    return StreamConfig(**(fields | label_maps(policy)), fit_shift=True)


def trained(
    options: argparse.Namespace,
    made: list[dict[str, Any]],
    config: Any,
    out: Path,
    provenance: dict[str, Any],
) -> Any:
    """The training's result: from the folder if it is the same one, else trained now."""
    from ray_jobs.train_common import read_result
    from ray_jobs.train_gen import train_gen
    from ray_jobs.train_stream import train_stream

    identity = stable_hash(
        asdict(replace(config, workers=1, curves="")), made, provenance["template"], options.control
    )
    guard = out / "guard"
    if (guard / "guardmill.json").is_file() and not options.replace:
        about = json.loads((guard / "guardmill.json").read_text(encoding="utf-8"))
        if about["provenance"].get("identity") != identity:
            raise BadInput(
                f"{guard} is a guard trained otherwise; --replace trains anew, or name another --out"
            )
        print(f"{guard}: done before", file=sys.stderr)
        return read_result(guard)
    trainer: Any = train_gen if options.kind == "gen" else train_stream
    return trainer(
        made,
        config,
        out,
        workers=options.workers,
        use_gpu=options.gpu,
        provenance={**provenance, "identity": identity},
        control=options.control,
    )
