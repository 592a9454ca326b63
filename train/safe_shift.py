"""How far the safe logit is raised, so that as many prompts, and as many responses, are flagged as violate.

A response is flagged where two tokens running are (METHOD.md §6): the worst of as many looks as it has tokens, so that
a guard whose single looks are right flags too much where no token labels taught it better. A prompt has one look, which
a balanced or an overfitted training leaves off its level. `fitted` chooses both shifts on held-out samples; the config
carries them, and every reading of the heads applies them (StreamGuard.heads).
"""

from collections.abc import Sequence

import numpy as np
import torch

from train.data import IGNORE, QUERY, RESPONSE, Encoded
from train.stream_model import SHIFTS, StreamGuard
from train.stream_score import states

LEAST = 10  # held-out texts of either kind; with fewer nothing is fitted


def fitted(guard: StreamGuard, samples: Sequence[Encoded]) -> dict[str, float]:
    """Both shifts, by their names in the config, for a guard that has none yet."""
    safe = [guard.config.maps.risk.index(name) for name in guard.config.maps.safe]
    shifts = {}
    for branch, name in zip((RESPONSE, QUERY), SHIFTS, strict=True):
        judged = [sample for sample in samples if (sample.targets["branch"] == branch).any()]
        flagged = sum(bool(~np.isin(_said(sample, branch), safe).all()) for sample in judged)
        enough = min(flagged, len(judged) - flagged) >= LEAST
        shifts[name] = level(margins(guard, judged, safe, branch), flagged) if enough else 0.0
    return shifts


def _said(sample: Encoded, branch: int) -> np.ndarray:
    """The risks that the branch's labelled tokens carry."""
    risk: np.ndarray = sample.targets["risk"][sample.targets["branch"] == branch]
    return risk[risk != IGNORE]


@torch.inference_mode()
def margins(guard: StreamGuard, samples: Sequence[Encoded], safe: Sequence[int], branch: int) -> np.ndarray:
    """[n] by how much a violating class is preferred to a safe one: by the prompt's one look, or by the two labelled
    tokens running of the response that say so most (-inf where it has one)."""
    told = np.full(len(samples), -np.inf)
    violating = [i for i in range(len(guard.config.maps.risk)) if i not in safe]
    for index, hidden in states(guard, samples):
        branches = samples[index].targets["branch"]
        here = torch.from_numpy(branches[branches != IGNORE] == branch).to(hidden.device)
        logits = guard.heads(hidden[here], "query_" if branch == QUERY else "")[0].float().cpu().numpy()
        looks = logits[:, violating].max(axis=1) - logits[:, list(safe)].max(axis=1)
        if branch == RESPONSE:
            looks = np.minimum(looks[1:], looks[:-1])
        told[index] = looks.max(initial=-np.inf)
    return told


def level(margin: np.ndarray, flagged: int) -> float:
    """The shift above which `flagged` of the margins [n] lie, 0 < flagged < n; none where that is no number."""
    order = np.sort(margin)[::-1]
    shift = float(order[flagged - 1] + order[flagged]) / 2
    return shift if np.isfinite(shift) else 0.0
