"""Relabelling by parts: the same labels as at once, bounded fits, vectors in a file."""

import numpy as np
import pytest

from ray_jobs import controversial, distilled, human_labels, relabel
from ray_jobs.engine import Model
from ray_jobs.gold import GOLD
from ray_jobs.relabel import Vectors, linear_probabilities
from ray_jobs.votes import SAMPLE

TEACHER = {"teacher": Model("local", "teacher", "embedder")}
WORDS = ("weather", "river", "garden", "engine", "danger", "fire")


def sample(at: int, **fields) -> dict:
    """A prompt whose words say its label, but for one in nine."""
    bad = (at % 2 == 0) != (at % 9 == 0)
    text = " ".join([WORDS[at % 3], WORDS[4 + at % 2] if bad else WORDS[at % 4], str(at)])
    given = {"id": f"s{at}", "parent_id": "", "group_id": f"g{at // 2}", "side": "prompt", "prompt": text,
             "history": [], "response": "", "thinking": "", "language": "en", "leaf": "violent.weapons", "source": "x",
             "pair_id": "", "intended": "Safe", "severity": "Unsafe" if at % 2 == 0 else "Safe", "categories": [],
             "refusal": None, "confidence": 0.9, "abstain": at % 10 == 3,
             "origin": "human" if at % 7 == 1 else "votes"}  # fmt: skip
    return given | fields


@pytest.fixture
def relabelled(store, put, safety, quiet_run, inline, step_on):
    """relabelled() -> the rows of both steps, and of the table of changes, on 120 votes and 30 translations."""
    human_labels.ensure(store)
    gold = [sample(at, id=f"gold{at}", group_id=f"gold{at}") for at in range(60)]
    put(store, "gold", GOLD, [row | {"split": "fit"} for row in gold])
    put(store, "votes", SAMPLE, [sample(at) for at in range(120)])
    put(store, "translations", SAMPLE, [sample(at, id=f"t{at}", language="es") for at in range(30)])

    def go(seed: int) -> list[list[dict]]:
        run = quiet_run(store, safety, TEACHER, seed=seed)
        for step in (
            controversial.step(controversial.ControversialConfig()),
            distilled.step(distilled.DistilledConfig()),
        ):
            step_on(run, step)
        names = ("controversial", "distilled", "label_changes")
        return [store.read(run.versions[name].ref).drop_columns(["digest"]).to_pylist() for name in names]

    return go


def test_labels_do_not_depend_on_how_many_rows_are_held_at_a_time(relabelled, store, monkeypatch, put):
    whole = relabelled(5)
    assert {row["origin"] for row in whole[0]} >= {"votes", "human"} and whole[2]
    assert {row["fold"] for row in whole[0]} == {-1, 0, 1}
    monkeypatch.setattr(relabel, "PART", 16)
    put(
        store, "votes", SAMPLE, [sample(at) for at in range(120)], identity="the same rows as another version"
    )
    parts = relabelled(5)
    for one, two in zip(whole, parts, strict=True):
        assert len(one) == len(two)
        assert all(same(before, after) for before, after in zip(one, two, strict=True))


def same(one: dict, two: dict) -> bool:
    """Equal, but for the last digits of probabilities."""
    return one.keys() == two.keys() and all(
        value == pytest.approx(two[name], abs=1e-6) if isinstance(value, float) else value == two[name]
        for name, value in one.items()
    )


def test_every_certain_row_of_the_input_is_kept_or_dropped_with_a_count(relabelled, store):
    before, after, changes = relabelled(5)
    assert [row["id"] for row in before] == [f"s{at}" for at in range(120)] + [f"t{at}" for at in range(30)]
    dropped = store.resolve("distilled").provenance.counts["dropped"]
    assert dropped["abstained"] == sum(row["abstain"] for row in before) == 15
    doubted = {row["row"] for row in changes if row["action"] == "drop"}
    assert dropped.get("doubted by the teacher", 0) == len(doubted)
    certain = {row["id"] for row in before if not row["abstain"]}
    assert {row["id"] for row in after} == certain - doubted
    people = {row["id"]: row["severity"] for row in before if row["origin"] == "human"}
    final = {row["id"]: row["severity"] for row in after}
    assert all(final[row] == severity for row, severity in people.items() if row in certain)


def test_a_classifier_on_vectors_in_a_file_is_the_one_on_the_matrix():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 8)).astype(np.float32)
    kept = Vectors()
    for part in np.array_split(X, 7):
        kept.append(part)
    labels, train, rest = (X[:, 0] > 0).astype(int), np.arange(200), np.arange(200, 300)
    assert len(kept) == 300 and (kept[rest] == X[rest]).all()
    one = linear_probabilities(X, 2)(train, labels[train], rest)
    two = linear_probabilities(kept, 2)(train, labels[train], rest)
    np.testing.assert_allclose(one, two)
    assert ((one[:, 1] > 0.5) == (labels[rest] == 1)).mean() > 0.9


def test_a_bounded_fit_takes_rows_by_their_ids_and_not_by_their_places():
    rng = np.random.default_rng(1)
    X, ids = rng.normal(size=(400, 4)), [f"r{at}" for at in range(400)]
    labels, asked = (X[:, 1] + rng.normal(size=400) > 0).astype(int), np.arange(50)
    told = linear_probabilities(X, 2, ids, limit=100)(np.arange(400), labels, asked)
    order = rng.permutation(400)
    place = np.argsort(order)
    again = linear_probabilities(X[order], 2, [ids[at] for at in order], limit=100)(
        np.arange(400), labels[order], place[asked]
    )
    np.testing.assert_allclose(told, again, atol=1e-3)
    every = linear_probabilities(X, 2, ids)(np.arange(400), labels, asked)
    assert np.abs(told - every).max() > 1e-3
