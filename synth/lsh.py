"""From band keys to verified edges to clusters, never comparing all pairs of a bucket.

Buckets. Sets that agree in a band form a bucket. Its smallest member is the hub and is paired with all others
(a star); members that the signatures place clearly at the hub leave, the others repeat with the next hub. A
small bucket is so exhausted in at most `SMALL` rounds. What a big bucket keeps after its first star is sorted
by further places of the signatures, and everyone is paired with the next `WINDOW` in that order, `ORDERS`
times (as in an LSH forest, Bawa et al. 2005): a bucket of m strangers that share a band costs m * WINDOW *
ORDERS pairs, not m**2 / 2. All of it runs over all buckets of a band at once, and decides by signatures
alone, so that a band can be handled wherever its keys lie.

Edges. Pairs whose estimate is hopeless (0.1 below the threshold, 2.5 standard deviations at 0.7 with 128
places) are dropped, the others verified by exact Jaccard similarity of the shingle sets.

Clusters are connected components of the verified edges: minimum labels are hooked onto roots and pointers
halved until nothing changes (`components`); `star_round` is the same on a partitioned edge list (large-star
and small-star, Kiveris et al. 2014), for graphs that no single process holds.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from synth.minhash import Bands, estimates
from synth.shingles import Shingles, mix

SMALL, WINDOW, ORDERS = 32, 3, 2
HOPELESS, CLEAR = 0.1, 0.1


@dataclass(frozen=True)
class Members:
    """What the buckets know of entries [m], in canonical order (an entry's index is its rank).

    sketch uint8 [m, permutations]; label int [m], -1 for none; own bool [m] as in `Shingles`.
    """

    sketch: np.ndarray
    label: np.ndarray
    own: np.ndarray


def band_pairs(
    keys: np.ndarray, members: Members, band: int, bands: Bands, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Candidate pairs (left < right, entry indices) of one band, of equal and of differing labels.

    keys: uint64 [m]. Pairs of differing labels come from stars over whole buckets, as conflicts must be seen;
    pairs of equal labels from stars within each label, as a hub of another label can merge with nobody.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    crowded = np.zeros(len(keys), dtype=bool)
    crowded[1:] = same
    crowded[:-1] |= same
    found, key = order[crowded], ordered[crowded]
    order = np.lexsort((found, key))
    found, key = found[order], key[order]
    label = members.label[found]
    group = np.zeros(len(key), dtype=np.int64)
    np.cumsum(key[1:] != key[:-1], out=group[1:])
    mixed = np.zeros(len(key), dtype=bool)
    mixed[group[1:][(label[1:] != label[:-1]) & (group[1:] == group[:-1])]] = True
    parts = []
    if mixed.any():
        several = mixed[group]
        across = _bucket_pairs(group[several], found[several], members, band, bands, threshold)
        parts.append(across[:, members.label[across[0]] != members.label[across[1]]])
        group = mix(group.astype(np.uint64)) + mix(label.astype(np.int64).view(np.uint64))
        order = np.lexsort((found, group))
        group, found = group[order], found[order]
    parts.append(_bucket_pairs(group, found, members, band, bands, threshold))
    left, right = np.concatenate(parts, axis=1)
    return left, right


def _bucket_pairs(
    group: np.ndarray, found: np.ndarray, members: Members, band: int, bands: Bands, threshold: float
) -> np.ndarray:
    """Candidate pairs [2, pairs] of buckets given as runs of `group`, members ascending within each."""
    parts = [np.empty((2, 0), dtype=np.int64)]
    first_round = True
    while len(found):
        heads = np.ones(len(found), dtype=bool)
        heads[1:] = group[1:] != group[:-1]
        hub = found[heads][np.cumsum(heads) - 1][~heads]
        rest = found[~heads]
        close = estimates(members.sketch, hub, rest)
        parts.append(np.stack([hub, rest])[:, close >= threshold - HOPELESS])
        stays = (close < threshold + CLEAR) | ~(members.own[hub] | members.own[rest])
        group, found = group[~heads][stays], rest[stays]
        if first_round:
            first_round = False
            big = _sizes(group) > SMALL
            parts.append(_window_pairs(group[big], found[big], members, band, bands, threshold))
            group, found = group[~big], found[~big]
    return np.concatenate(parts, axis=1)


def _sizes(group: np.ndarray) -> np.ndarray:
    """The size of the run that each position belongs to."""
    if not len(group):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(np.append(starts, len(group)))
    return np.repeat(sizes, sizes)


def _window_pairs(
    group: np.ndarray, found: np.ndarray, members: Members, band: int, bands: Bands, threshold: float
) -> np.ndarray:
    """Pairs [2, pairs] of neighbours after sorting big buckets by signature places outside this band."""
    parts = [np.empty((2, 0), dtype=np.int64)]
    places = members.sketch.shape[1]
    for turn in range(ORDERS if len(found) else 0):
        columns = ((band + 1) * bands.rows + turn * 8 + np.arange(8)) % places
        packed = np.ascontiguousarray(members.sketch[found][:, columns]).view(np.uint64)[:, 0].byteswap()
        order = np.lexsort((found, packed, group))
        for step in range(1, WINDOW + 1):
            one, two = order[:-step], order[step:]
            together = group[one] == group[two]
            pair = np.sort(np.stack([found[one[together]], found[two[together]]]), axis=0)
            close = estimates(members.sketch, pair[0], pair[1])
            parts.append(pair[:, close >= threshold - HOPELESS])
    return np.concatenate(parts, axis=1)


def unique_pairs(left: np.ndarray, right: np.ndarray, size: int) -> np.ndarray:
    """Positions of the first occurrence of every pair (entries below `size`), ordered by pair."""
    return np.unique(left.astype(np.int64) * size + right, return_index=True)[1]


def jaccard(shingles: Shingles, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact Jaccard similarity of pairs of entries, float64 [pairs]."""
    sizes = np.diff(shingles.offsets)
    shared = np.empty(len(left), dtype=np.int64)
    sets = csr_array(
        (
            np.ones(len(shingles.hashes), np.int8),
            (shingles.hashes >> np.uint64(1)).view(np.int64),
            shingles.offsets,
        ),
        shape=(len(sizes), np.iinfo(np.int64).max),
    )
    sets.has_canonical_format = True
    for first in range(0, len(left), 1 << 14):
        part = slice(first, first + (1 << 14))
        common = sets[left[part]].multiply(sets[right[part]])
        shared[part] = np.diff(common.indptr)
    return shared / (sizes[left] + sizes[right] - shared)


def components(size: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest member of every node's component, int64 [size]. O(log size) rounds of O(edges)."""
    label = np.arange(size, dtype=np.int64)
    while len(left):
        lowest = np.minimum(label[left], label[right])
        np.minimum.at(label, label[left], lowest)
        np.minimum.at(label, label[right], lowest)
        while (halved := label[label]).tobytes() != label.tobytes():
            label = halved
        apart = label[left] != label[right]
        left, right = left[apart], right[apart]
    return label


def star_round(node: np.ndarray, neighbour: np.ndarray, small: bool) -> tuple[np.ndarray, np.ndarray]:
    """One large-star or small-star step on edges that hold *all* neighbours of their nodes (see callers).

    Large-star wants every edge in both directions and links each node's larger neighbours to its smallest
    one; small-star wants every edge once, from the larger to the smaller end, and links the smaller ones
    likewise. Returns the new edges as (node, smaller neighbour). Alternated until nothing changes they leave
    stars: every node linked to the smallest of its component.
    """
    order = np.lexsort((neighbour, node))
    node, neighbour = node[order], neighbour[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]]))
        if len(node)
        else np.empty(0, np.int64)
    )
    sizes = np.diff(np.append(starts, len(node)))
    lowest = np.repeat(np.minimum(neighbour[starts], node[starts]), sizes)
    if small:
        moved, target = np.concatenate([neighbour, node]), np.concatenate([lowest, lowest])
    else:
        larger = neighbour > node
        moved, target = neighbour[larger], lowest[larger]
    proper = moved != target
    return moved[proper], target[proper]
