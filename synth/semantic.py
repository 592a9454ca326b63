"""Near-duplicates by meaning: pairs of texts whose embeddings lie close together, for the optional second pass.

Algorithm (after SemDeDup, Abbas et al. 2023). Vectors of length one are clustered by k-means into about sqrt(rows)
cells; each row is compared, by exact cosine in blocks, with the rows of its own cell and of the `PROBES` nearest
others. Up to `EXACT` rows there is one cell, and nothing is missed. A pair at or above the threshold is an edge like
those of the shingles, and goes through the same rules of labels, twins and survivors (survivors.py).

Two questions of one sentence about different things ("bread" for "cake") lie at 0.8 and more for small embedders, so
the threshold is to be far above the shingles'.
"""

import numpy as np

from synth.errors import BadInput
from synth.near import Edges

SEMANTIC = -3  # in place of a band's number
EXACT, PROBES, BLOCK = 20_000, 2, 1024


def semantic_edges(
    vectors: np.ndarray, threshold: float, rows: np.ndarray | None = None, seed: int = 0
) -> Edges:
    """Pairs of rows whose cosine is at least the threshold; vectors float [entries, size], `rows` their row numbers.

    Raises BadInput for a threshold that is none. A vector of zeros is near nothing.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"the semantic threshold must be above 0 and at most 1, not {threshold}")
    rows = np.arange(len(vectors)) if rows is None else rows
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(length, 1e-12)).astype(np.float32)
    parts = [np.empty((3, 0))]
    for home, near in _cells(unit, seed):
        for first in range(0, len(home), BLOCK):
            mine = home[first : first + BLOCK]
            cosine = unit[mine] @ unit[near].T
            one, two = np.nonzero(cosine >= threshold - 1e-6)
            parts.append(np.stack([mine[one], near[two], cosine[one, two]]))
    left, right, cosine = np.concatenate(parts, axis=1)
    ends = np.sort(rows[np.stack([left, right]).astype(np.int64)], axis=0)
    apart = ends[0] < ends[1]
    ends, kept = np.unique(ends[:, apart], axis=1, return_index=True)
    found = np.minimum(cosine[apart][kept], 1.0)
    return Edges(ends[0], ends[1], found, np.full(len(found), SEMANTIC, dtype=np.int64))


def _cells(unit: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows of a cell, rows they are compared with), for every cell."""
    every = np.arange(len(unit))
    if len(unit) <= EXACT:
        return [(every, every)]
    from sklearn.cluster import MiniBatchKMeans

    count = int(len(unit) ** 0.5)
    means = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(unit).cluster_centers_
    nearest = np.concatenate(
        [
            np.argsort(-(unit[at : at + BLOCK] @ means.T), axis=1)[:, : PROBES + 1]
            for at in range(0, len(unit), BLOCK)
        ]
    )
    members = [np.flatnonzero(nearest[:, 0] == cell) for cell in range(count)]
    probing = [np.flatnonzero((nearest == cell).any(axis=1)) for cell in range(count)]
    return [(mine, theirs) for mine, theirs in zip(members, probing, strict=True) if len(mine)]
