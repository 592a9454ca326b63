"""Verified near-duplicate pairs of a column of texts: shingles, signatures, buckets and exact similarity in
turn.

Rows of equal shingle sets and equal label are collapsed first (`copies`), so that a million copies of one
text cost one signature each and no candidate pair.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from synth.errors import BadInput
from synth.lsh import Members, band_pairs, jaccard, unique_pairs
from synth.minhash import Bands, band_keys, choose_bands, permutations, set_signatures, sketches
from synth.shingles import Shingles, as_text, batches, joined, mix, shingle_batch

EXACT = -1  # in place of a band's number


@dataclass(frozen=True)
class DedupConfig:
    """threshold: Jaccard similarity from which rows are duplicates. ngram: None follows the text's length.
    semantic: cosine from which rows are duplicates where embeddings are given."""

    threshold: float = 0.7
    permutations: int = 128
    ngram: int | None = None
    seed: int = 0
    prefer: tuple[str, ...] = ("human", "gold", "seed")
    semantic: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise BadInput(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.permutations < 8:
            raise BadInput(f"permutations must be at least 8, not {self.permutations}")
        if self.ngram is not None and self.ngram < 1:
            raise BadInput(f"ngram must be at least 1, not {self.ngram}")

    @property
    def bands(self) -> Bands:
        return choose_bands(self.threshold, self.permutations)


@dataclass(frozen=True)
class Edges:
    """Verified pairs: rows left < right, exact similarity >= threshold, and the band that found them."""

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray
    band: np.ndarray

    def where(self, chosen: np.ndarray) -> "Edges":
        return Edges(self.left[chosen], self.right[chosen], self.similarity[chosen], self.band[chosen])


def signatures(texts: pa.Array, config: DedupConfig) -> np.ndarray:
    """MinHash signatures, uint32 [texts, permutations]; a text without tokens has the largest value
    throughout."""
    texts = as_text(texts)
    factors, addends = permutations(config.permutations, config.seed)
    found = np.full((len(texts), config.permutations), 0xFFFFFFFF, dtype=np.uint32)
    for first, last in batches(texts):
        part = shingle_batch(texts.slice(first, last - first), config.ngram, config.threshold)
        mine = part.take(np.flatnonzero(part.own))
        found[first + mine.row] = set_signatures(mine, factors, addends)
    return found


@dataclass(frozen=True)
class Signed:
    """Shingle sets with band keys uint64 [bands, entries] and sketches uint8 [entries, permutations]."""

    shingles: Shingles
    keys: np.ndarray
    sketch: np.ndarray

    def take(self, entries: np.ndarray) -> "Signed":
        return Signed(self.shingles.take(entries), self.keys[:, entries], self.sketch[entries])


def sign(texts: pa.Array, config: DedupConfig, threads: int = 2) -> Signed:
    """Shingle sets, band keys and sketches of all entries (texts and their variants, see shingles.py)."""
    factors, addends = permutations(config.permutations, config.seed)

    def one(span: tuple[int, int]) -> tuple[Shingles, np.ndarray, np.ndarray]:
        part = shingle_batch(texts.slice(span[0], span[1] - span[0]), config.ngram, config.threshold)
        signed = set_signatures(part, factors, addends)
        return part, band_keys(signed, part.n, config.bands), sketches(signed)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(one, batches(texts)))
    empty = np.empty((config.bands.count, 0), np.uint64), np.empty((0, config.permutations), np.uint8)
    keys = np.concatenate([empty[0], *(keys for _, keys, _ in parts)], axis=1)
    return Signed(
        joined([p for p, _, _ in parts]), keys, np.concatenate([empty[1], *(s for _, _, s in parts)])
    )


def set_keys(shingles: Shingles) -> tuple[np.ndarray, np.ndarray]:
    """(rows that have tokens, a hash of each one's own set): size, n and the 64-bit sum of the set's
    hashes."""
    mine = np.flatnonzero(shingles.own)
    running = np.zeros(len(shingles.hashes) + 1, dtype=np.uint64)
    np.cumsum(shingles.hashes, out=running[1:])
    sums = running[shingles.offsets[mine + 1]] - running[shingles.offsets[mine]]
    size = (shingles.offsets[mine + 1] - shingles.offsets[mine]).astype(np.uint64)
    return shingles.row[mine], mix(sums + mix(size * np.uint64(64) + shingles.n[mine].astype(np.uint64)))


def copies(shingles: Shingles, label: np.ndarray) -> np.ndarray:
    """For every row the first row of the same shingle set and label (itself if none), int64 [rows].

    Rows without tokens stand for themselves.
    """
    first = np.arange(len(shingles.tokens), dtype=np.int64)
    row, key = set_keys(shingles)
    if not len(row):
        return first
    key = key + mix(label[row].astype(np.int64).view(np.uint64))
    order = np.lexsort((row, key))
    heads = np.concatenate([[True], key[order][1:] != key[order][:-1]])
    first[row[order]] = row[order][heads][np.cumsum(heads) - 1]
    return first


def near_edges(signed: Signed, label: np.ndarray, config: DedupConfig, threads: int = 2) -> tuple[Edges, int]:
    """Verified edges between rows of the entries given, and how many candidate pairs there were."""
    members = Members(signed.sketch, label[signed.shingles.row], signed.shingles.own)
    bands = config.bands

    def one(band: int) -> tuple[np.ndarray, np.ndarray]:
        return band_pairs(signed.keys[band], members, band, bands, config.threshold)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, range(bands.count)))
    left = np.concatenate([pair[0] for pair in found])
    right = np.concatenate([pair[1] for pair in found])
    band = np.repeat(np.arange(bands.count), [len(pair[0]) for pair in found])
    first = unique_pairs(left, right, len(members.label))
    return verify(signed.shingles, left[first], right[first], band[first], config), len(first)


def verify(
    shingles: Shingles, left: np.ndarray, right: np.ndarray, band: np.ndarray, config: DedupConfig
) -> Edges:
    """The candidate pairs of entries that are duplicates, as row pairs (left < right)."""
    valid = comparable(shingles, left, right, config)
    left, right, band = left[valid], right[valid], band[valid]
    similarity = jaccard(shingles, left, right)
    close = similarity >= config.threshold
    ends = np.sort(np.stack([shingles.row[left[close]], shingles.row[right[close]]]), axis=0)
    return Edges(ends[0], ends[1], similarity[close], band[close].astype(np.int64))


def comparable(shingles: Shingles, left: np.ndarray, right: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Which pairs of entries stand for their rows: different rows, equal n, and n the smaller of the rows'
    own.

    Rows of different own n are compared only if their token counts lie within the threshold's factor.
    """
    row, own = shingles.row, shingles.own
    one, two = shingles.tokens[row[left]], shingles.tokens[row[right]]
    near = np.minimum(one, two) >= np.floor(config.threshold * np.maximum(one, two))
    both = own[left] & own[right]
    equal = shingles.n[left] == shingles.n[right]
    return (row[left] != row[right]) & equal & (both | ((own[left] | own[right]) & near))


def all_edges(near: Edges, first: np.ndarray) -> Edges:
    """Near edges and those of exact copies to the first of them."""
    copy = np.flatnonzero(first != np.arange(len(first)))
    return Edges(
        np.concatenate([first[copy], near.left]),
        np.concatenate([copy, near.right]),
        np.concatenate([np.ones(len(copy)), near.similarity]),
        np.concatenate([np.full(len(copy), EXACT), near.band]),
    )


def united(one: Edges, two: Edges) -> Edges:
    """Both sets of edges; of a pair in both the first set's."""
    left, right = np.concatenate([one.left, two.left]), np.concatenate([one.right, two.right])
    _, first = np.unique(np.stack([left, right]), axis=1, return_index=True)
    both = Edges(
        left, right, np.concatenate([one.similarity, two.similarity]), np.concatenate([one.band, two.band])
    )
    return both.where(np.sort(first))


def row_similarity(texts: pa.Array, left: np.ndarray, right: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Exact Jaccard similarity of pairs of rows, whatever their lengths, at the smaller n: float64
    [pairs]."""
    found = np.zeros(len(left))
    for first in range(0, len(left), 1 << 15):
        part = slice(first, first + (1 << 15))
        rows, back = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
        one, two = np.split(back, 2)
        found[part] = _similarity(texts.take(rows), one, two, config)
    return found


def _similarity(texts: pa.Array, left: np.ndarray, right: np.ndarray, config: DedupConfig) -> np.ndarray:
    own = np.zeros(len(texts), dtype=np.int64)
    mine = shingle_batch(texts, config.ngram, config.threshold)
    own[mine.row[mine.own]] = mine.n[mine.own]
    n = np.minimum(own[left], own[right])
    found = np.zeros(len(left))
    for size in np.unique(n[n > 0]):
        chosen = np.flatnonzero(n == size)
        sets = shingle_batch(texts, int(size), config.threshold)
        entry = np.full(len(texts), -1)
        entry[sets.row] = np.arange(len(sets.row))
        found[chosen] = jaccard(sets, entry[left[chosen]], entry[right[chosen]])
    return found
