"""Packing without attention across samples, and without computing a shared beginning twice.

The samples of a row are woven into their prefix tree, laid out depth first: position q may attend to k where
k lies on the path from the root to q. With depth-first order that is one number per token: `k <= q < end[k]`,
where end[k] is where k's subtree ends. Position ids are depths. So every sample sees exactly its own tokens
at their own positions, and what samples have in common (the moderation instruction before the conversation; a
prompt under several responses) is computed once per row, forwards and backwards: its gradient is the sum over
the samples, as it should be. Samples that share nothing give ordinary packing. Tree attention of this kind is
known from speculative decoding (SpecInfer) and prefix-shared training; targets are a flat list, since one
position may carry several.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.errors import BadInput
from train.data import IGNORE, Encoded

Batch = dict[str, torch.Tensor]
COMPARED = 4  # members of an open row a new sample is compared with; more only saves room


@dataclass(frozen=True)
class Woven:
    """A row: token ids, depths and subtree ends, each [L], and every sample's places in it."""

    ids: np.ndarray
    depth: np.ndarray
    end: np.ndarray
    places: list[np.ndarray]


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two samples share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _sort_key(ids: np.ndarray) -> bytes:
    return ids.astype(">u4").tobytes()  # big-endian bytes sort as the numbers do


def sorted_distinct(samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The distinct samples in lexicographic order: neighbours share most."""
    distinct = {_sort_key(ids): ids for ids in samples}
    return [distinct[key] for key in sorted(distinct)]


def weave(samples: Sequence[np.ndarray]) -> Woven:
    """The prefix tree of `samples`, depth first; `places[i]` are sample i's positions, in the order given."""
    order = sorted(range(len(samples)), key=lambda i: _sort_key(samples[i]))
    room = sum(len(ids) for ids in samples)
    ids, depth, end = (np.zeros(room, dtype=np.int64) for _ in range(3))
    places: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(samples)
    size, path, previous = 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for index in order:
        sample = samples[index]
        shared = common_prefix(previous, sample)
        end[path[shared:]] = size
        new = np.arange(size, size + len(sample) - shared)
        ids[new], depth[new] = sample[shared:], np.arange(shared, len(sample))
        path = np.concatenate([path[:shared], new])
        places[index], previous, size = path, sample, size + len(new)
    end[path] = size
    return Woven(ids[:size], depth[:size], end[:size], places)


def path_mask(end: torch.Tensor) -> torch.Tensor:
    """`end` [B, L] as an attention mask [B, 1, L, L], True where query q may look at key k."""
    places = torch.arange(end.shape[1], device=end.device)
    q, k = places[None, :, None], places[None, None, :]
    return ((k <= q) & (q < end[:, None, :])).unsqueeze(1)


def pack(samples: Sequence[np.ndarray], row_length: int, seed: int, open_rows: int = 8) -> list[list[int]]:
    """First-fit of the samples, in an order drawn from `seed`, into rows that weave to at most `row_length`
    tokens.

    Only the last `open_rows` rows are tried, which keeps it linear. Raises BadInput for a sample longer than
    a row.
    """
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        ids = samples[index]
        if len(ids) > row_length:
            raise BadInput(f"sample {index} has {len(ids)} tokens: longer than a row of {row_length}")
        for row in range(max(0, len(rows) - open_rows), len(rows)):
            need = len(ids) - max(common_prefix(samples[i], ids) for i in rows[row][:COMPARED])
            if need <= room[row]:
                rows[row].append(index)
                room[row] -= need
                break
        else:
            rows.append([index])
            room.append(row_length - len(ids))
    return rows


def neighbours(samples: Sequence[np.ndarray], row_length: int) -> list[list[np.ndarray]]:
    """Sorted samples cut into runs that weave to about `row_length` tokens (a longer one stays alone)."""
    rows: list[list[np.ndarray]] = []
    size = 0
    for ids in samples:
        need = len(ids) - (common_prefix(rows[-1][-1], ids) if rows else 0)
        if rows and size + need <= row_length:
            rows[-1].append(ids)
            size += need
        else:
            rows.append([ids])
            size = len(ids)
    return rows


def collate(rows: Sequence[Sequence[int]], samples: Sequence[Encoded]) -> Batch:
    """Woven rows as tensors: input_ids, position_ids, end [B, L]; per target entry [N] its place and values.

    `at` is the flat place b * L + position; `segment` numbers the samples of the batch; `weight` is the
    sample's. Padding attends to itself alone.
    """
    wovens = [weave([samples[i].ids for i in row]) for row in rows]
    length = max(len(woven.ids) for woven in wovens)
    layout = np.zeros((3, len(rows), length), dtype=np.int64)
    layout[2] = np.arange(1, length + 1)
    flat: dict[str, list[np.ndarray]] = {name: [] for name in ("at", "segment", *samples[rows[0][0]].targets)}
    weights: list[np.ndarray] = []
    segment = 0
    for b, (row, woven) in enumerate(zip(rows, wovens, strict=True)):
        layout[:, b, : len(woven.ids)] = woven.ids, woven.depth, woven.end
        for index, places in zip(row, woven.places, strict=True):
            sample = samples[index]
            asked = np.flatnonzero(next(iter(sample.targets.values())) != IGNORE)
            flat["at"].append(b * length + places[asked])
            flat["segment"].append(np.full(len(asked), segment))
            weights.append(np.full(len(asked), sample.weight, dtype=np.float32))
            for name, values in sample.targets.items():
                flat[name].append(values[asked])
            segment += 1
    batch = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in flat.items()}
    names = ("input_ids", "position_ids", "end")
    batch |= {name: torch.from_numpy(array) for name, array in zip(names, layout, strict=True)}
    return {**batch, "weight": torch.from_numpy(np.concatenate(weights))}
