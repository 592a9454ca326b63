"""The audit says what voters and combination are worth."""

import json

import numpy as np
import pandas as pd
import pytest
from crowdkit.metrics.data import alpha_krippendorff

from label.audit import audit, confusion, krippendorff_alpha, summary
from label.vote import Ballots, Gold, fit_combiner

SEVERITIES = ("Safe", "Controversial", "Unsafe")
VIOLATING = (False, True, True)


def sharp(said):
    return 0.02 + 0.94 * np.eye(3)[said]


@pytest.fixture(scope="module")
def material():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    noisy = [np.where(rng.random(200) < skill, labels, rng.integers(0, 3, 200)) for skill in (0.8, 0.7, 0.6)]
    voters = [sharp(said) for said in noisy] + [
        sharp(noisy[0]),
        sharp(np.zeros(200, int)),
        np.full((200, 3), np.nan),
    ]
    names = ("good", "fair", "poor", "copy", "yes-man", "mute")
    ballots = Ballots(names, SEVERITIES, np.stack(voters, axis=1))
    gold = Gold(tuple(map(str, range(200))), tuple(str(at // 2) for at in range(200)), labels)
    slices = {"language": ["en" if at % 2 else "zh" for at in range(200)]}
    return ballots, gold, audit(ballots, gold, VIOLATING, slices, costs={"good": 2.0})


def test_the_report_is_json_and_its_intervals_hold_their_estimates(material):
    _, _, report = material
    assert json.loads(json.dumps(report)) == report
    for name in ("combination", "best_voter", "majority"):
        low, high = report[name]["interval"]
        assert low <= report[name]["f1"] <= high
    assert report["best_voter_name"] == "good"
    assert report["combination"]["f1"] > report["majority"]["f1"]
    assert report["surest"]["0.8"] >= report["surest"]["1.0"]
    assert report["surest_violating"]["0.8"] >= report["surest"]["1.0"]


def test_odd_voters_are_named(material):
    text = " ".join(material[2]["warnings"])
    assert "Voter mute never answers." in text
    assert "Voter yes-man always says Safe." in text
    assert "Voters good and copy always agree." in text
    assert "F1 on gold is" in text or material[2]["combination"]["f1"] >= 0.9


def test_confusions_count_every_row_and_slices_add_up(material):
    ballots, gold, report = material
    for name in ballots.voters:
        whole = np.array(report["voters"][name]["confusion"])
        assert whole.sum() == len(gold.labels)
        np.testing.assert_array_equal(
            sum(np.array(t) for t in report["voters"][name]["by"]["language"].values()), whole
        )
    assert report["voters"]["mute"]["abstained"] == 1.0
    assert report["voters"]["good"]["cost"] == 2.0


def test_leaving_a_silent_voter_out_changes_little(material):
    assert abs(material[2]["voters"]["mute"]["adds_f1"]) < 0.02


def test_alpha_matches_the_library_with_missing_votes():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 80)
    votes = np.where(rng.random((80, 4)) < 0.7, truth[:, None], rng.integers(0, 3, (80, 4)))
    votes[rng.random((80, 4)) < 0.3] = -1
    cells = [(row, voter, votes[row, voter]) for row, voter in zip(*np.nonzero(votes >= 0), strict=True)]
    assert krippendorff_alpha(votes, 3) == pytest.approx(
        alpha_krippendorff(pd.DataFrame(cells, columns=["task", "worker", "label"]))
    )


def test_alpha_of_perfect_constant_and_lonely_votes():
    assert krippendorff_alpha(np.array([[0, 0], [1, 1]]), 2) == 1.0
    assert krippendorff_alpha(np.array([[0, 0], [0, 0]]), 2) == 1.0
    assert np.isnan(krippendorff_alpha(np.array([[0, -1], [-1, 1]]), 2))


def test_confusion_counts_abstentions_in_the_last_column():
    assert confusion(np.array([0, 1, 1]), np.array([0, 0, -1]), 2) == [[1, 0, 0], [1, 0, 1]]


def test_the_summary_says_uncalibrated_without_gold(material):
    ballots, gold, _ = material
    assert "uncalibrated" in summary(fit_combiner(ballots, None, VIOLATING))
    assert "200 gold rows" in summary(fit_combiner(ballots, gold, VIOLATING))
