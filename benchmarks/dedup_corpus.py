"""Corpora with planted near-duplicates, and the truth about small ones by exact Jaccard of all pairs.

A corpus of N short rows (8 to 60 words, Zipf-distributed): 70 % are strangers, 20 % are edits of another row
(0 to 6 words replaced, dropped or added, so that the exact Jaccard similarity runs from 0.5 to 1.0), 5 %
exact copies, and 5 % strangers behind one of 20 shared openings of 8 words. The adversarial rows share a
whole MinHash band and 40 of 60 words, at a similarity near 0.5: strangers at a threshold of 0.7, neighbours
to every bucket.
"""

import re
from functools import cache

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from synth.minhash import band_keys, choose_bands
from synth.near import DedupConfig, signatures

NGRAM, THRESHOLD, PERMUTATIONS = 3, 0.7, 128


@cache
def _vocabulary() -> np.ndarray:
    syllables = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
    return np.array(
        [syllables[n % 75] + syllables[n // 75 % 75] + syllables[n // 5625 % 75] for n in range(200_000)]
    )


def _words(rng: np.random.Generator, count: int) -> np.ndarray:
    return _vocabulary()[rng.zipf(1.25, count) % 200_000]


def short_rows(size: int, seed: int = 0, least: int = 8, most: int = 60) -> list[str]:
    """`size` rows with planted near-duplicates, in random order; families lie within parts of 20,000 rows."""
    parts = range(0, size, 20_000)
    rows = [row for at in parts for row in _part(min(20_000, size - at), seed + at, least, most)]
    order = np.random.default_rng(seed).permutation(size)
    return [rows[at] for at in order]


def _part(size: int, seed: int, least: int, most: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(least, most + 1, size)
    words = _words(rng, int(lengths.sum()))
    rows = [part.tolist() for part in np.split(words, np.cumsum(lengths)[:-1])]
    kinds = rng.choice(4, size, p=[0.7, 0.2, 0.05, 0.05])
    shared = np.random.default_rng(1)  # the same openings in every part
    openings = [_words(shared, 8).tolist() for _ in range(20)]
    originals = np.flatnonzero(kinds == 0)
    for at in np.flatnonzero(kinds == 3):
        rows[at] = openings[rng.integers(20)] + rows[at][:52]
    for at in np.flatnonzero((kinds == 1) | (kinds == 2)):
        rows[at] = list(rows[rng.choice(originals)])
        for _ in range(rng.integers(0, 7) if kinds[at] == 1 else 0):
            _edit(rng, rows[at])
    return [" ".join(row) for row in rows]


def _edit(rng: np.random.Generator, row: list[str]) -> None:
    where, change = int(rng.integers(len(row))), int(rng.integers(3))
    fresh = f"edit{rng.integers(10**6)}"
    row[where : where + (change != 1)] = [fresh] if change < 2 or len(row) < 9 else []


def adversarial_rows(size: int, seed: int = 0) -> list[str]:
    """`size` rows that fall into one bucket of the first band and are pairwise about 0.5 alike."""
    rng = np.random.default_rng(seed)
    config = DedupConfig(THRESHOLD, PERMUTATIONS, NGRAM)
    shared = " ".join(f"shared{i}" for i in range(40))
    found: list[str] = []
    wanted = None
    while len(found) < size:
        numbers = rng.integers(0, 10**9, (20_000, 20))
        rows = [shared + " " + " ".join(f"u{n}" for n in line) for line in numbers]
        signed = signatures(pa.array(rows), config)
        keys = band_keys(signed, np.full(len(rows), NGRAM), choose_bands(THRESHOLD, PERMUTATIONS))[0]
        if wanted is None:
            values, counts = np.unique(keys, return_counts=True)
            wanted = values[counts.argmax()]
        found += [row for row, key in zip(rows, keys, strict=True) if key == wanted]
    return found[:size]


def shingles_of(text: str) -> set[tuple[str, ...]]:
    """The plain definition: n-grams of lower-case words, one shingle for a shorter text."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def truth(rows: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs at or above the threshold by exact Jaccard: (left, right, similarity)."""
    vocabulary: dict[tuple[str, ...], int] = {}
    sets = [[vocabulary.setdefault(s, len(vocabulary)) for s in shingles_of(row)] for row in rows]
    sizes = np.array([len(s) for s in sets])
    columns = np.concatenate([np.array(s) for s in sets])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix(
        (np.ones(len(columns), np.int32), columns, offsets), shape=(len(rows), len(vocabulary))
    )
    parts = []
    for first in range(0, len(rows), 2000):
        shared = (matrix[first : first + 2000] @ matrix.T).tocoo()
        left, right = shared.row + first, shared.col
        upper = left < right
        left, right, common = left[upper], right[upper], shared.data[upper]
        similarity = common / (sizes[left] + sizes[right] - common)
        close = similarity >= THRESHOLD
        parts.append((left[close], right[close], similarity[close]))
    left, right, similarity = (np.concatenate([p[i] for p in parts]) for i in range(3))
    return left, right, similarity


def true_clusters(size: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Connected components of the true pairs, one label a row."""
    return connected_components(
        csr_matrix((np.ones(len(left)), (left, right)), shape=(size, size)), directed=False
    )[1]


def quality(
    found: np.ndarray, left: np.ndarray, right: np.ndarray, similarity: np.ndarray
) -> dict[str, float]:
    """How a clustering (one label a row) compares with the truth.

    recall: true pairs (by Jaccard) in one cluster; precision: pairs in one cluster that a chain of true pairs
    connects; rand: adjusted Rand index of the clusters against those chains.
    """
    from sklearn.metrics import adjusted_rand_score

    true = true_clusters(len(found), left, right)
    together = _pairs(np.unique(found, return_counts=True)[1])
    both = _pairs(np.unique(np.stack([found, true]), axis=1, return_counts=True)[1])
    hits = found[left] == found[right]
    strong = similarity >= 0.8
    return {
        "precision": both / together if together else 1.0,
        "recall": float(hits.mean()),
        "recall_at_0.8": float(hits[strong].mean()),
        "rand": float(adjusted_rand_score(true, found)),
    }


def _pairs(sizes: np.ndarray) -> int:
    sizes = sizes.astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())
