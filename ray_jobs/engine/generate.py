"""Sampling texts from a causal model: continuous batching over the slot cache.

Rows are sorted by length, longest first, so that those side by side are about as long (and, among those, by
what they begin with); a row that ends
gives its slot to the last active one, and waiting rows are let in, a group at a time, once an eighth of the
slots is free. What prompts have in common (k samples of one, a template, a response's prefixes) is prefilled
once. The last token of a prompt is its first decoding step, so logits are computed for one position per row
only, and always by the model's own head.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ray_jobs.engine.calls import Completion, Failure, Sampling
from ray_jobs.engine.causal import CausalLM
from ray_jobs.engine.prefix import batch_order
from ray_jobs.engine.sampling import draw, uniforms


@dataclass
class Row:
    """One text in the making. All its tokens but the last are in the cache."""

    index: int
    prompt: list[int]
    seed: int
    limit: int
    output: list[int] = field(default_factory=list)
    finish: str = ""


def generate(
    lm: CausalLM, encoded: Sequence[list[int] | Failure], sampling: Sampling, seeds: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> list[Completion | Failure]:  # fmt: skip
    """One text per encoded prompt, in order. `progress` is called at every step (a watchdog listens)."""
    rows = [
        Row(i, ids, seeds[i], min(sampling.max_tokens, lm.context - len(ids)))
        for i, ids in enumerate(encoded)
        if not isinstance(ids, Failure)
    ]
    waiting = deque(sorted(rows, key=lambda row: (*batch_order(row.prompt), row.index)))
    with torch.inference_mode():
        while waiting:
            cohort = _cohort(waiting, sampling.max_tokens)
            _Batch(lm, cohort, sampling, progress).run()
    texts = {row.index: _completion(lm, row, sampling) for row in rows}
    return [ids if isinstance(ids, Failure) else texts[i] for i, ids in enumerate(encoded)]


def _cohort(waiting: deque[Row], new_tokens: int) -> deque[Row]:
    """Take the rows that need at least half the longest's room: one long prompt must not narrow them all."""
    longest = len(waiting[0].prompt) + new_tokens
    cohort: deque[Row] = deque()
    while waiting and 2 * (len(waiting[0].prompt) + new_tokens) >= longest:
        cohort.append(waiting.popleft())
    return cohort


class _Batch:
    """The active rows (slot s holds active[s]) and those that wait for a slot."""

    def __init__(
        self, lm: CausalLM, waiting: deque[Row], sampling: Sampling, progress: Callable[[], None]
    ) -> None:
        self.lm, self.waiting, self.sampling, self.progress = lm, waiting, sampling, progress
        capacity = max(len(row.prompt) for row in waiting) + sampling.max_tokens
        self.slots = min(lm.room(capacity), len(waiting))
        lm.cache.shape(self.slots, capacity)
        self.active: list[Row] = []
        # A stop string of n bytes ends within the last n tokens, since every token is at least one byte.
        self.tail = max((len(stop.encode()) for stop in sampling.stop), default=0) + 4

    def run(self) -> None:
        while self.waiting or self.active:
            free = self.slots - len(self.active)
            if self.waiting and free >= max(1, min(self.slots // 8, len(self.waiting))):
                self._admit(min(free, len(self.waiting)))
            self._step()
            self.progress()

    def _admit(self, count: int) -> None:
        """Prefill the next rows into the slots behind the active ones."""
        rows = [self.waiting.popleft() for _ in range(count)]
        order = self.lm.prefill([row.prompt for row in rows], [row.prompt for row in self.active])
        self.active += [rows[i] for i in order]

    def _step(self) -> None:
        """One token for every active row."""
        lm, rows = self.lm, self.active
        token_B1 = lm.tensor([[row.output[-1] if row.output else row.prompt[-1]] for row in rows])
        start_B = lm.tensor([len(row.prompt) + len(row.output) - 1 for row in rows])
        logits = lm.extend(token_B1, start_B)
        assert logits is not None
        steps = np.array([len(row.output) for row in rows])
        uniform_B = uniforms(np.array([row.seed for row in rows], dtype=np.uint64), steps)
        for row, token in zip(rows, draw(logits[:, -1], self.sampling, uniform_B).tolist(), strict=True):
            row.output.append(token)
            row.finish = self._finish(row)
        for slot in range(len(rows) - 1, -1, -1):
            if rows[slot].finish:
                self._leave(slot)

    def _finish(self, row: Row) -> str:
        if row.output[-1] in self.lm.end_ids:
            return "stop"
        if self.sampling.stop:
            tail = self.lm.tokenizer.decode(row.output[-self.tail :], skip_special_tokens=True)
            if any(stop in tail for stop in self.sampling.stop):
                return "stop"
        return "length" if len(row.output) >= row.limit else ""

    def _leave(self, slot: int) -> None:
        """Move the last active row into the slot that came free."""
        last = self.active.pop()
        if slot < len(self.active):
            self.lm.cache.copy(len(self.active), slot, len(last.prompt) + len(last.output) - 1)
            self.active[slot] = last


def _completion(lm: CausalLM, row: Row, sampling: Sampling) -> Completion:
    text = str(lm.tokenizer.decode(row.output, skip_special_tokens=True))
    cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=len(text))
    return Completion(text[:cut], row.finish, len(row.prompt), len(row.output))
