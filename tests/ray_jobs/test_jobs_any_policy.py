"""A policy that has nothing to do with safety goes through the mill: other severities, one side, no refusal. Nothing
below policies/ can know the subject."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from ray_jobs import (
    combiner,
    controversial,
    dedup,
    distilled,
    gold,
    human_labels,
    prompts,
    seeds,
    translations,
    voters,
    votes,
)
from ray_jobs.engine import Model
from ray_jobs.gen_guard import gen_example
from ray_jobs.pipeline import run_of, steps
from ray_jobs.recipes import named
from ray_jobs.step import run_steps
from ray_jobs.step.plan import plan
from ray_jobs.store import Store
from synth.policy import Seed

LEAVES = ("boilerplate.navigation", "spam.stuffing")
ROLES = {
    "writer": Model("local", "writer", "base"),
    "teacher": Model("local", "teacher", "embedder"),
    "voter-1": Model("local", "@voters/char_ngrams", "head"),
    "voter-2": Model("local", "instructed", "instruct"),
}


def flow(policy, leaves):
    """The steps of a policy with one side, as the pipeline has them, up to the labels."""
    return [
        seeds.step(seeds.SeedsConfig(leaves=leaves)),
        gold.step(gold.GoldConfig(limit=40)),
        prompts.step(prompts.PromptsConfig(self_instruct=1, keyword=1, contrastive=1, rounds=1)),
        dedup.step(dedup.DedupJobConfig()),
        voters.step(voters.VotersConfig(features=("char_ngrams",), folds=2)),
        combiner.step(combiner.CombinerConfig()),
        votes.step(votes.VotesConfig(), policy.sides),
        translations.step(translations.TranslationsConfig()),
        controversial.step(controversial.ControversialConfig()),
        distilled.step(distilled.DistilledConfig()),
    ]


@pytest.fixture(scope="module")
def leaves(data_quality):
    return tuple(leaf.id for leaf in data_quality.leaves[:2])


@pytest.fixture(scope="module")
def milled(tmp_path_factory, data_quality, leaves, quiet_run, inline) -> Store:
    """The store after the whole flow on two leaves."""
    store = Store(str(tmp_path_factory.mktemp("any") / "root"))
    run = quiet_run(store, data_quality, ROLES, units=4, error_budget=0.0)
    human_labels.ensure(store)
    run_steps(flow(data_quality, leaves), run)
    return store


def rows(store: Store, name: str) -> list[dict]:
    return store.read(name).to_pylist()


def test_every_seed_and_pair_is_a_row_in_the_policys_own_words(milled, data_quality, leaves):
    made = rows(milled, "seeds")
    written = [leaf for leaf in data_quality.leaves if leaf.id in leaves]
    assert len(made) == sum(len(leaf.seeds) + 2 * len(leaf.pairs) for leaf in written)
    assert {row["intended"] for row in made} == set(data_quality.severity_names) == {"Good", "Mixed", "Poor"}
    assert {row["leaf"] for row in made} == set(leaves)
    assert rows(milled, "written_responses") == []
    pairs = Counter(row["pair_id"] for row in made if row["pair_id"])
    assert set(pairs.values()) == {2}
    assert all(row["group_id"] == row["pair_id"] for row in made if row["pair_id"])


def test_prompts_come_by_all_three_strategies_within_their_quotas(milled, data_quality, leaves):
    made = [row for row in rows(milled, "prompts") if row["source"] not in ("seed", "pair")]
    strategies = Counter((row["leaf"], row["source"], row["intended"]) for row in made)
    assert {source for _, source, _ in strategies} == {"self_instruct", "keyword", "contrastive"}
    assert set(strategies.values()) == {1}
    assert {row["language"] for row in made} == {"en"}  # the writer writes no other
    for row in made:
        if row["source"] == "keyword":
            assert row["keyword"].casefold() in row["text"].casefold()


def test_a_generation_descends_from_a_row_of_its_leaf_and_shares_its_group(milled):
    table = {row["id"]: row for row in rows(milled, "prompts")}
    made = [row for row in table.values() if row["parent_id"]]
    assert made
    for row in made:
        parent = table[row["parent_id"]]
        assert (row["group_id"], row["leaf"]) == (parent["group_id"], parent["leaf"])
        if row["source"] == "contrastive":
            assert row["pair_id"] == parent["pair_id"] != ""
            assert (row["intended"], parent["intended"]) == ("Good", "Poor")


def test_every_generation_is_a_row_or_a_rejection_with_its_reason(milled):
    rejected = rows(milled, "prompts_rejected")
    made = milled.resolve("prompts").provenance
    quotas = rows(milled, "prompt_yields")
    kept = [row for row in rows(milled, "prompts") if row["parent_id"]]
    assert sum(row["asked"] for row in quotas) == len(kept) + len(rejected)
    assert (
        sum(row["accepted"] for row in quotas) == len(kept)
        and sum(row["tokens"] for row in quotas) == made.tokens
    )
    assert all(
        row["accepted"] <= row["wanted"] and (row["why"] or row["accepted"] == row["wanted"])
        for row in quotas
    )
    assert made.counts["dropped"] == dict(sorted(Counter(row["reason"] for row in rejected).items()))
    generated = [row for row in rows(milled, "prompts") if row["parent_id"]]
    assert made.calls == len(generated) + len(rejected)
    assert made.tokens > 0


def test_twins_survive_dedup_and_removals_name_what_stayed(milled):
    kept = {row["id"] for row in rows(milled, "deduped")}
    before = {row["id"]: row for row in rows(milled, "prompts")}
    removed = {row["row"]: row["kept_id"] for row in rows(milled, "duplicates")}
    near_gold = {row["parent_id"] for row in rows(milled, "contaminated")}
    assert kept | removed.keys() | near_gold == before.keys()
    assert all(before[row]["intended"] == before[stayed]["intended"] for row, stayed in removed.items())
    for pair in {row["pair_id"] for row in before.values() if row["pair_id"]}:
        halves = {row["id"] for row in before.values() if row["pair_id"] == pair}
        assert len(halves & kept) == 2 or halves & (removed.keys() | near_gold)


def test_gold_groups_stay_on_one_side_of_the_split(milled):
    split: dict[str, set[str]] = {}
    for row in rows(milled, "gold"):
        split.setdefault(row["group_id"], set()).add(row["split"])
    assert all(len(sides) == 1 for sides in split.values())
    assert {next(iter(sides)) for sides in split.values()} == {"fit", "test"}


def test_every_voter_gives_every_row_one_ballot_of_the_policys_shape(milled, data_quality):
    samples, ballots = rows(milled, "votes"), rows(milled, "ballots")
    assert len(ballots) == 2 * len(samples)
    assert Counter(row["voter"] for row in ballots) == dict.fromkeys(("voter-1", "voter-2"), len(samples))
    for ballot in ballots:
        assert len(ballot["severity"]) == 3 and sum(ballot["severity"]) == pytest.approx(1)
        assert len(ballot["category"]) == len(data_quality.categories)
        assert ballot["refusal"] is None and ballot["side"] == "prompt"


def test_gold_ballots_of_a_head_are_out_of_fold_and_no_test_row_is_asked(milled):
    fit = {row["id"] for row in rows(milled, "gold") if row["split"] == "fit"}
    written = {row["id"] for row in rows(milled, "seeds")}
    assert {row["parent_id"] for row in rows(milled, "gold_ballots")} == fit
    assert {row["parent_id"] for row in rows(milled, "head_ballots")} == fit | written
    (head,) = rows(milled, "voters")
    assert head["name"] == "char_ngrams" and head["kind"] == "head"


def test_labels_that_people_gave_stand_and_votes_label_the_rest(milled, data_quality):
    for row in rows(milled, "votes"):
        assert row["severity"] in data_quality.severity_names and row["refusal"] is None
        assert (row["origin"] == "human") == (row["source"] in ("seed", "pair"))
        if row["origin"] == "human":
            assert (row["severity"], row["confidence"], row["abstain"]) == (row["intended"], 1.0, False)
        if row["severity"] == "Good":
            assert row["categories"] == []
    (one,) = rows(milled, "combiner")
    assert one["side"] == "prompt" and json.loads(one["audit"])["rows"] > 0


def test_without_a_translator_no_rows_come_and_the_flow_goes_on(milled):
    assert rows(milled, "translations") == [] and rows(milled, "translations_rejected") == []
    before = {row["id"]: row for row in rows(milled, "votes")}
    after = rows(milled, "controversial")
    assert {row["id"] for row in after} == before.keys()
    for row in after:
        if row["origin"] == "human":
            assert row["severity"] == before[row["id"]]["severity"]
        elif row["origin"] == "votes":
            assert row["severity"] == row["voted"]


def test_no_half_labelled_a_group_that_it_trained_on(milled):
    folds: dict[str, set[int]] = {}
    for row in rows(milled, "controversial"):
        if row["fold"] >= 0:
            folds.setdefault(row["group_id"], set()).add(row["fold"])
    assert folds and all(len(fold) == 1 for fold in folds.values())


def test_the_baseline_recipe_trains_on_the_votes_as_they_are(
    milled, data_quality, leaves, quiet_run, tmp_path
):
    baseline = named("local_votes")
    assert not baseline.controversial.enabled and not baseline.distilled.enabled
    assert replace(baseline, controversial=named("local").controversial, distilled=named("local").distilled,
                   name="local", report=named("local").report) == named("local")  # fmt: skip
    store = Store(str(shutil.copytree(milled.root, tmp_path / "root")))
    steps = flow(data_quality, leaves)[:-2]
    steps += [controversial.step(baseline.controversial), distilled.step(baseline.distilled)]
    run_steps(steps, quiet_run(store, data_quality, ROLES, units=4, error_budget=0.0))
    voted = {
        row["id"]: (row["severity"], row["origin"]) for row in rows(store, "votes") if not row["abstain"]
    }
    assert {row["id"]: (row["severity"], row["origin"]) for row in rows(store, "distilled")} == voted
    assert rows(store, "label_changes") == [] and rows(store, "controversial_ratios") == []


def test_training_rows_are_the_certain_ones_and_read_in_the_policys_answer(milled, data_quality):
    kept = rows(milled, "distilled")
    abstained = {row["id"] for row in rows(milled, "controversial") if row["abstain"]}
    assert kept and not abstained & {row["id"] for row in kept}
    for row in kept[:5]:
        example = gen_example(data_quality, row, "moderation_short")
        assert example["answer"].startswith(f"Quality: {row['severity']}\nCategories: ")
        assert "Refusal" not in example["answer"] and row["prompt"] in example["prompt"]


def test_a_rows_lineage_leads_back_to_its_seed(milled):
    made = next(row for row in rows(milled, "distilled") if row["source"] == "self_instruct")
    chain = milled.lineage("distilled", made["id"])
    assert chain[0].id == made["id"]
    assert chain[-1].row["source"] in ("seed", "pair") and chain[-1].row["parent_id"] == ""


def test_everything_done_is_found_again_and_a_policy_edit_redoes_its_leaf(
    milled, data_quality, leaves, quiet_run, inline
):
    inline.done()
    refs = {name: milled.resolve(name).ref for name in milled.tables()}
    run_steps(flow(data_quality, leaves), quiet_run(milled, data_quality, ROLES, units=4))
    assert inline.done() == [] and {name: milled.resolve(name).ref for name in milled.tables()} == refs
    leaf = data_quality.leaves[1]
    edited = replace(leaf, guidance=leaf.guidance | {"Poor": "Another guidance."})
    policy = replace(data_quality, leaves=(data_quality.leaves[0], edited, *data_quality.leaves[2:]))
    run_steps(flow(policy, leaves)[:3], quiet_run(milled, policy, ROLES, units=4))
    assert {key.partition("/")[0] for key in inline.done()} == {leaf.id}


def test_plan_tells_what_a_new_seed_will_redo(milled, data_quality, leaves, quiet_run, inline):
    leaf = data_quality.leaves[1]
    seed = Seed("new-seed", "Nobody has written such a line before this one.", "Good", "en", leaf.id)
    edited = replace(leaf, seeds=(*leaf.seeds, seed))
    policy = replace(data_quality, leaves=(data_quality.leaves[0], edited, *data_quality.leaves[2:]))
    planned = plan(flow(policy, leaves), quiet_run(milled, policy, ROLES, units=4))
    told = {entry.step: entry for entry in planned}
    assert {name for name, entry in told.items() if entry.state == "cached"} == {"gold"}
    inline.done()
    run_steps(flow(policy, leaves)[:3], quiet_run(milled, policy, ROLES, units=4))
    redone = inline.done()
    assert {key.partition("/")[0] for key in redone} == {leaf.id}
    assert len(redone) == told["prompts"].units_to_do < told["prompts"].units
    assert 0 < told["prompts"].calls < milled.resolve("prompts@v1").provenance.calls


def test_the_pipeline_leaves_out_what_a_policy_without_responses_lacks(data_quality, safety):
    recipe = named("local")
    short, long = ([step.name for step in steps(recipe, policy)] for policy in (data_quality, safety))
    assert "responses" not in short and "responses" in long
    assert not {"token_labels", "stream_guard"} & set(short)
    assert [name for name in long if name in short] == short


def test_every_failed_generation_is_in_the_quarantine_even_if_one_row_failed_often(
    tmp_path, data_quality, leaves, quiet_run, inline
):
    store = Store(str(tmp_path / "root"))
    poisoned = replace(data_quality.leaves[0], name="POISON")
    policy = replace(data_quality, leaves=(poisoned, *data_quality.leaves[1:]))
    config = prompts.PromptsConfig(self_instruct=4, keyword=2, contrastive=0, rounds=1)
    run = quiet_run(store, policy, ROLES, error_budget=1.0)
    run_steps([seeds.step(seeds.SeedsConfig(leaves=leaves[:1])), prompts.step(config)], run)
    lost = rows(store, "prompts_quarantine")
    assert store.resolve("prompts").provenance.counts["failed"] == len(lost) > 0
    assert max(Counter(row["parent_id"] for row in lost).values()) > 1
    assert {(row["reason"], row["raw"]) for row in lost} == {
        ("the engine refused this row", "what came back")
    }
    assert store.resolve("prompts").rows == store.resolve("seeds").rows  # the seeds are carried over


def test_a_policy_without_responses_asks_no_streaming_guard(data_quality, safety, tmp_path):
    bound = {
        policy.id: run_of(named("tiny"), policy, str(tmp_path)).roles for policy in (data_quality, safety)
    }
    assert {role for role in bound["safety"] if role not in bound["data_quality"]} == {
        role for role in bound["safety"] if role.startswith("stream_guard")
    }
    assert "gen_guard" in bound["data_quality"]
