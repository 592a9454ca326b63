"""Keys and values of many independent streams, appended in place and attended to without copies.

transformers' DynamicCache concatenates, so every new token copies the whole past (90 MB at 2,048 tokens of
SmolLM2-135M), and its SDPA path repeats the key/value heads for every chunk longer than one token. Here each
layer owns one tensor [slots, heads, capacity, D] that grows by half when it is full; a step writes its new
positions into it, and attention reads views of it with the query heads of a group stacked along the query
axis. Dropping a stream's last tokens is a matter of its length alone: what lies behind it is overwritten.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "guardmill_pool"
FIRST_CAPACITY = 256


@dataclass
class _Write:
    """Where the step under way puts its tokens: slots, their lengths before it, their token counts."""

    slots: list[int]
    starts: list[int]
    counts: list[int]

    @property
    def reach(self) -> int:
        return max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @property
    def even(self) -> bool:
        """Whether every stream writes the same span of a run of slots, so that slices do."""
        run = self.slots == list(range(self.slots[0], self.slots[0] + len(self.slots)))
        return run and len(set(self.starts)) == 1 and len(set(self.counts)) == 1


class KVPool:
    """Storage for `slots` streams; the `past_key_values` of a decoder's forward step.

    `capacity` positions each are reserved at first; it grows by half as streams outgrow it.
    """

    is_compileable = False

    def __init__(self, slots: int, capacity: int = FIRST_CAPACITY) -> None:
        self.slots, self.capacity = slots, capacity
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._write = _Write([0], [0], [0])

    def begin(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> int:
        """Announces a step; returns how many positions its attention reaches over."""
        self._write = _Write(list(slots), list(starts), list(counts))
        return self._write.reach

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions the longest stream of the step had before it."""
        return max(self._write.starts)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the step's [B, H, T, D]; returns each stream's whole past [B, H, reach, D]."""
        if layer_idx == len(self._keys):
            shape = (self.slots, keys.shape[1], self.capacity)
            self._keys.append(keys.new_zeros(*shape, keys.shape[3]))
            self._values.append(values.new_zeros(*shape, values.shape[3]))
        both = []
        for stores, new in ((self._keys, keys), (self._values, values)):
            stores[layer_idx] = self._grown(stores[layer_idx])
            self._put(stores[layer_idx], new)
            both.append(self._past(stores[layer_idx]))
        return both[0], both[1]

    def _grown(self, store: torch.Tensor) -> torch.Tensor:
        capacity, reach = store.shape[2], self._write.reach
        if reach <= capacity:
            return store
        larger = max(reach, capacity + capacity // 2)
        return torch.cat([store, store.new_zeros(*store.shape[:2], larger - capacity, store.shape[3])], dim=2)

    def _put(self, store: torch.Tensor, new: torch.Tensor) -> None:
        write = self._write
        if write.even:
            first, start, count = write.slots[0], write.starts[0], write.counts[0]
            store[first : first + len(write.slots), :, start : start + count] = new[:, :, :count]
            return
        for row, (slot, start, count) in enumerate(zip(write.slots, write.starts, write.counts, strict=True)):
            store[slot, :, start : start + count] = new[row, :, :count]

    def _past(self, store: torch.Tensor) -> torch.Tensor:
        slots, reach = self._write.slots, self._write.reach
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return store[slots[0] : slots[0] + len(slots), :, :reach]
        return store[slots, :, :reach]


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA with the G query heads of each key/value head stacked: [B, H, T, D] -> [B, H / G, G T, D].

    The mask is [B, 1, T, L], or None where every query sees everything.
    """
    batch, heads, length, width = query.shape
    group = heads // key.shape[1]
    stacked = query.reshape(batch, key.shape[1], group * length, width)
    if attention_mask is not None and group > 1:
        attention_mask = attention_mask.repeat(1, 1, group, 1)
    out = F.scaled_dot_product_attention(stacked, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, length, width).transpose(1, 2), None


@contextmanager
def pooled(backbone: nn.Module) -> Iterator[None]:
    """Runs `backbone` with `grouped_attention` inside the block."""
    config: Any = backbone.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, grouped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
