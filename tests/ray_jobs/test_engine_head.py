"""Fitted heads: what they answer, and what survives a round trip through a folder."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ray_jobs.engine import head
from ray_jobs.engine.calls import Failure, Model
from ray_jobs.engine.client import HeadClient
from synth.errors import BadInput

SEVERITY = head.Output("severity", ("Safe", "Controversial", "Unsafe"))
CATEGORY = head.Output("category", ("a", "b"), exclusive=False)


def clusters(rng, rows=90, width=12):
    """Rows around three centres, so that the label can be read from the vector."""
    label = rng.integers(0, 3, rows)
    vectors = rng.normal(size=(rows, width)) + 3 * np.eye(3, width)[label]
    return vectors.astype(np.float32), label


def fitted(rng):
    vectors, label = clusters(rng)
    targets = {"severity": label, "category": np.stack([label == 1, label > 0], axis=1).astype(int)}
    return head.fit(vectors, [SEVERITY, CATEGORY], targets, "embed"), vectors, label


def test_an_exclusive_output_sums_to_one_and_independent_labels_are_their_own():
    made, vectors, label = fitted(np.random.default_rng(0))
    answers = made.predict(vectors)
    assert answers["severity"].shape == (90, 3) and answers["category"].shape == (90, 2)
    assert answers["severity"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (answers["severity"].argmax(axis=1) == label).mean() > 0.9
    assert ((answers["category"][:, 1] > 0.5) == (label > 0)).mean() > 0.9


@pytest.mark.parametrize("labels", [2, 3])
def test_probabilities_are_those_of_the_regression_it_came_from(labels):
    rng = np.random.default_rng(1)
    vectors, label = clusters(rng)
    label = np.minimum(label, labels - 1)
    made = head.fit(vectors, [head.Output("q", tuple("abc"[:labels]))], {"q": label}, "embed", strength=0.5)
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    model = LogisticRegression(C=0.5, class_weight="balanced", max_iter=1000).fit(standard, label)
    assert made.predict(vectors)["q"] == pytest.approx(model.predict_proba(standard), abs=1e-4)


def test_unlabelled_rows_take_no_part_and_absent_labels_stay_unlikely():
    rng = np.random.default_rng(2)
    vectors, label = clusters(rng)
    known = np.where(label == 2, -1, label)
    part = head.fit(vectors, [SEVERITY], {"severity": known}, "embed").predict(vectors)["severity"]
    assert part[:, 2].max() < 0.05
    one = head.fit(vectors, [SEVERITY], {"severity": np.zeros(90, int)}, "embed").predict(vectors)["severity"]
    assert one[:, 0].min() > 0.95
    never = {"category": np.stack([np.zeros(90, int), np.ones(90, int)], axis=1)}
    constant = head.fit(vectors, [CATEGORY], never, "embed").predict(vectors)["category"]
    assert constant[:, 0].max() < 0.05 and constant[:, 1].min() > 0.95
    with pytest.raises(BadInput, match="no row has a label for 'severity'"):
        head.fit(vectors, [SEVERITY], {"severity": np.full(90, -1)}, "embed")


def test_a_round_trip_through_a_folder_changes_nothing(tmp_path):
    made, vectors, _ = fitted(np.random.default_rng(3))
    base = Model("local", "minilm", "embedder", options=(("threads", 4), ("layer", 3)))
    made = head.Head(made.features, made.outputs, made.weights, made.mean, made.scale, base, "minilm@123")
    head.save(made, tmp_path / "head")
    head.save(made, tmp_path / "head")  # an older one is replaced
    again = head.load(tmp_path / "head")
    assert (again.outputs, again.features, again.base_fingerprint) == (made.outputs, "embed", "minilm@123")
    assert again.base == Model("local", "minilm", "embedder", options=(("layer", 3),))
    for name, answers in made.predict(vectors).items():
        assert np.array_equal(again.predict(vectors)[name], answers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head"]


def test_a_folder_that_is_no_head_is_bad_input(tmp_path):
    made, _, _ = fitted(np.random.default_rng(4))
    head.save(made, tmp_path / "head")
    (tmp_path / "head" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadInput, match="is no fitted head"):
        head.load(tmp_path / "head")
    head.save(made, tmp_path / "head")
    (tmp_path / "head" / "config.json").write_text(json.dumps({"features": "embed"}))
    with pytest.raises(BadInput, match="is no fitted head"):
        head.load(tmp_path / "head")
    with pytest.raises(BadInput, match="is no fitted head"):
        head.load(tmp_path / "nowhere")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_ngram_vectors_have_unit_length_and_do_not_depend_on_their_neighbours(texts):
    vectors = head.ngram_vectors(texts)
    assert vectors.shape == (len(texts), head.NGRAM_BUCKETS) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1 if text.strip() else 0, abs=1e-5)
        assert np.array_equal(vector, head.ngram_vectors([text])[0])


def test_ngram_vectors_tell_texts_apart_and_keep_like_ones_near():
    near, also, far = head.ngram_vectors(["how to bake a cake", "how to bake cakes", "租房合同怎么写"])
    assert near @ also > 0.7
    assert near @ far < 0.05


class Recorder:
    """Stands for the actor of a head's base model: vectors by text, one of them failing."""

    def _call(self, method, columns):
        assert method == "embed"
        answers = []
        for text in columns[0]:
            answers.append(
                Failure("too long") if text == "bad" else _Vector(np.full(12, len(text), np.float32))
            )
        return answers


class _Vector:
    def __init__(self, values):
        self.values, self.prompt_tokens = values, 7


def test_a_head_scores_labels_in_the_order_asked_and_passes_failures_on():
    made, _, _ = fitted(np.random.default_rng(5))
    client = HeadClient(made, Recorder(), Model("local", "somewhere", "head"))
    found = client.score(["one", "bad", "three"], [("Unsafe", "b", "Safe")] * 3)
    assert found[1] == Failure("too long")
    direct = made.predict(np.full((1, 12), 3, np.float32))
    assert found[0].probabilities == pytest.approx(
        (direct["severity"][0, 2], direct["category"][0, 1], direct["severity"][0, 0])
    )
    assert client.usage == {"calls": 3, "cached": 0, "prompt_tokens": 14, "completion_tokens": 0}
    assert client.score([], []) == []
    with pytest.raises(BadInput, match="not 'Nonsense'"):
        client.score(["one"], [("Nonsense",)])
    with pytest.raises(TypeError, match="it scores, it cannot embed"):
        client.embed(["one"])
