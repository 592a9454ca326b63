"""Moderation token by token: each new token costs one pass over itself, whatever came before.

`stream_moderate_from_ids` has the published signature and result, but keeps keys and values
(train/kv_pool.py) where the published implementation runs the whole sequence again for every token.
`StreamBatch` does the same for many independent streams in one forward step. A user turn is judged by the
query heads, an assistant turn by the response heads; a stream begins with the user's turn. Verdict rules
(debounce, readings) are in train/stream_verdict.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from synth.errors import BadInput
from train.kv_pool import FIRST_CAPACITY, KVPool, pooled
from train.stream_model import StreamGuard

ROLES = {"user": ("query_", "query_risk_level_map", "query_category_map")}
ROLES["assistant"] = ("", "response_risk_level_map", "response_category_map")
Result = dict[str, list[Any]]


@dataclass
class StreamState:
    """One stream: its place in the pool, its length, and what was said of each of its tokens."""

    pool: KVPool
    slot: int
    length: int = 0
    roles: list[str] = field(default_factory=list)
    risks: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    open: bool = True

    def roll_back(self, tokens: int) -> None:
        """Forgets the last `tokens` tokens; BadInput for more than there are."""
        if not 0 <= tokens <= self.length:
            raise BadInput(f"cannot take back {tokens} tokens of a stream of {self.length}")
        self.length -= tokens
        for kept in (self.roles, self.risks, self.categories):
            del kept[self.length :]


def stream_moderate_from_ids(
    guard: StreamGuard, token_ids: Any, role: str, stream_state: StreamState | None = None
) -> tuple[Result, StreamState]:
    """Judges the next tokens of one stream; starts a new one without `stream_state`.

    `token_ids`: one id, a sequence or a tensor. Result: `risk_level`, `risk_prob`, `category`,
    `category_prob`, one entry per token, and `risk_probs` with the whole distribution in the order of the
    risk map.
    """
    state = stream_state or StreamState(KVPool(1), 0)
    return step(guard, [(state, token_ids, role)])[0], state


class StreamBatch:
    """Up to `slots` independent streams that share forward steps; `capacity` as in KVPool."""

    def __init__(self, guard: StreamGuard, slots: int, capacity: int = FIRST_CAPACITY) -> None:
        self.guard = guard
        self.pool = KVPool(slots, capacity)
        self._free = list(range(slots))

    def open(self) -> StreamState:
        """A new stream; BadInput when all slots are taken."""
        if not self._free:
            raise BadInput(f"all {self.pool.slots} streams of this batch are open")
        self._free.sort()
        return StreamState(self.pool, self._free.pop(0))

    def close(self, state: StreamState) -> None:
        """Gives the stream's slot to the next one."""
        if state.open:
            state.open = False
            self._free.append(state.slot)

    def step(self, entries: Sequence[tuple[StreamState, Any, str]]) -> list[Result]:
        """Judges new tokens of several streams (state, token ids, role) at once, in chunks of any length."""
        if any(state.pool is not self.pool for state, _, _ in entries):
            raise BadInput("a stream of another batch cannot take part in this one's step")
        return step(self.guard, entries)


@torch.inference_mode()
def step(guard: StreamGuard, entries: Sequence[tuple[StreamState, Any, str]]) -> list[Result]:
    """One forward step over the new tokens of streams that share a pool; results in the order given."""
    order = sorted(range(len(entries)), key=lambda i: entries[i][0].slot)
    states = [entries[i][0] for i in order]
    chunks = [_ids(entries[i][1], guard) for i in order]
    for state, chunk, i in zip(states, chunks, order, strict=True):
        _check_turn(state, entries[i][2])
        _check_room(state, chunk, guard)
    if len({state.slot for state in states}) < len(states):
        raise BadInput("a stream stands twice in one step")
    hidden = _forward(guard, states, chunks)
    results: list[Result] = [{} for _ in entries]
    for row, (i, state, chunk) in enumerate(zip(order, states, chunks, strict=True)):
        results[i] = _judge(guard, hidden[row, : len(chunk)], entries[i][2])
        state.length += len(chunk)
        state.roles += [entries[i][2]] * len(chunk)
        state.risks += results[i]["risk_level"]
        state.categories += results[i]["category"]
    return results


def _forward(guard: StreamGuard, states: Sequence[StreamState], chunks: Sequence[list[int]]) -> torch.Tensor:
    """Last hidden states [B, T, D]; rows shorter than T are padded at their end."""
    counts, starts = [len(chunk) for chunk in chunks], [state.length for state in states]
    width = max(counts)
    device = guard.device
    ids = torch.tensor([chunk + [0] * (width - len(chunk)) for chunk in chunks], device=device)
    begin = torch.tensor(starts, device=device)[:, None]
    positions = begin + torch.arange(width, device=device)
    pool = states[0].pool
    reach = pool.begin([state.slot for state in states], starts, counts)
    mask = None
    if width > 1 or len(set(starts)) > 1:
        mask = (torch.arange(reach, device=device) <= positions[..., None]).unsqueeze(1)
    with pooled(guard.model):
        if mask is None:  # one even new token each sees all of its past
            mask = torch.ones(len(chunks), 1, 1, reach, dtype=torch.bool, device=device)
        out = guard.model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=pool, use_cache=True
        )
    return out.last_hidden_state


def _judge(guard: StreamGuard, hidden: torch.Tensor, role: str) -> Result:
    side, risk_map, category_map = ROLES[role]
    risk, category = (logits.float().softmax(-1) for logits in guard.heads(hidden, side))
    result: Result = {"risk_probs": risk.tolist()}
    for name, probabilities, names in (
        ("risk_level", risk, guard.config.names(risk_map)),
        ("category", category, guard.config.names(category_map)),
    ):
        best, index = probabilities.max(-1)
        result[name] = [names[i] for i in index.tolist()]
        result["risk_prob" if name == "risk_level" else "category_prob"] = best.tolist()
    return result


def _ids(token_ids: Any, guard: StreamGuard) -> list[int]:
    """The ids as a list; BadInput for none, or one outside the vocabulary."""
    if isinstance(token_ids, torch.Tensor):
        token_ids = token_ids.reshape(-1).tolist()
    ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
    vocabulary = guard.config.backbone_config.vocab_size
    if not ids:
        raise BadInput("no token ids to moderate")
    outside = [i for i in ids if not 0 <= i < vocabulary]
    if outside:
        raise BadInput(f"token id {outside[0]} is outside the guard's vocabulary of {vocabulary}")
    return ids


def _check_room(state: StreamState, chunk: list[int], guard: StreamGuard) -> None:
    context = getattr(guard.config.backbone_config, "max_position_embeddings", None)
    if context and state.length + len(chunk) > context:
        raise BadInput(
            f"the stream would have {state.length + len(chunk)} tokens, the guard's context {context}"
        )


def _check_turn(state: StreamState, role: str) -> None:
    if role not in ROLES:
        raise BadInput(f"role is {role!r}; a stream has the roles {' and '.join(ROLES)}")
    if not state.open:
        raise BadInput("this stream is closed")
    if state.length == 0 and role == "assistant":
        raise BadInput("a stream begins with the user's turn, not the assistant's")
