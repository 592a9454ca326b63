"""The pass by meaning: the same tables out, every near pair found, labels and twins respected."""

import numpy as np
import pyarrow as pa
import pytest

from synth import semantic
from synth.dedup import DedupConfig, deduplicate
from synth.errors import BadInput
from synth.semantic import SEMANTIC, semantic_edges


def planted(rows, size=32, seed=0):
    """Vectors of strangers, and beside each of the first tenth a neighbour at a cosine of about 0.99."""
    rng = np.random.default_rng(seed)
    strangers = rng.normal(size=(rows, size))
    near = strangers[: rows // 10] + 0.12 * rng.normal(size=(rows // 10, size))
    return np.concatenate([strangers, near])


def brute(vectors, threshold):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, right = np.nonzero(np.triu(unit @ unit.T, 1) >= threshold)
    return set(zip(left.tolist(), right.tolist(), strict=True))


def test_every_near_pair_is_found_with_its_cosine():
    vectors = planted(300)
    found = semantic_edges(vectors, 0.95)
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == brute(vectors, 0.95)
    assert (
        len(found.left) >= 25 and (found.similarity >= 0.95 - 1e-6).all() and (found.band == SEMANTIC).all()
    )


def test_cells_lose_hardly_any_near_pair(monkeypatch):
    monkeypatch.setattr(semantic, "EXACT", 100)
    vectors = planted(2000)
    found = semantic_edges(vectors, 0.95)
    true = brute(vectors, 0.95)
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert pairs <= true and len(pairs) >= 0.97 * len(true)


def test_the_tables_are_those_of_the_first_pass():
    texts = [
        "a way to the station",
        "how one gets to the train",
        "a way to the station",
        "an apple tree",
        "the rail stop",
    ]
    data = pa.table(
        {"id": list("abcde"), "text": texts, "intended": ["Safe", "Safe", "Safe", "Safe", "Unsafe"]}
    )
    vectors = np.array([[1, 0], [0.99, 0.05], [1, 0], [0, 1], [1, 0.01]], dtype=float)
    result = deduplicate(data, DedupConfig(semantic=0.9), vectors=vectors)
    assert result.kept["id"].to_pylist() == ["b", "d", "e"]
    gone = {row["id"]: row for row in result.duplicates.to_pylist()}
    assert gone["a"]["kept_id"] == "b" and gone["a"]["band"] == SEMANTIC and gone["a"]["via_similarity"] > 0.9
    assert {(row["id"], row["other_id"]) for row in result.conflicts.to_pylist()} == {
        ("a", "e"),
        ("b", "e"),
        ("c", "e"),
    }
    assert result.counts["semantic_pairs"] >= 3
    assert len(deduplicate(data).duplicates) == 1


def test_an_impossible_threshold_is_refused():
    with pytest.raises(BadInput, match="semantic threshold"):
        semantic_edges(np.eye(2), 1.5)
