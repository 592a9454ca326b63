"""What a new token costs a streaming guard, at 32 to 2,048 tokens of context.

    python benchmarks/streaming.py [--json FILE] [--threads N] [--lengths 32 128 512 2048] [--repeats 3]

One backbone (SmolLM2-135M) under every system, random heads (cost does not depend on their values):

- ours: keys and values kept in place, token by token and in chunks of 8, one stream and 32 streams at once;
- re-run: the whole sequence for every token, the published way of streaming;
- Gen re-submitted: the whole conversation every 32 tokens, read off one prefill (no answer is generated, which
  favours it), and the same with prefix caching: only the 32 new tokens and the closing markers.

Each context length is measured by itself (the fastest of the repeats: others may share the machine) and totals to the
longest one are integrated between them, since the re-run takes over an hour in full; `--full` runs our chunked stream
from end to end beside its integral. Contexts of 32 streams are copies of one, which costs attention the same.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import transformers
from transformers import AutoModel

from ray_jobs.engine.weights import SMOLLM2, locate
from train.kv_pool import FIRST_CAPACITY, KVPool
from train.labels import PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES, PUBLISHED_RISKS, label_maps
from train.stream import StreamBatch, StreamState, step
from train.stream_model import StreamGuard, StreamGuardConfig
from train.trunk import run

Table = dict[str, dict[int, float]]
STREAMS, CHUNK, EVERY = 32, 8, 32
CLOSING = 6  # tokens that end the turn and open the guard's answer
PEER_BATCH = 4  # sequences per forward step of the re-submitted Gen over 32 streams


clock = time.perf_counter


def load() -> StreamGuard:
    """The backbone under random heads."""
    backbone = AutoModel.from_pretrained(locate(SMOLLM2), dtype=torch.float32, attn_implementation="sdpa")
    maps = label_maps(
        PUBLISHED_RISKS,
        PUBLISHED_CATEGORIES,
        PUBLISHED_QUERY_CATEGORIES,
        ("Safe",),
        PUBLISHED_RISKS[1:],
        ("Unsafe",),
    )
    torch.manual_seed(0)
    guard = StreamGuard(StreamGuardConfig.for_policy(backbone.config, maps, 512))
    guard.model.load_state_dict(backbone.state_dict())
    return guard.eval()


def fastest(work: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> float:
    """Seconds of the fastest of `repeats` runs."""
    seconds = []
    for _ in range(repeats):
        before()
        began = clock()
        work()
        seconds.append(clock() - began)
    return min(seconds)


class Ours:
    """Streams that can be put at any context length."""

    def __init__(self, guard: StreamGuard, ids: list[int], streams: int) -> None:
        self.guard, self.ids = guard, ids
        self.batch = StreamBatch(guard, streams, len(ids))
        self.states = [self.batch.open() for _ in range(streams)]

    @torch.inference_mode()
    def prefill(self, length: int) -> None:
        """Brings every stream to `length` by filling the first and copying it."""
        first = self.states[0]
        while first.length < length:
            size = min(256, length - first.length)
            step(self.guard, [(first, self.ids[first.length : first.length + size], "user")])
        if len(self.states) > 1:
            pool = self.batch.pool
            for store in (*pool._keys, *pool._values):
                store[1:, :, :length] = store[:1, :, :length]
        self.set(length)

    def set(self, length: int) -> None:
        """Puts every stream back to `length` tokens."""
        for state in self.states:
            for kept in (state.roles, state.risks, state.categories):
                kept[:] = [""] * length
            state.length = length

    def tokens(self, chunk: int, count: int) -> None:
        """`count` new tokens on every stream, `chunk` at a time."""
        for _ in range(count // chunk):
            at = self.states[0].length
            new = [self.ids[(at + i) % len(self.ids)] for i in range(chunk)]
            step(self.guard, [(state, new, "assistant") for state in self.states])


@torch.inference_mode()
def whole(guard: StreamGuard, ids: list[int], batch: int = 1) -> torch.Tensor:
    """Response risk logits from one pass over the whole sequence."""
    tokens = torch.tensor([ids] * batch)
    positions = torch.arange(len(ids)).expand(batch, -1)
    ends = torch.full_like(positions, len(ids))
    return guard.heads(run(guard.model, positions, ends, input_ids=tokens))[0]


def measure(guard: StreamGuard, ids: list[int], lengths: list[int], repeats: int) -> Table:
    """Milliseconds per new token (and stream) by system and context length."""
    table: Table = {}
    for streams in (1, STREAMS):
        ours = Ours(guard, ids, streams)
        of = f"{streams} stream{'s' * (streams > 1)}"
        for length in lengths:
            ours.prefill(length)
            back = partial(ours.set, length)
            for chunk, count in ((1, 8 if streams == 1 else 2), (CHUNK, 32 if streams == 1 else CHUNK)):
                seconds = fastest(partial(ours.tokens, chunk, count), repeats, back)
                put(table, f"ours, {of}, chunks of {chunk}", length, seconds / (count * streams))
            again = partial(ours.tokens, EVERY + CLOSING, EVERY + CLOSING)
            seconds = fastest(again, 1 if streams > 1 else repeats, back)
            put(table, f"Gen with prefix caching, {of}", length, seconds / (EVERY * streams))
            back()
            print(f"  {of} at {length}", file=sys.stderr, flush=True)
        del ours, again, back  # 3 GB of keys and values at 32 streams of 2,048
    few = max(1, repeats - 1)
    for length in lengths:
        put(table, "re-run, 1 stream", length, fastest(partial(whole, guard, ids[:length]), few))
        closed = ids[:length] + ids[:CLOSING]
        put(table, "Gen re-submitted, 1 stream", length, fastest(partial(whole, guard, closed), few) / EVERY)
        together = fastest(partial(whole, guard, closed, PEER_BATCH), 1)
        put(table, f"Gen re-submitted, {STREAMS} streams", length, together / PEER_BATCH / EVERY)
        print(f"  peers at {length}", file=sys.stderr, flush=True)
    return table


def put(table: Table, name: str, length: int, seconds: float) -> None:
    """Enters a cost per token in milliseconds."""
    table.setdefault(name, {})[length] = 1e3 * seconds


def attention_share(guard: StreamGuard, length: int, repeats: int) -> float:
    """Milliseconds per token that reading `length` cached positions costs by itself, in all layers."""
    config = guard.config.backbone_config
    heads, width = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // heads
    query = torch.randn(1, heads, group, width)
    stores = torch.randn(2 * config.num_hidden_layers, 1, heads, length, width)

    def read() -> None:
        for layer in range(config.num_hidden_layers):
            torch.nn.functional.scaled_dot_product_attention(query, stores[2 * layer], stores[2 * layer + 1])

    return 1e3 * fastest(read, repeats + 2)


def total(row: dict[int, float]) -> float:
    """Seconds from 0 to the longest length, by the trapezoid rule between the measured ones."""
    lengths = sorted(row)
    costs = [row[lengths[0]], *(row[length] for length in lengths)]
    return float(np.trapezoid(costs, [0, *lengths])) / 1e3


@torch.inference_mode()
def verdicts_agree(guard: StreamGuard, ids: list[int]) -> bool:
    """Whether token by token, chunks of 8, a batch, and one whole pass name the same risk for every token."""
    head = 8
    expected = whole(guard, ids).argmax(-1)[0, head:].tolist()
    names = guard.config.names("response_risk_level_map")
    said = []
    for chunk in (1, CHUNK):
        state = StreamState(KVPool(1), 0)
        step(guard, [(state, ids[:head], "user")])
        for at in range(head, len(ids), chunk):
            step(guard, [(state, ids[at : at + chunk], "assistant")])
        said.append(state.risks[head:])
    batch = StreamBatch(guard, 3)
    states = [batch.open() for _ in range(3)]
    step(guard, [(state, ids[:head], "user") for state in states])
    for at in range(head, len(ids), 5):
        entries = [
            (s, ids[at : at + 5 - i], "assistant") for i, s in enumerate(states) if ids[at : at + 5 - i]
        ]
        step(guard, entries)
        for state in states[1:]:
            missing = ids[state.length : at + 5]
            if missing:
                step(guard, [(state, missing, "assistant")])
    said += [state.risks[head:] for state in states]
    return all(one == [names[i] for i in expected] for one in said)


def claims(table: Table, share: dict[int, float], agree: bool) -> list[dict]:
    """What the method promises, with the figures beside it."""
    one, chunks = table["ours, 1 stream, chunks of 1"], table[f"ours, 1 stream, chunks of {CHUNK}"]
    short, long = min(one), max(one)
    growth = one[long] / one[short]
    bare = (one[long] - share[long]) / (one[short] - share[short])
    rerun, gen = total(table["re-run, 1 stream"]), total(table["Gen re-submitted, 1 stream"])
    many = f"{STREAMS} streams"
    rows = [
        (
            "cost per token, longest over shortest context, less attention's own reading",
            bare,
            "x",
            1.5,
            False,
        ),
        ("the same with attention's reading", growth, "x", None, False),
        ("total against the re-run, token by token", rerun / total(one), "x", 25.0, True),
        (f"total against the re-run, chunks of {CHUNK}", rerun / total(chunks), "x", 100.0, True),
        (f"total against Gen re-submitted, 1 stream, chunks of {CHUNK}", gen / total(chunks), "x", 5.0, True),
        (
            f"total against Gen re-submitted, {many}, chunks of {CHUNK}",
            total(table[f"Gen re-submitted, {many}"]) / total(table[f"ours, {many}, chunks of {CHUNK}"]),
            "x",
            15.0,
            True,
        ),
        (
            f"total against Gen with prefix caching, 1 stream, chunks of {CHUNK}",
            total(table["Gen with prefix caching, 1 stream"]) / total(chunks),
            "x",
            None,
            True,
        ),
        (
            f"total against Gen with prefix caching, {many}, chunks of {CHUNK}",
            total(table[f"Gen with prefix caching, {many}"])
            / total(table[f"ours, {many}, chunks of {CHUNK}"]),
            "x",
            None,
            True,
        ),
    ]
    made = [
        {
            "name": name,
            "value": round(value, 2),
            "unit": unit,
            "goal": goal,
            "holds": None if goal is None else bool(value >= goal if larger else value <= goal),
        }
        for name, value, unit, goal, larger in rows
    ]
    return [
        *made,
        {
            "name": "verdicts identical in all of ours",
            "value": agree,
            "unit": "",
            "goal": True,
            "holds": agree,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write {environment, measurements, claims} here")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also stream the whole length in chunks")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds on one thread, for a busy machine"
    )
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        options.threads, clock = 1, time.process_time
    torch.set_num_threads(options.threads)
    guard, longest = load(), max(options.lengths)
    ids = np.random.default_rng(0).integers(5, 49_000, longest + 64).tolist()
    agree = verdicts_agree(guard, ids[: FIRST_CAPACITY + 24])
    table = measure(guard, ids, options.lengths, options.repeats)
    share = {length: attention_share(guard, length, options.repeats) for length in options.lengths}
    measurements = [
        {"system": name, "context": n, "ms_per_token": round(ms, 3)}
        for name, row in table.items()
        for n, ms in row.items()
    ]
    measurements += [
        {"system": "attention's own reading", "context": n, "ms_per_token": ms} for n, ms in share.items()
    ]
    measurements += [{"system": name, "total_seconds": round(total(row), 2)} for name, row in table.items()]
    if options.full:
        ours = Ours(guard, ids, 1)
        seconds = fastest(lambda: ours.tokens(CHUNK, longest), 1, lambda: ours.prefill(8))
        measurements.append(
            {"system": f"ours, 1 stream, chunks of {CHUNK}, in full", "total_seconds": seconds}
        )
    environment = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "clock": "CPU time" if options.cpu_time else "wall time",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": SMOLLM2,
    }
    show(table, share, made := claims(table, share, agree))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(
                {"environment": environment, "measurements": measurements, "claims": made}, out, indent=2
            )


def show(table: Table, share: dict[int, float], made: list[dict]) -> None:
    lengths = sorted(share)
    print(
        f"{'ms per new token at a context of':<42}" + "".join(f"{n:>9}" for n in lengths) + f"{'total s':>10}"
    )
    for name, row in table.items():
        print(f"{name:<42}" + "".join(f"{row[n]:>9.2f}" for n in lengths) + f"{total(row):>10.1f}")
    print(f"{'  of which reading the cache, 1 stream':<42}" + "".join(f"{share[n]:>9.2f}" for n in lengths))
    for claim in made:
        goal = (
            ""
            if claim["goal"] is None
            else f"  goal {claim['goal']}  {'holds' if claim['holds'] else 'MISSED'}"
        )
        print(f"{claim['name']}: {claim['value']} {claim['unit']}{goal}")


if __name__ == "__main__":
    main()
