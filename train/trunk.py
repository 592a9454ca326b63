"""A decoder cut in two: the frozen lower part runs once per sample, the trained upper part on what it left.

With only the top k layers trained, the input of layer n - k never changes, so it is computed once, written to one
file that all worker processes map (one copy in the page cache, kept for later runs), and every epoch and every
variant of the labels trains on it: the same numbers as running the whole model, at k / n of the price.
Both halves share their modules with the whole model. `cut` checks itself on random tokens, since a decoder may do
more than embed, stack layers and normalize (Gemma scales its embeddings): such a backbone is refused.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synth.errors import BadInput
from train.data import Batch, Encoded, collate, pack


@dataclass(frozen=True)
class Cut:
    """`lower` [B, L] tokens -> hidden [B, L, D]; `upper` hidden -> last hidden, None where nothing is left of it."""

    lower: nn.Module
    upper: nn.Module | None


def freeze_below(backbone: nn.Module, train_layers: int | None) -> None:
    """Leaves only the top `train_layers` layers and the final norm trainable; None trains everything, 0 nothing."""
    if train_layers is None:
        return
    backbone.requires_grad_(False)
    if train_layers > 0:
        backbone.layers[-train_layers:].requires_grad_(True)
        backbone.norm.requires_grad_(True)


def cut(backbone: nn.Module, train_layers: int) -> Cut:
    """Cuts `backbone` below its top `train_layers` layers (0: all of it is lower).

    Raises BadInput for more layers than there are, or a decoder that does not come apart there.
    """
    layers = len(backbone.layers)
    if not 0 <= train_layers <= layers:
        raise BadInput(f"train_layers is {train_layers}, but the backbone has {layers} layers")
    if train_layers == 0:
        return Cut(backbone, None)
    lower = _part(backbone, 0, layers - train_layers)
    lower.norm = nn.Identity()
    halves = Cut(lower, _part(backbone, layers - train_layers, layers))
    _check(backbone, halves)
    return halves


def _part(backbone: nn.Module, first: int, end: int) -> nn.Module:
    """A shallow copy that runs layers first … end - 1 and shares every parameter."""
    part = copy.copy(backbone)
    part._modules = dict(backbone._modules)
    part.layers = nn.ModuleList(backbone.layers[first:end])
    part.config = copy.deepcopy(backbone.config)
    part.config.num_hidden_layers = end - first
    if getattr(backbone.config, "layer_types", None):
        part.config.layer_types = list(backbone.config.layer_types[first:end])
    if first:
        part.embed_tokens = None  # the trained half must not own (or, tied, move) the embeddings
    return part


@torch.no_grad()
def _check(backbone: nn.Module, halves: Cut) -> None:
    assert halves.upper is not None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, backbone.config.vocab_size, (1, 8), generator=generator)
    ids = ids.to(next(backbone.parameters()).device)
    positions = torch.arange(8, device=ids.device).unsqueeze(0)
    whole = run(backbone, positions, input_ids=ids)
    parts = run(halves.upper, positions, inputs_embeds=run(halves.lower, positions, input_ids=ids))
    if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4):
        raise BadInput(
            f"a {backbone.config.model_type} backbone cannot be cut into a frozen and a trained part: train all of it"
        )


def run(part: nn.Module, position_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Last hidden state [B, L, D] of packed rows; no mask and no cache, so that positions isolate the samples."""
    return part(position_ids=position_ids, use_cache=False, **inputs).last_hidden_state


class Features:
    """Hidden states of samples in one memory-mapped file, written in shards by the workers and read by all.

    Samples with equal tokens share a place. Slots are laid out by the sorted order of their token bytes, so every
    process computes the same layout without talking.
    """

    def __init__(self, path: Path, samples: Sequence[Encoded], width: int) -> None:
        distinct = {sample.ids.tobytes(): sample for sample in samples}
        self.path, self.width = path, width
        self.distinct = [distinct[key] for key in sorted(distinct)]
        ends = np.cumsum([len(sample) for sample in self.distinct]) if self.distinct else np.zeros(1, int)
        self.total = int(ends[-1])
        starts = [int(end) - len(sample) for end, sample in zip(ends, self.distinct, strict=False)]
        self._start = {sample.ids.tobytes(): start for sample, start in zip(self.distinct, starts, strict=True)}

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.total * self.width * 4

    def create(self) -> None:
        """Reserves the file; one process calls it before any `fill`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.memmap(self.path, dtype=np.float32, mode="w+", shape=(self.total, self.width)).flush()

    @torch.no_grad()
    def fill(self, lower: nn.Module, rank: int, world: int, row_length: int = 1024) -> int:
        """Computes and writes this rank's share (every world-th row), in rows of like lengths; returns its tokens."""
        store = np.memmap(self.path, dtype=np.float32, mode="r+", shape=(self.total, self.width))
        device = next(lower.parameters()).device
        longest = max((len(sample) for sample in self.distinct), default=1)
        rows = pack([len(sample) for sample in self.distinct], max(row_length, longest), seed=0)
        done = 0
        for row in rows[rank::world]:
            batch = collate([row], self.distinct)
            ids, positions = batch["input_ids"].to(device), batch["position_ids"].to(device)
            hidden = run(lower, positions, input_ids=ids)[0].float().cpu().numpy()
            at = 0
            for index in row:
                sample = self.distinct[index]
                start = self._start[sample.ids.tobytes()]
                store[start : start + len(sample)] = hidden[at : at + len(sample)]
                at += len(sample)
            done += at
        store.flush()
        return done

    def open(self) -> np.memmap:
        """The filled file, read-only."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=(self.total, self.width))

    def gather(self, store: np.memmap, rows: Sequence[Sequence[int]], samples: Sequence[Encoded]) -> torch.Tensor:
        """Hidden states [B, L, D] of packed rows, zeros on padding."""
        length = max(sum(len(samples[i]) for i in row) for row in rows)
        out = np.zeros((len(rows), length, self.width), dtype=np.float32)
        for b, row in enumerate(rows):
            at = 0
            for index in row:
                sample = samples[index]
                start = self._start[sample.ids.tobytes()]
                out[b, at : at + len(sample)] = store[start : start + len(sample)]
                at += len(sample)
        return torch.from_numpy(out)


def hidden_of(batch: Batch, lower: nn.Module) -> torch.Tensor:
    """The lower part's output for a batch that carries no stored features."""
    with torch.no_grad():
        return run(lower, batch["position_ids"], input_ids=batch["input_ids"])
