"""How far the safe logit of a response's tokens is raised, so that the response as a whole is judged well.

A response is flagged where two tokens running are (METHOD.md §6): the worst of as many looks as it has tokens, so that
a guard whose single looks are right flags too much where no token labels taught it better. `fitted` chooses the shift
on held-out responses; the config carries it, and every reading of the response heads applies it (StreamGuard.heads).
"""

from collections.abc import Sequence

import numpy as np
import torch

from train.data import IGNORE, RESPONSE, Encoded
from train.stream_model import StreamGuard
from train.trunk import run
from train.weave import collate, pack

LEAST = 10  # held-out responses of either kind; with fewer nothing is fitted
ROW = 512


def fitted(guard: StreamGuard, samples: Sequence[Encoded]) -> float:
    """The shift for a guard that has none yet, by held-out samples (prompts among them are left aside)."""
    judged = [sample for sample in samples if (sample.targets["branch"] == RESPONSE).any()]
    safe = [guard.config.maps.risk.index(name) for name in guard.config.maps.safe]
    flagged = np.array([bool(~np.isin(_said(sample), safe).all()) for sample in judged], dtype=bool)
    if min(flagged.sum(), (~flagged).sum()) < LEAST:
        return 0.0
    return best_shift(margins(guard, judged, safe), flagged)


def _said(sample: Encoded) -> np.ndarray:
    """The risks that the response's labelled tokens carry."""
    risk: np.ndarray = sample.targets["risk"][sample.targets["branch"] == RESPONSE]
    return risk[risk != IGNORE]


@torch.inference_mode()
def margins(guard: StreamGuard, samples: Sequence[Encoded], safe: Sequence[int]) -> np.ndarray:
    """[n] by how much the two labelled tokens running that say so most prefer a violating class to a safe one."""
    told = np.full(len(samples), -np.inf)
    violating = [i for i in range(len(guard.config.maps.risk)) if i not in safe]
    longest = max(len(sample) for sample in samples)
    for row in pack([sample.ids for sample in samples], max(ROW, longest), seed=0):
        batch = collate([row], samples)
        batch = {name: tensor.to(guard.device) for name, tensor in batch.items()}
        hidden = run(guard.model, batch["position_ids"], batch["end"], input_ids=batch["input_ids"])
        here = batch["branch"] == RESPONSE
        logits = guard.heads(hidden.flatten(0, 1)[batch["at"][here]])[0].float().cpu().numpy()
        by_token = logits[:, violating].max(axis=1) - logits[:, list(safe)].max(axis=1)
        segment = batch["segment"][here].cpu().numpy()
        for place, index in enumerate(row):
            mine = by_token[segment == place]
            told[index] = np.minimum(mine[1:], mine[:-1]).max(initial=-np.inf)
    return told


def best_shift(margin: np.ndarray, flagged: np.ndarray) -> float:
    """The shift above which a margin [n] flags best, by F1; of equal ones the nearest to none."""
    known = np.unique(margin[np.isfinite(margin)])
    shifts = np.concatenate([[0.0], (known[1:] + known[:-1]) / 2])
    said, hits = (
        len(some) - np.searchsorted(np.sort(some), shifts, side="right") for some in (margin, margin[flagged])
    )
    f1 = 2 * hits / np.maximum(said + flagged.sum(), 1)
    return float(min(zip(-f1, np.abs(shifts), shifts, strict=True))[2])
