"""Votes by leaf: what is counted against what, in which order."""

import math

import pytest

from ray_jobs.ballots import ballot_row
from ray_jobs.cli import main
from ray_jobs.vote_leaves import by_leaf
from ray_jobs.voters import BALLOT
from ray_jobs.votes import SAMPLE

LABELS = ("Safe", "Controversial", "Unsafe")


def row(number: int, leaf: str, intended: str, **given) -> dict:
    common = {
        "id": f"s{number}",
        "parent_id": f"p{number}",
        "group_id": f"g{number}",
        "side": "prompt",
        "prompt": "?",
    }
    label = {"leaf": leaf, "intended": intended, "severity": intended, "origin": "votes", "abstain": False}
    return common | label | given


@pytest.fixture
def voted(store, put):
    rows = [
        row(0, "a", "Unsafe"),
        row(1, "a", "Safe", abstain=True),
        row(
            2, "b", "Unsafe", origin="human", severity="Safe"
        ),  # a person's word counts, not what it was written for
        row(3, "b", "", origin="votes"),  # nothing to compare with
        row(4, "b", "Safe"),  # nobody was asked
        row(5, "b", "Safe"),  # asked, and silent: nothing voted
    ]
    version = put(store, "votes", SAMPLE, rows, "made")
    says = {"Safe": [0.8, 0.1, 0.1], "Unsafe": [0.1, 0.1, 0.8]}
    ballots = [ballot_row(rows[at], voter, "prompt", says[said]) for at, voter, said in (
        (0, "one", "Unsafe"), (0, "two", "Unsafe"), (1, "one", "Unsafe"), (1, "two", "Unsafe"), (2, "one", "Safe"),
        (3, "one", "Safe"))]  # fmt: skip
    put(store, "ballots", BALLOT, [*ballots, ballot_row(rows[5], "one", "prompt")], "made")
    return version


def test_votes_are_counted_by_leaf_against_people_first_and_the_worst_leaf_leads(store, voted):
    a, b = by_leaf(store, LABELS, voted)
    assert (a.leaf, a.rows, a.by_people, a.agree, a.abstained, a.alpha) == ("a", 2, 0, 0.5, 0.5, 1.0)
    assert a.confusion == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert (b.leaf, b.rows, b.by_people, b.agree) == ("b", 1, 1, 1.0) and math.isnan(b.alpha)
    assert b.confusion == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_without_ballots_there_is_nothing_to_tell(store, put):
    assert by_leaf(store, LABELS, put(store, "votes", SAMPLE, [row(0, "a", "Safe")], "other")) == []


def test_an_audit_without_gold_says_uncalibrated(store, put, capsys):
    import json

    from ray_jobs.combiner import COMBINER

    fitted = json.dumps({"severities": LABELS})
    put(store, "combiner", COMBINER, [{"id": "c", "parent_id": "", "group_id": "", "side": "prompt", "audit": "{}",
                                       "combiner": fitted}])  # fmt: skip
    assert main(["vote", "--audit", "--root", store.root]) == 0
    assert "no gold rows; the labels are the majority of the voters, uncalibrated" in capsys.readouterr().out
