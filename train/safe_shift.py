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
from train.stream_score import states

LEAST = 10  # held-out responses of either kind; with fewer nothing is fitted


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
    for index, hidden in states(guard, samples):
        branch = samples[index].targets["branch"]
        here = torch.from_numpy(branch[branch != IGNORE] == RESPONSE).to(hidden.device)
        logits = guard.heads(hidden[here])[0].float().cpu().numpy()
        by_token = logits[:, violating].max(axis=1) - logits[:, list(safe)].max(axis=1)
        told[index] = np.minimum(by_token[1:], by_token[:-1]).max(initial=-np.inf)
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
