"""`plan` says beforehand what a run will do, without Ray, and keeps its word."""

from dataclasses import dataclass, replace

import pyarrow as pa
import pytest

from ray_jobs.step import Cut, Output, Step, run_steps
from ray_jobs.step.plan import Planned, plan
from ray_jobs.store import table_schema
from synth.policy import Policy, Seed

ROW = table_schema(
    [pa.field("text", pa.string()), pa.field("leaf", pa.string()), pa.field("language", pa.string())]
)


@dataclass(frozen=True)
class Config:
    makes: str
    mark: str = "!"


def seeds(work):
    """One row per seed of the first three leaves, a group of its own each."""
    return Output(
        {
            "seeds": [
                {
                    "id": s.id,
                    "parent_id": "",
                    "group_id": s.id,
                    "text": s.text,
                    "leaf": s.leaf,
                    "language": s.language,
                }
                for leaf in work.policy.leaves[:3]
                for s in leaf.seeds
            ]
        }
    )


def louder(work):
    (table,) = work.rows.values()
    rows = table.drop_columns(["digest"]).to_pylist()
    return Output({work.config.makes: [row | {"text": row["text"] + work.config.mark} for row in rows]})


def all_of_loud(work):
    return Output({work.config.makes: work.read("loud").drop_columns(["digest"])})


def taxonomy(policy: Policy, leaves: frozenset[str] | None) -> object:
    return [policy.slice_leaf(leaf.id) for leaf in policy.leaves if leaves is None or leaf.id in leaves]


FLOW = [
    Step("seeds", seeds, Config("seeds"), {"seeds": ROW}, reads=taxonomy),
    Step("loud", louder, Config("loud"), {"loud": ROW}, inputs=("seeds",), reads=taxonomy,
         cut=Cut(("leaf", "language"), hashed=False)),
    Step("kept", all_of_loud, Config("kept"), {"kept": ROW}, sides=("loud",), by_group=True),
    Step("louder", louder, Config("louder"), {"louder": ROW}, inputs=("kept",), cut=Cut()),
    Step("trained", all_of_loud, Config("trained"), {"trained": ROW}, sides=("loud", "louder")),
]  # fmt: skip


@pytest.fixture
def mill(store, safety, quiet_run, inline):
    inline.done()
    inline.ray_starts = 0
    return lambda policy=safety, **fields: quiet_run(store, policy, **fields)


def with_a_new_seed(policy: Policy) -> Policy:
    """The policy with one more English seed in its second leaf."""
    leaf = policy.leaves[1]
    seed = Seed("new-seed", "A seed that nobody wrote before.", policy.mildest, "en", leaf.id)
    return replace(
        policy, leaves=(policy.leaves[0], replace(leaf, seeds=(*leaf.seeds, seed)), *policy.leaves[2:])
    )


def outlook(steps: list[Step], run) -> dict[str, Planned]:
    return {entry.step: entry for entry in plan(steps, run)}


def test_before_the_first_run_everything_is_new_and_nothing_is_known_of_the_price(mill, store, inline):
    told = outlook(FLOW, mill())
    assert [entry.state for entry in told.values()] == ["new"] * 5
    assert told["louder"].rows is None and told["louder"].tokens is None
    assert inline.ray_starts == 0 and store.tables() == [] and store.list_json("ledger") == []


def test_after_a_run_everything_is_cached(mill, inline):
    run_steps(FLOW, mill())
    inline.ray_starts = 0
    told = outlook(FLOW, mill())
    assert [entry.state for entry in told.values()] == ["cached"] * 5
    assert told["loud"].why == "loud@v1" and told["loud"].units_to_do == 0
    assert inline.ray_starts == 0


def test_a_finished_unit_of_a_run_that_broke_off_is_not_planned_again(mill, store, monkeypatch):
    from ray_jobs.store import Store

    run_steps(FLOW[:1], mill())
    original, records = Store.put_json, iter(range(99))

    def twice(self, path, record):
        if next(records) == 2:
            raise KeyboardInterrupt
        original(self, path, record)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_json", twice)
        with pytest.raises(KeyboardInterrupt):
            run_steps(FLOW[:2], mill())
    told = outlook(FLOW, mill())["loud"]
    assert told.units - told.units_to_do == 2


def test_another_config_of_one_step_concerns_it_and_what_follows(mill):
    run_steps(FLOW, mill())
    changed = [
        replace(step, config=Config("louder", "?")) if step.name == "louder" else step for step in FLOW
    ]
    told = outlook(changed, mill())
    assert [told[name].state for name in told] == ["cached", "cached", "cached", "new", "new"]
    assert told["louder"].units_to_do == told["louder"].units > 1
    assert told["trained"].rows == told["loud"].rows  # an estimate, from its newest version
    assert "follows louder" in told["trained"].why


def test_a_new_seed_concerns_the_units_that_will_hold_it_and_plan_says_which_before(mill, safety, inline):
    """The units that the run then redoes are those that the plan told, in every step."""
    run_steps(FLOW, mill())
    edited = with_a_new_seed(safety)
    told = outlook(FLOW, mill(edited))
    assert [entry.state for entry in told.values()] == ["new"] * 5
    inline.done()
    inline.units = []
    run_steps(FLOW, mill(edited))
    redone = {name: sum(step == name for step, _ in inline.units) for name in ("loud", "louder")}
    languages = {seed.language for seed in safety.leaves[1].seeds}
    assert redone["loud"] == told["loud"].units_to_do == len(languages) < told["loud"].units
    assert redone["louder"] <= told["louder"].units_to_do < told["louder"].units
    assert told["loud"].rows < 0.6 * told["seeds"].rows


def test_a_text_that_a_policy_edit_changes_concerns_its_leaf_alone(mill, safety, inline):
    run_steps(FLOW, mill())
    leaf = safety.leaves[0]
    edited = replace(safety, leaves=(replace(leaf, guidance={}), *safety.leaves[1:]))
    told = outlook(FLOW, mill(edited))
    languages = {seed.language for seed in leaf.seeds}
    inline.done()
    inline.units = []
    run_steps(FLOW, mill(edited))
    assert sum(step == "loud" for step, _ in inline.units) == len(languages) == told["loud"].units_to_do
