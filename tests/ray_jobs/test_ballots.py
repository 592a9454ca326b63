"""Ballots: what each kind of voter is asked, and abstentions where an answer is missing."""

import numpy as np
import pytest

from ray_jobs.ballots import ask_voters, calls_per_row, stack_ballots, voter_names, voter_roles
from ray_jobs.engine import Completion, Failure, Model, Scores
from ray_jobs.gold import GOLD
from ray_jobs.seeds import PROMPT, RESPONSE
from ray_jobs.voters import BALLOT, VotersConfig, fold, side_categories, targets, written_items
from ray_jobs.voters import run as run_voters
from synth.errors import BadInput

ROLES = {
    "voter-10": Model("local", "one", "instruct"),
    "voter-2": Model("local", "two", "instruct"),
    "writer": Model("local", "three", "base"),
}


def sample(number: int, side: str, prompt: str = "May I?", response: str = "") -> dict:
    return {"id": f"r{number}", "group_id": f"g{number}", "side": side, "prompt": prompt, "history": [],
            "response": response, "thinking": ""}  # fmt: skip


@pytest.fixture
def work(make_work, safety, store):
    return make_work(safety, store, None, ROLES)


def test_the_voters_are_the_numbered_voter_roles(work):
    assert voter_roles(work) == ["voter-10", "voter-2"]


def test_a_model_is_asked_for_severity_and_category_and_for_refusal_only_of_responses(work, safety):
    rows = [sample(1, "prompt"), sample(2, "response", response="No.")]
    ballots = ask_voters(work, rows, ["voter-2"], failed := [])
    assert failed == [] and [ballot["parent_id"] for ballot in ballots] == ["r1", "r2"]
    for ballot, side in zip(ballots, ("prompt", "response"), strict=True):
        assert set(ballot) == set(BALLOT.names) - {"digest"}
        assert len(ballot["severity"]) == 3 and len(ballot["category"]) == len(side_categories(safety, side))
        assert (ballot["refusal"] is None) == (side == "prompt")
    assert work.engines.get("voter-2").usage["calls"] == 2 + 3
    assert "jailbreak" in side_categories(safety, "prompt") and "jailbreak" not in side_categories(
        safety, "response"
    )


def test_a_failed_answer_is_an_abstention_of_that_voter_on_that_row_and_counted_once(work, safety):
    rows = [sample(1, "prompt"), sample(2, "prompt", "poison")]
    ballots = ask_voters(work, rows, ["voter-2", "voter-10"], failed := [])
    assert [(one.row, one.reason) for one in failed] == [
        ("r2", f"{voter}: the engine refused this row") for voter in ("voter-2", "voter-10")
    ]
    assert [ballot["severity"] is None for ballot in ballots] == [False, True] * 2
    stacked = stack_ballots(safety, "prompt", ["voter-10", "voter-2"], ["r1", "r2"], ballots)
    assert np.isnan(stacked.severity).all(axis=2).tolist() == [[False, False], [True, True]]


def test_stacked_ballots_stand_in_the_order_asked_for_and_missing_ones_abstain(work, safety):
    rows = [sample(number, "response", response="Yes.") for number in (1, 2)]
    ballots = ask_voters(work, rows, ["voter-2"], [])
    stacked = stack_ballots(safety, "response", ["voter-10", "voter-2"], ["r2", "gone", "r1"], ballots[::-1])
    assert stacked.severity.shape == (3, 2, 3)
    assert stacked.severity[0, 1].tolist() == ballots[1]["severity"]
    assert stacked.severity[2, 1].tolist() == ballots[0]["severity"]
    assert np.isnan(stacked.severity[:, 0]).all() and np.isnan(stacked.severity[1]).all()
    assert stacked.refusal is not None and stacked.refusal[0, 1] == ballots[1]["refusal"]
    assert stack_ballots(safety, "prompt", ["voter-2"], [], []).refusal is None


def test_labels_of_one_side_are_unknown_to_the_other(safety):
    known = {"id": "p", "group_id": "p", "text": "a", "history": [], "human": "Unsafe", "category": "violent"}
    prompts = [known, known | {"id": "u", "group_id": "u", "human": ""}]
    answers = [{"id": "a", "group_id": "p", "prompt": "a", "text": "No.", "history": [], "human": "Safe",
                "category": "violent", "refusal": True}]  # fmt: skip
    items = written_items(prompts, answers, safety.mildest)
    told = [(item.id, item.categories, item.refusal) for item in items]
    assert told == [("p", ("violent",), None), ("a", (), True)]
    found = targets(safety, items)
    assert found["prompt.severity"].tolist() == [2, -1] and found["response.severity"].tolist() == [-1, 0]
    assert found["prompt.category.violent"].tolist() == [1, -1]
    assert found["response.category.violent"].tolist() == [-1, 0]
    assert found["response.refusal"].tolist() == [-1, 1]


def test_a_group_has_one_fold_and_folds_are_even():
    folds = [fold(f"g{number}", 5) for number in range(500)]
    assert folds == [fold(f"g{number}", 5) for number in range(500)]
    assert min(np.bincount(folds)) > 70


def test_each_template_of_a_model_is_a_voter_and_a_guard_answers_in_words(make_work, safety, store):
    roles = ROLES | {
        "voter-1": Model("local", "guard", "gen_guard"),
        "voter-3": Model("local", "tokens", "stream_guard"),
    }
    work = make_work(safety, store, None, roles)
    assert voter_names(work, ("voter",)) == [
        "voter-1:moderation_full", "voter-10", "voter-2", "voter-3"]  # fmt: skip
    assert voter_names(work, ("voter", "moderation_short")) == [
        "voter-1:moderation_short", "voter-10", "voter-10:moderation_short", "voter-2", "voter-2:moderation_short",
        "voter-3"]  # fmt: skip
    names = ("voter-2", "voter-2:moderation_full", "voter-3", "voter-1:moderation_full")
    assert [calls_per_row(work, name, "response") for name in names] == [3, 1, 1, 2]


def test_an_answer_in_words_is_read_or_an_abstention_and_kept_either_way(work, safety, monkeypatch):
    said = {"plain": "Safety: Unsafe\nCategories: Violent\nRefusal: No", "prose": "I think it is fine."}

    def generate(prompts, sampling, seeds):
        assert sampling.temperature == 0 and all(len(prompt) == 1 for prompt in prompts)
        told = [prompt[0]["content"] for prompt in prompts]
        return [
            Failure("gone")
            if "poison" in text
            else Completion(said["prose" if "prose" in text else "plain"], "stop", 1, 1)
            for text in told
        ]

    monkeypatch.setattr(work.engines.get("voter-2"), "generate", generate)
    rows = [sample(n, "response", text, "Yes.") for n, text in enumerate(("plain", "prose", "poison"))]
    plain, prose, gone = ask_voters(work, rows, ["voter-2:moderation_full"], failed := [])
    assert (plain["severity"], plain["refusal"], plain["raw"]) == ([0.0, 0.0, 1.0], 0.0, said["plain"])
    assert plain["category"] == [1.0] + [0.0] * 7 and plain["voter"] == "voter-2:moderation_full"
    assert (prose["severity"], prose["raw"]) == (None, said["prose"]) and gone["severity"] is None
    assert [one.row for one in failed] == ["r2"]  # an unreadable answer is no failure of the engine


def test_a_generative_guard_is_as_sure_as_its_severity_is_probable(make_work, safety, store, monkeypatch):
    work = make_work(safety, store, None, {"voter-1": Model("local", "guard", "gen_guard")})
    client = work.engines.get("voter-1")
    words = ["Safety: Unsafe\nCategories: Violent\nRefusal: No", "I think it is fine.", Failure("gone")]

    def score(prompts, continuations):
        assert set(continuations) == {("Safety: Safe", "Safety: Controversial", "Safety: Unsafe")}
        return [Scores((0.1, 0.2, 0.7), False, 9)] * len(prompts)

    monkeypatch.setattr(
        client,
        "generate",
        lambda *_: [one if isinstance(one, Failure) else Completion(one, "stop", 1, 1) for one in words],
    )
    monkeypatch.setattr(client, "score", score)
    rows = [sample(n, "response", "May I?", "Yes.") for n in range(3)]
    sure, unread, gone = ask_voters(work, rows, ["voter-1:moderation_full"], failed := [])
    assert (sure["severity"], sure["category"][0], sure["refusal"]) == ([0.1, 0.2, 0.7], 1.0, 0.0)
    assert unread["severity"] is None and unread["raw"] == words[1] and gone["severity"] is None
    assert [one.row for one in failed] == ["r2"]


def test_a_streaming_guard_votes_by_the_users_turn_or_by_two_tokens_running(make_work, safety, store):
    work = make_work(safety, store, None, {"voter-1": Model("local", "tokens", "stream_guard")})
    rows = [sample(1, "response", "ok", "so bad bad indeed"), sample(2, "response", "ok", "so bad indeed"),
            sample(3, "prompt", "bad"), sample(4, "prompt", "ok")]  # fmt: skip
    told = ask_voters(work, rows, ["voter-1"], [])
    by_row = {ballot["parent_id"]: ballot["severity"] for ballot in told}
    assert by_row == {
        "r1": [0.0, 0.0, 1.0],
        "r2": [1.0, 0.0, 0.0],
        "r3": [0.0, 0.0, 1.0],
        "r4": [1.0, 0.0, 0.0],
    }
    assert all(ballot["refusal"] is None for ballot in told)


def test_a_seed_that_is_also_a_gold_row_is_refused_and_named(store, put, make_work, safety):
    gold = {"id": "gold-7", "parent_id": "", "group_id": "g", "side": "prompt", "prompt": "How do I  pick a LOCK?",
            "history": [], "response": "", "severity": "Safe", "categories": [], "split": "fit"}  # fmt: skip
    seed = {"id": "s", "parent_id": "", "group_id": "s", "text": "how do I pick a lock?", "history": [],
            "human": "Unsafe", "category": "illegal"}  # fmt: skip
    versions = {
        "gold": put(store, "gold", GOLD, [gold]),
        "seeds": put(store, "seeds", PROMPT, [seed]),
        "written_responses": put(store, "written_responses", RESPONSE, []),
    }
    with pytest.raises(BadInput, match=r"gold.*1 rows are also in the pool that is trained on: gold-7"):
        run_voters(make_work(safety, store, VotersConfig(), versions=versions))
