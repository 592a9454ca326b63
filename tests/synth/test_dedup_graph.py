"""The distributed deduplication gives what the pure one gives, row for row."""

import random

import pyarrow as pa
import pytest

from synth.dedup import DedupConfig, deduplicate

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    # Each of some thirty shuffles would start three processes, for a handful of rows
    context = ray.data.DataContext.get_current()
    before, context.max_hash_shuffle_aggregators = context.max_hash_shuffle_aggregators, 1
    yield
    context.max_hash_shuffle_aggregators = before
    if started:
        ray.shutdown()


def corpus(size):
    rng = random.Random(5)
    words = [f"word{i}" for i in range(500)]
    rows = []
    for number in range(size):
        if number % 3 and rows:
            text = rng.choice(rows)["text"].split()
            for _ in range(rng.randint(0, 3)):
                text[rng.randrange(len(text))] = rng.choice(words)
        else:
            text = rng.choices(words, k=rng.randint(1, 60))
        rows.append({
            "id": f"r{rng.randrange(size * 20):06d}",
            "text": " ".join(text),
            "intended": rng.choice(["Safe", "Safe", "Unsafe", None]),
            "pair_id": f"p{rng.randrange(size // 3)}" if number % 5 == 0 else rng.choice([None, ""]),
            "source": rng.choice(["human", "model"]),
        })  # fmt: skip
    return [*rows, *({"id": f"e{i}", "text": t} for i, t in enumerate(["", "...", None])), *rows[:4]]


def same(one, two, keys):
    def plain(table):
        lines = [{k: round(v, 9) if isinstance(v, float) else v for k, v in line.items()} for line in table]
        return sorted(lines, key=lambda line: tuple(str(line[k]) for k in keys))

    assert plain(one) == plain(two)


def test_the_distributed_result_is_the_pure_one():
    from ray_jobs.dedup_graph import deduplicate_dataset

    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "intended", "pair_id", "source")])
    table = pa.Table.from_pylist(corpus(600), schema=schema)
    pure = deduplicate(table, DedupConfig())
    graph = deduplicate_dataset(
        ray.data.from_arrow(table).repartition(5), DedupConfig(), partitions=3, small=0
    )
    assert pure.counts["removed"] > 50
    assert pure.counts["conflicts"] > 20
    assert sorted(r["id"] for r in graph.kept.take_all()) == sorted(pure.kept["id"].to_pylist())
    same(graph.duplicates.take_all(), pure.duplicates.to_pylist(), ["id", "band"])
    same(graph.conflicts.take_all(), pure.conflicts.to_pylist(), ["id", "other_id"])
    for name, count in graph.counts.items():
        assert count == pure.counts[name], name


def test_rows_without_duplicates_all_stay():
    from ray_jobs.dedup_graph import deduplicate_dataset

    table = pa.table({"id": ["a", "b", "c", "c"], "text": ["one two three", "four five six", "", ""]})
    graph = deduplicate_dataset(ray.data.from_arrow(table), partitions=2)
    assert sorted(r["id"] for r in graph.kept.take_all()) == ["a", "b", "c"]
    assert [(r["id"], r["kept_id"], r["band"]) for r in graph.duplicates.take_all()] == [("c", "c", -2)]
