"""A key-value cache of slots: one slab of memory, one slot per row, each row at its own length.

Rows are right-padded: the tokens of slot s lie at 0 … length-1, so a position is written once and never
moves. That gives what a growing cache cannot: no copy per step (transformers' DynamicCache re-allocates and
copies the whole cache for every token), rows of different ages side by side (a free slot takes a new row at
once, the idea of Orca's iteration-level scheduling), a shared prefix computed once and copied, and a
leaving row replaced by the last one, so that the active rows stay the contiguous slots 0 … n-1 and are read
as a view.
"""

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):
    """kv: [layers, 2, slots, heads, capacity, head_dim], zeroed (a masked NaN would still poison a row)."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.n_layers = config.num_hidden_layers
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.memory = torch.empty(0, dtype=dtype, device=device)
        self.kv = self.memory
        super().__init__(layers=[SlotLayer(self, index) for index in range(self.n_layers)])
        self.aim(0, 0, torch.empty(0, dtype=torch.long), 0)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token of one row takes."""
        return 2 * self.n_layers * self.heads * self.head_dim * self.memory.element_size()

    @property
    def capacity(self) -> int:
        """Tokens a slot holds."""
        return self.kv.shape[4] if self.kv.dim() == 6 else 0

    def shape(self, slots: int, capacity: int) -> None:
        """Lay the slab out for `slots` rows of `capacity` tokens; memory is taken again only to grow."""
        shape = (self.n_layers, 2, slots, self.heads, capacity, self.head_dim)
        needed = torch.Size(shape).numel()
        if self.memory.numel() < needed:
            self.memory = torch.empty(0, dtype=self.memory.dtype, device=self.memory.device)
            self.kv = self.memory  # the old slab is free before the new one is taken
            self.memory = torch.zeros(needed, dtype=self.memory.dtype, device=self.memory.device)
        self.kv = self.memory[:needed].view(shape)

    def aim(self, low: int, high: int, start_B: torch.Tensor, queries: int) -> None:
        """Say where the next forward pass writes: slots low … high-1, `queries` tokens from start_B onwards.

        Padding behind a short row may run past the capacity: it goes to the last place, which no prompt token
        has.
        """
        self.low, self.high, self.queries = low, high, queries
        starts = start_B.tolist()
        self.level = starts[0] if starts and min(starts) == max(starts) else None
        self.width = min(max(starts, default=0) + queries, self.capacity)
        place_Q = torch.arange(queries, device=start_B.device)
        self.position_BQ = (start_B[:, None] + place_Q).clamp_(max=max(0, self.capacity - 1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` tokens of slot `source`."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]


class SlotLayer(CacheLayerMixin):
    """One layer's view of the slab, as transformers' attention asks for it."""

    is_sliding = False

    def __init__(self, cache: SlotCache, index: int) -> None:
        super().__init__()
        self.cache, self.index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass  # the slab is laid out before the forward pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, heads, Q, head_dim] at each row's own position; return views up to the longest row."""
        cache = self.cache
        keys, values = cache.kv[self.index, :, cache.low : cache.high]
        if cache.level is not None:
            span = slice(cache.level, cache.level + cache.queries)
            keys[:, :, span], values[:, :, span] = key_states, value_states
        else:
            rows_B1 = torch.arange(cache.high - cache.low, device=keys.device)[:, None]
            keys[rows_B1, :, cache.position_BQ] = key_states.transpose(1, 2)
            values[rows_B1, :, cache.position_BQ] = value_states.transpose(1, 2)
        return keys[:, :, : cache.width], values[:, :, : cache.width]

    def get_seq_length(self) -> int:
        return self.cache.width - self.cache.queries

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_max_length(self) -> int:
        return self.cache.capacity
