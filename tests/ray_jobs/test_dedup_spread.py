"""Deduplication spread over Ray writes the tables that one process writes."""

import random
from dataclasses import replace

import pyarrow as pa
import pytest

from ray_jobs import dedup, own_ray
from ray_jobs.dedup import DedupJobConfig
from ray_jobs.gold import GOLD
from ray_jobs.seeds import PROMPT

pytestmark = pytest.mark.slow
HELD = "which of the trains to the coast leave on a sunday in the winter months"


@pytest.fixture(scope="module")
def on_ray():
    import ray

    own_ray.start("guardmill", num_cpus=4, include_dashboard=False)
    # Each of some thirty shuffles would start three processes, for a handful of rows
    context = ray.data.DataContext.get_current()
    before, context.max_hash_shuffle_aggregators = context.max_hash_shuffle_aggregators, 1
    yield
    context.max_hash_shuffle_aggregators = before
    ray.shutdown()


def prompts(size):
    """Near-duplicates of each other, some with another label, some near a held-out text."""
    rng, words = random.Random(3), [f"word{i}" for i in range(300)]
    rows = []
    for number in range(size):
        text = rng.choice(rows)["text"].split() if number % 3 and rows else rng.choices(words, k=20)
        for _ in range(rng.randint(0, 2)):
            text[rng.randrange(len(text))] = rng.choice(words)
        if number % 40 == 7:
            text = [*HELD.split(), rng.choice(words)]
        rows.append(dict.fromkeys(name for name in PROMPT.names if name != "digest") | {
            "id": f"r{number:04d}", "parent_id": "", "group_id": f"g{number}", "text": " ".join(text),
            "history": [{"role": "user", "content": f"turn {number}"}], "language": "en", "leaf": "a", "category": "b",
            "intended": rng.choice(["Safe", "Safe", "Unsafe"]), "source": rng.choice(["seed", "keyword"]),
            "pair_id": f"p{number // 2}" if number % 10 < 2 else "", "keyword": "", "human": "",
        })  # fmt: skip
    names = set(PROMPT.names)
    return [{name: value for name, value in row.items() if name in names} for row in rows]


def plain(parts):
    """The rows of a table, in an order of their own."""
    rows = []
    for part in [parts] if isinstance(parts, list) else parts:
        rows += part.to_pylist() if isinstance(part, pa.Table) else part
    rounded = ({k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return sorted(rounded, key=lambda row: row["id"])


def test_the_tables_are_those_of_one_process(put, make_work, safety, store, on_ray):
    gold = {"id": "g", "parent_id": "", "group_id": "g", "side": "prompt", "prompt": HELD, "severity": "Safe",
            "split": "test"}  # fmt: skip
    versions = {
        "prompts": put(store, "prompts", PROMPT, prompts(300)),
        "gold": put(store, "gold", GOLD, [gold]),
    }
    one, spread = (
        dedup.run(make_work(safety, store, replace(DedupJobConfig(), in_one=most), versions=versions))
        for most in (1_000_000, 0)
    )
    for name in ("deduped", "duplicates", "conflicts", "contaminated"):
        told, expected = plain(spread.tables[name]), plain(one.tables[name])
        assert expected, name
        assert told == expected, name
    assert spread.dropped == one.dropped
