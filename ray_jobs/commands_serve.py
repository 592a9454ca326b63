"""`guardmill serve`: a streaming guard behind HTTP on this machine."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import Any

from synth.errors import BadInput


def add_serve(commands: Any) -> None:
    """The command and its options."""
    about = (
        "a streaming guard on 127.0.0.1: live verdicts, a page to try it, a filter before any OpenAI endpoint"
    )
    one = commands.add_parser("serve", help=about, description=about)
    one.set_defaults(command=serve)
    one.add_argument("checkpoint", help="a checkpoint folder, or a root's table such as stream_guard@v1")
    one.add_argument("--port", type=int, default=8000, help="of 127.0.0.1; default: 8000")
    one.add_argument("--reading", choices=("strict", "loose"), default="strict")
    one.add_argument("--run", type=int, default=2, metavar="N", help="flagged tokens in a row; default: 2")
    one.add_argument("--threshold", action="append", default=[], metavar="CATEGORY=P",
                     help="flag a token of a category from this probability of violating; * is the rest")  # fmt: skip
    one.add_argument("--streams", type=int, default=16, metavar="N", help="at once; default: 16")
    one.add_argument(
        "--context", type=int, default=4096, metavar="N", help="tokens of a stream; default: 4096"
    )
    one.add_argument(
        "--upstream", default="", metavar="URL", help="an OpenAI-compatible endpoint, with its /v1"
    )
    one.add_argument("--key-env", default="", metavar="NAME", help="the variable with the upstream's key")
    one.add_argument(
        "--pass-prompts", action="store_true", help="send prompts on even where they are flagged"
    )
    one.add_argument("--device", default="", help="where the guard runs; default: a GPU if there is one")
    one.add_argument("--root", default="mill/local")


def serve(options: argparse.Namespace) -> None:
    """Check everything, start, say where, and serve until interrupted."""
    from ray_jobs.commands_guards import checkpoint_folder
    from ray_jobs.serve import Settings, free, served, stop
    from ray_jobs.serve.upstream import Upstream, check_url
    from train.stream_score import read_config

    for name in ("run", "streams", "context"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name} is a number from 1, not {getattr(options, name)}")
    free(options.port)
    folder = checkpoint_folder(options)
    maps = read_config(folder).maps
    known = {*maps.response_category, *maps.query_category, "*"}
    settings = Settings(
        folder,
        options.reading,
        options.run,
        thresholds(options.threshold, known),
        options.streams,
        options.context,
        options.device,
        Upstream(check_url(options.upstream), options.key_env) if options.upstream else None,
        not options.pass_prompts,
    )
    import torch

    gpu = torch.cuda.is_available() and options.device in ("", "cuda")
    done = threading.Event()
    try:
        address = served(settings, options.port, gpu=gpu)
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # after Ray, which takes SIGTERM for itself when it starts
            signal.signal(number, lambda *_: done.set())
        print(address, flush=True)
        done.wait()
        print("stopping", file=sys.stderr)
    finally:
        stop()


def thresholds(given: list[str], known: set[str]) -> dict[str, float]:
    """CATEGORY=P by category. BadInput for a category that the guard does not have, or no probability."""
    out = {}
    for one in given:
        name, _, value = one.rpartition("=")
        if name not in known:
            raise BadInput(
                f"--threshold {one}: the guard has no category {name!r}, only {', '.join(sorted(known))}"
            )
        try:
            out[name] = float(value)
        except ValueError:
            raise BadInput(f"--threshold {one}: {value!r} is no number") from None
        if not 0 <= out[name] <= 1:
            raise BadInput(f"--threshold {one}: a probability lies between 0 and 1")
    return out
