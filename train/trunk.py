"""A decoder cut in two: the frozen lower part runs once per sample, the trained upper part on what it left.

With only the top k layers trained, the input of layer n - k never changes, so it is computed once, written to
one file that all worker processes map (one copy in the page cache, kept for later runs), and every epoch and
every variant of the labels trains on it: the same numbers as running the whole model, at k / n of the price.
Both halves share their modules with the whole model. `cut` checks itself on random tokens, since a decoder
may do more than embed, stack layers and normalize (Gemma scales its embeddings): such a backbone is refused.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from synth.errors import BadInput
from train.data import Encoded
from train.weave import neighbours, path_mask, sorted_distinct, weave


@dataclass(frozen=True)
class Cut:
    """`lower` [B, L] tokens -> hidden [B, L, D]; `upper` hidden -> last hidden, None where nothing is left of
    it."""

    lower: nn.Module
    upper: nn.Module | None


def freeze_below(backbone: Any, train_layers: int | None) -> None:
    """Leaves only the top `train_layers` layers and the final norm trainable; None trains everything, 0
    nothing."""
    if train_layers is None:
        return
    backbone.requires_grad_(False)
    if train_layers > 0:
        backbone.layers[-train_layers:].requires_grad_(True)
        backbone.norm.requires_grad_(True)


def cut(backbone: Any, train_layers: int) -> Cut:
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


def _part(backbone: Any, first: int, end: int) -> Any:
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
def _check(backbone: Any, halves: Cut) -> None:
    assert halves.upper is not None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, backbone.config.vocab_size, (1, 8), generator=generator)
    ids = ids.to(next(backbone.parameters()).device)
    positions = torch.arange(8, device=ids.device).unsqueeze(0)
    ends = torch.full_like(positions, 8)
    whole = run(backbone, positions, ends, input_ids=ids)
    parts = run(
        halves.upper, positions, ends, inputs_embeds=run(halves.lower, positions, ends, input_ids=ids)
    )
    if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4):
        raise BadInput(f"a {backbone.config.model_type} backbone cannot be cut in two: use train_layers=None")


def run(
    part: nn.Module, position_ids: torch.Tensor, end: torch.Tensor, **inputs: torch.Tensor
) -> torch.Tensor:
    """Last hidden state [B, L, D] of woven rows, each token seeing its own sample alone (train/weave.py)."""
    mask = path_mask(end)
    return part(position_ids=position_ids, attention_mask=mask, use_cache=False, **inputs).last_hidden_state


class Features:
    """Hidden states of samples in one memory-mapped file, written in shards by the workers and read by all.

    Samples are woven into one prefix tree, so tokens that share everything before them share one place (and
    one computation per row). Every process computes the same layout without talking.
    """

    def __init__(self, path: Path, samples: Sequence[Encoded], width: int) -> None:
        self.path, self.width = path, width
        self.samples = sorted_distinct([sample.ids for sample in samples])
        whole = weave(self.samples)
        self.total = len(whole.ids)
        self._places = {ids.tobytes(): at for ids, at in zip(self.samples, whole.places, strict=True)}

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.total * self.width * 4

    def create(self) -> None:
        """Reserves the file; one process calls it before any `fill`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.memmap(self.path, dtype=np.float32, mode="w+", shape=(self.total, self.width)).flush()

    @torch.no_grad()
    def fill(self, lower: nn.Module, rank: int, world: int, row_length: int = 512) -> int:
        """Computes and writes this rank's share (every world-th row of neighbours); returns the tokens
        computed."""
        store = np.memmap(self.path, dtype=np.float32, mode="r+", shape=(self.total, self.width))
        device = next(lower.parameters()).device
        done = 0
        for row in neighbours(self.samples, row_length)[rank::world]:
            woven = weave(row)
            tensors = (
                torch.from_numpy(a).unsqueeze(0).to(device) for a in (woven.ids, woven.depth, woven.end)
            )
            ids, depth, end = tensors
            hidden = run(lower, depth, end, input_ids=ids)[0].float().cpu().numpy()
            for sample, at in zip(row, woven.places, strict=True):
                store[self._places[sample.tobytes()]] = hidden[at]
            done += len(woven.ids)
        store.flush()
        return done

    def open(self) -> np.memmap:
        """The filled file, read-only."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=(self.total, self.width))

    def gather(
        self, store: np.memmap, rows: Sequence[Sequence[int]], samples: Sequence[Encoded]
    ) -> torch.Tensor:
        """Hidden states [B, L, D] of rows as `collate` lays them out, zeros on padding."""
        wovens = [weave([samples[i].ids for i in row]) for row in rows]
        out = np.zeros((len(rows), max(len(w.ids) for w in wovens), self.width), dtype=np.float32)
        for b, (row, woven) in enumerate(zip(rows, wovens, strict=True)):
            for index, at in zip(row, woven.places, strict=True):
                out[b, at] = store[self._places[samples[index].ids.tobytes()]]
        return torch.from_numpy(out)
