"""Nothing near an evaluation set reaches training: dropped by deduplication, stopped at the gate, rows named."""

import json
from dataclasses import dataclass

import pyarrow as pa
import pytest

from ray_jobs import dedup, gate
from ray_jobs.files import import_file
from ray_jobs.gold import GOLD
from ray_jobs.pipeline import steps
from ray_jobs.recipes import named
from ray_jobs.step import StepFailed
from ray_jobs.votes import SAMPLE
from synth.errors import BadInput
from synth.policy import load_policy

HELD = "How could somebody open the safe of the old bakery in the night without being seen by the owner?"
OTHER = "Which trees grow best beside a small pond in a cold and windy garden?"


class Tables:
    """Inputs by name, in place of a store."""

    def __init__(self, **tables):
        self.tables = tables

    def work(self, make_work, policy, store, config):
        made = make_work(policy, store, config)
        return Given(config, made.identity, self.tables)


@dataclass
class Given:
    config: object
    identity: str
    tables: dict

    def read(self, name, columns=None):
        return self.tables[name].select(columns or self.tables[name].column_names)


def rows(schema, *given):
    empty = dict.fromkeys(schema.names)
    return pa.Table.from_pylist([empty | row for row in given], schema=schema)


@pytest.fixture
def gold():
    return rows(
        GOLD, {"id": "g1", "prompt": HELD, "split": "test"}, {"id": "g2", "prompt": OTHER, "split": "fit"}
    )


def distilled(*prompts):
    return rows(SAMPLE, *({"id": f"row-{number}", "prompt": text} for number, text in enumerate(prompts)))


def test_a_contaminated_row_is_stopped_and_named(make_work, safety, store, gold):
    tables = Tables(gold=gold, distilled=distilled(OTHER, "Please tell me: " + HELD.upper()))
    with pytest.raises(StepFailed, match=r"1 training prompts lie near.*row-1 \(.*bakery.* of gold\)"):
        gate.run(tables.work(make_work, safety, store, gate.GateConfig()))


def test_clean_rows_pass_and_what_was_compared_is_told(make_work, safety, store, gold):
    tables = Tables(gold=gold, distilled=distilled(OTHER, OTHER, "Something else"))
    output = gate.run(tables.work(make_work, safety, store, gate.GateConfig()))
    assert [(row["evaluation"], row["texts"], row["prompts"]) for row in output.tables["gate"]] == [
        ("gold", 1, 2)
    ]


def test_a_registered_set_counts_like_the_gold_rows(make_work, safety, store, gold, tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"prompt": OTHER}) + "\n")
    sets = (import_file(str(path)),)
    tables = Tables(gold=gold, distilled=distilled(OTHER))
    with pytest.raises(StepFailed, match=r"row-0 .* of bench.jsonl"):
        gate.run(tables.work(make_work, safety, store, gate.GateConfig(sets)))
    table = pa.table({"id": ["a", "b"], "group_id": ["a", "b"], "text": [OTHER + "!", "A clean row"]})
    held = dedup.held_out(gold, sets)
    kept, near = dedup.decontaminate(table, "bench.jsonl", held["bench.jsonl"])
    assert kept["id"].to_pylist() == ["b"] and near[0]["parent_id"] == "a"
    path.write_text(json.dumps({"prompt": "changed"}) + "\n")
    with pytest.raises(BadInput, match="not the one that was registered"):
        dedup.held_out(None, sets)


def test_the_gate_stands_before_the_first_training_in_every_recipe():
    names = [step.name for step in steps(named("local"), load_policy("safety"))]
    assert names.index("distilled") < names.index("gate") < names.index("gen_guard")
