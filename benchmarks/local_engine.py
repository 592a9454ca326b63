"""How much of what the device allows does the local engine turn into text?

One run, one process, one model, the same prompts (60 to 150 tokens, mixed) and 32 new tokens a row (end marks
are switched off for all, so that every contender makes the same number of tokens), at batch sizes 64 and 128:

- bare step: forward passes of one token a row with no cache, no attention to anything before and no sampling: the
  tokens per second that the matrix products alone allow;
- bare work: what these prompts cost at the least: one forward pass over every prompt token, then 32 bare steps;
- plain generate: transformers' own `generate` with left padding;
- ours, on distinct prompts, and on four samples of each prompt (as rollouts and votes ask for).

`python benchmarks/local_engine.py [--json FILE] [--batch 64 128] [--dtype float32|bfloat16] [--clock
wall|cpu]`
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence

import torch

from ray_jobs.engine.calls import Model, Sampling
from ray_jobs.engine.causal import CausalLM
from ray_jobs.engine.generate import generate

NEW_TOKENS = 32
Clock = Callable[[], float]
SAMPLING = Sampling(max_tokens=NEW_TOKENS, temperature=1.0, top_p=0.95, top_k=50)


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Token ids of `count` prompts of 60 to 150 tokens; which tokens does not matter to their cost."""
    source = random.Random(0)
    return [[source.randrange(100, vocabulary) for _ in range(source.randint(60, 150))] for _ in range(count)]


def timed(work: Callable[[], object], clock: Clock, repeats: int = 1) -> float:
    """Mean seconds of one run."""
    started = clock()
    for _ in range(repeats):
        work()
    return (clock() - started) / repeats


def bare_step(lm: CausalLM, batch: int, clock: Clock) -> float:
    """Seconds of one forward pass of one token a row, logits included."""
    token_B1 = torch.full((batch, 1), 100, device=lm.place.device)
    return timed(lambda: lm.model(input_ids=token_B1, use_cache=False), clock, 10)


def bare_prefill(lm: CausalLM, rows: Sequence[list[int]], clock: Clock) -> float:
    """Seconds of one pass over all prompt tokens, unpadded and without logits, 4096 tokens at a time."""
    tokens = [token for row in rows for token in row]
    parts = [tokens[at : at + 4096] for at in range(0, len(tokens), 4096)]
    width = 128

    def run() -> None:
        for part in parts:
            whole = len(part) // width * width
            lm.model.base_model(input_ids=lm.tensor(part[:whole]).view(-1, width), use_cache=False)

    return timed(run, clock)


def plain_generate(lm: CausalLM, rows: Sequence[list[int]], clock: Clock) -> float:
    """Seconds of transformers' `generate` over the same rows, sampled the same way."""
    longest = max(map(len, rows))
    token_BL = lm.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask_BL = lm.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return timed(
        lambda: lm.model.generate(
            input_ids=token_BL, attention_mask=mask_BL, do_sample=True, max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS, top_p=SAMPLING.top_p, top_k=SAMPLING.top_k, pad_token_id=0,
        ),
        clock,
    )  # fmt: skip


def ours(lm: CausalLM, rows: Sequence[list[int]], clock: Clock) -> tuple[float, float]:
    """Seconds of the local engine over the rows, and of its decoding steps alone."""
    marks: list[float] = []
    started = clock()
    made = generate(lm, list(rows), SAMPLING, range(len(rows)), lambda: marks.append(clock()))
    seconds = clock() - started
    assert all(getattr(row, "completion_tokens", 0) == NEW_TOKENS for row in made), (
        "every row must make all its tokens"
    )
    decoding = (marks[-1] - marks[0]) * len(marks) / (len(marks) - 1)
    return seconds, decoding


def measure(lm: CausalLM, batch: int, clock: Clock) -> dict[str, float]:
    """Tokens per second of every contender at one batch size."""
    rows = prompts(batch, lm.config.vocab_size)
    sampled = [row for row in rows[: batch // 4] for _ in range(4)]
    new = batch * NEW_TOKENS
    ours(lm, rows[:4], clock)  # warm up: the first pass pays for imports and memory
    step, prefill = bare_step(lm, batch, clock), bare_prefill(lm, rows, clock)
    shared, _ = ours(lm, sampled, clock)
    whole, decoding = ours(lm, rows, clock)
    plain = plain_generate(lm, rows, clock)
    step = (step + bare_step(lm, batch, clock)) / 2  # before and after: what the others ran beside
    return {
        "batch": batch,
        "prompt_tokens": sum(map(len, rows)),
        "bare step": batch / step,
        "bare work": new / (prefill + NEW_TOKENS * step),
        "plain generate": new / plain,
        "ours": new / whole,
        "ours, decoding alone": new / decoding,
        "ours, four samples a prompt": new / shared,
    }


def claims(found: dict[str, float]) -> list[dict[str, object]]:
    """What is claimed at one batch size, and whether it holds."""
    batch = int(found["batch"])
    ratios = [
        ("ours / bare step", found["ours"] / found["bare step"], 0.5),
        ("ours, decoding alone / bare step", found["ours, decoding alone"] / found["bare step"], 0.5),
        (
            "ours, four samples a prompt / bare step",
            found["ours, four samples a prompt"] / found["bare step"],
            0.5,
        ),
        ("ours / bare work", found["ours"] / found["bare work"], 0.5),
        ("ours / plain generate", found["ours"] / found["plain generate"], 1.0),
    ]
    return [
        {"name": f"{name}, batch {batch}", "value": round(value, 3), "unit": "ratio", "goal": goal,
         "holds": value >= goal}
        for name, value, goal in ratios
    ]  # fmt: skip


def environment(lm: CausalLM) -> dict[str, object]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "device": str(lm.place.device),
        "dtype": str(lm.place.dtype),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    options: list[tuple[str, str | int]] = [("dtype", arguments.dtype), ("slots", max(arguments.batch))]
    options += [("cache_gb", 4)] + ([("threads", arguments.threads)] if arguments.threads else [])
    lm = CausalLM(Model("local", "smollm2-135m", "base", options=tuple(options)))
    lm.end_ids = frozenset()
    clock = (
        time.perf_counter
        if arguments.clock == "wall"
        else lambda: time.process_time() / torch.get_num_threads()
    )
    report: dict[str, object] = {"environment": {**environment(lm), "clock": arguments.clock}}
    with torch.inference_mode():
        measurements = [measure(lm, batch, clock) for batch in arguments.batch]
    report |= {
        "measurements": measurements,
        "claims": [claim for found in measurements for claim in claims(found)],
    }
    for found in measurements:
        print(
            f"\nbatch {int(found['batch'])}, {int(found['prompt_tokens'])} prompt tokens, tokens/s of new text"
        )
        for name in list(found)[2:]:
            print(f"  {name:<32}{found[name]:8.0f}  {found[name] / found['bare step']:6.2f} of the bare step")
    for claim in report["claims"]:  # type: ignore[attr-defined]
        print(
            f"{'holds' if claim['holds'] else 'FAILS':<6}{claim['name']:<60}{claim['value']} (goal {claim['goal']})"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
