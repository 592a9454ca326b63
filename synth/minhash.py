"""MinHash signatures of shingle sets and the bands they are cut into.

Algorithm (Broder 1997). Permutation k maps the upper 32 bits x of a shingle's hash to a_k * x + b_k modulo
2**32 with a_k odd, and a set's signature holds the minimum over its shingles: two sets agree in a place with
probability equal to their Jaccard similarity. x is already a well-mixed hash, so an affine permutation of 32
bits is enough (tests hold its error to the binomial's). Sets of similar size are laid out as a matrix and all
permutations of a column are taken at once, in blocks that stay in the CPU's cache: 10 times faster than one
set after another.

Bands. A signature is cut into `bands` of `rows` places; two sets meet if they agree in a whole band:
probability 1 - (1 - s**rows)**bands, the S-curve. Candidates are verified exactly afterwards, so we deviate
from the usual choice (which balances false positives against false negatives and misses 13 % at 0.1 above the
threshold): the longest rows whose recall at threshold + 0.05 is at least 0.995.
"""

from dataclasses import dataclass

import numpy as np

from synth.shingles import Shingles, blocks_of, mix, spans

RECALL = 0.995


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and addends, uint32 [count] each; stable across machines and numpy versions."""
    values = mix(np.arange(2 * count, dtype=np.uint64) + mix(np.array([seed], dtype=np.uint64)))
    factors, addends = (values >> np.uint64(32)).astype(np.uint32).reshape(2, count)
    return factors | np.uint32(1), addends


@dataclass(frozen=True)
class Bands:
    """How a signature is cut. `recall(s)` is the S-curve: the share of pairs of similarity s that meet."""

    count: int
    rows: int

    def recall(self, similarity: float) -> float:
        return 1.0 - (1.0 - similarity**self.rows) ** self.count


def choose_bands(threshold: float, permutations: int) -> Bands:
    """The longest rows that keep recall >= 0.995 at 0.05 above the threshold (25 x 5 at 0.7 with 128)."""
    target = min(threshold + 0.05, 1.0)
    for rows in range(permutations, 1, -1):
        bands = Bands(permutations // rows, rows)
        if bands.recall(target) >= RECALL:
            return bands
    return Bands(permutations, 1)


def set_signatures(shingles: Shingles, factors: np.ndarray, addends: np.ndarray) -> np.ndarray:
    """Signatures, uint32 [entries, permutations]. Entries are never empty."""
    sizes = np.diff(shingles.offsets)
    signatures = np.empty((len(sizes), len(factors)), dtype=np.uint32)
    for block in blocks_of(sizes):
        cells = _padded(shingles, block, sizes[block])
        by_column = cells.shape[1] <= 8 * len(block)
        signatures[block] = (_columns if by_column else _sets)(cells, factors, addends)
    return signatures


def _padded(shingles: Shingles, block: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Upper halves of the hashes as a matrix; short rows repeat their first shingle, which no minimum
    notices."""
    starts = shingles.offsets[block]
    first = (shingles.hashes[starts] >> np.uint64(32)).astype(np.uint32)
    cells = np.repeat(first[:, None], int(sizes.max()), axis=1)
    cells[np.arange(cells.shape[1]) < sizes[:, None]] = shingles.hashes[spans(starts, sizes)] >> np.uint64(32)
    return cells


def _columns(cells: np.ndarray, factors: np.ndarray, addends: np.ndarray) -> np.ndarray:
    lowest = cells[:, 0, None] * factors + addends
    buffer = np.empty_like(lowest)
    for column in range(1, cells.shape[1]):
        np.multiply(cells[:, column, None], factors, out=buffer)
        np.add(buffer, addends, out=buffer)
        np.minimum(lowest, buffer, out=lowest)
    return lowest


def _sets(cells: np.ndarray, factors: np.ndarray, addends: np.ndarray) -> np.ndarray:
    buffer = np.empty_like(cells)
    lowest = np.empty((len(cells), len(factors)), dtype=np.uint32)
    for place, (factor, addend) in enumerate(zip(factors, addends, strict=True)):
        np.multiply(cells, factor, out=buffer)
        np.add(buffer, addend, out=buffer)
        lowest[:, place] = buffer.min(axis=1)
    return lowest


def band_keys(signatures: np.ndarray, n: np.ndarray, bands: Bands) -> np.ndarray:
    """One key per entry and band, uint64 [bands, entries]; sets of different n never share one."""
    keys = np.empty((bands.count, len(signatures)), dtype=np.uint64)
    for band in range(bands.count):
        total = n.astype(np.uint64) + np.uint64(band << 8)
        for place in range(band * bands.rows, (band + 1) * bands.rows):
            total = mix(total) + signatures[:, place]
        keys[band] = mix(total)
    return keys


def sketches(signatures: np.ndarray) -> np.ndarray:
    """Eight bits of every place, uint8 [entries, permutations]: enough to estimate a similarity, at a
    quarter."""
    return ((signatures * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def estimates(sketch: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of pairs of entries, float32 [pairs], corrected for chance agreement."""
    found = np.empty(len(left), dtype=np.float32)
    for first in range(0, len(left), 1 << 15):
        part = slice(first, first + (1 << 15))
        found[part] = (sketch[left[part]] == sketch[right[part]]).mean(axis=1, dtype=np.float32)
    return (found - np.float32(1 / 256)) / np.float32(1 - 1 / 256)
