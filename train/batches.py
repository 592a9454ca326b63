"""Encoded samples as steps of packed rows: split by group, weighed by class, dealt by seed.

The split, the packing and the order are functions of the seed and the samples alone, so every worker computes
them alike and nothing is sent around. Held-out samples are whole groups: a prompt, its twin and its
translations stay on one side.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from synth.errors import BadInput
from synth.ids import stable_hash
from train.data import Encoded
from train.fit import group_steps
from train.fit_config import FitConfig
from train.trunk import Features, run
from train.weave import Batch, collate, pack

EXPONENTS = {"none": 0.0, "sqrt": 0.5, "full": 1.0}


def held_out_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """About `share` of the distinct groups, chosen by hash; never all of them."""
    if share <= 0:
        return set()
    ranked = sorted(set(groups), key=lambda group: stable_hash("held-out", seed, group))
    return set(ranked[: min(len(ranked) - 1, round(share * len(ranked)))])


def class_weights(labels: Sequence[str], balance: str) -> list[float]:
    """A weight per sample, ~ class count ** -(0 | 1/2 | 1) for "none" | "sqrt" | "full"; the mean is 1."""
    if balance not in EXPONENTS:
        raise BadInput(f"class_balance is {balance!r}; it is one of {', '.join(EXPONENTS)}")
    counts = Counter(labels)
    raw = [counts[label] ** -EXPONENTS[balance] for label in labels]
    mean = sum(raw) / max(1, len(raw))
    return [weight / mean for weight in raw]


class PackedBatches:
    """The `Batches` of `fit` over encoded samples (`mass` says what one adds to the norm of a loss)."""

    def __init__(
        self,
        samples: Sequence[Encoded],
        groups: Sequence[str],
        labels: Sequence[str],
        mass: Callable[[Encoded], float],
        config: FitConfig,
    ) -> None:
        if not samples:
            raise BadInput("no example left to train on")
        held = held_out_groups(groups, config.eval_share, config.seed)
        inside = [i for i, group in enumerate(groups) if group not in held]
        weights = class_weights([labels[i] for i in inside], config.class_balance)
        self.samples = [replace(samples[i], weight=w) for i, w in zip(inside, weights, strict=True)]
        self.held_samples = [samples[i] for i, group in enumerate(groups) if group in held]
        self.config, self.mass = config, mass
        self.row_length = max(config.row_length, *(len(sample) for sample in samples), 1)
        self._features: Features | None = None
        self._store: np.memmap | None = None
        self._lower: nn.Module | None = None

    def use(self, features: Features) -> None:
        """Takes the frozen layers' hidden states from `features` (filled)."""
        self._features, self._store = features, features.open()

    def use_lower(self, lower: nn.Module) -> None:
        """Runs the frozen layers anew for every batch: for sets whose features are too large to keep."""
        self._lower = lower

    def steps(self, epoch: int) -> list[list[Sequence[int]]]:
        """Rows packed anew for every epoch, in steps of about `batch_tokens`."""
        seed = self.config.seed * 1000 + epoch
        rows = pack([sample.ids for sample in self.samples], self.row_length, seed)
        return group_steps(rows, max(1, round(self.config.batch_tokens / self.row_length)), seed)

    def held_out(self) -> list[list[int]]:
        """Packed rows of the held-out samples."""
        return pack([sample.ids for sample in self.held_samples], self.row_length, 0)

    def load(self, rows: Sequence[Sequence[int]], held_out: bool = False) -> Batch:
        """Tensors of some rows, with `hidden` [B, L, D] where lower layers are frozen."""
        samples = self.held_samples if held_out else self.samples
        batch = collate(rows, samples)
        if self._features is not None and self._store is not None:
            batch["hidden"] = self._features.gather(self._store, rows, samples)
        elif self._lower is not None:
            device = next(self._lower.parameters()).device
            layout = [batch[name].to(device) for name in ("position_ids", "end", "input_ids")]
            with torch.no_grad():
                batch["hidden"] = run(self._lower, layout[0], layout[1], input_ids=layout[2])
        return batch

    def norm(self, rows: Sequence[Sequence[int]], held_out: bool = False) -> float:
        """Summed mass of the rows' samples."""
        samples = self.held_samples if held_out else self.samples
        return max(1e-9, sum(self.mass(samples[i]) for row in rows for i in row))
