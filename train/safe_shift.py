"""How far the safe logit of a response's tokens is raised, so that responses are flagged, and where they turn.

A response is flagged at the first two tokens running that are (METHOD.md §6): the first of as many looks as it has
tokens, so that a guard whose single looks are right flags too much and too early. `fitted` chooses the shift on
held-out responses; the config carries it, and every reading of the response heads applies it (StreamGuard.heads).
"""

from collections.abc import Sequence

import numpy as np
import torch

from train.data import IGNORE, RESPONSE, Encoded
from train.stream_model import StreamGuard
from train.stream_score import states

LEAST = (
    10  # held-out responses that violate, and such in which a flag can be wrong; with fewer nothing is fitted
)
WITHIN = 3  # tokens from the turn on in which a flag is in time


def fitted(guard: StreamGuard, samples: Sequence[Encoded]) -> float:
    """The shift for a guard that has none yet, by held-out samples (prompts among them are left aside)."""
    judged = [sample for sample in samples if (sample.targets["branch"] == RESPONSE).any()]
    turns = np.array([_turn(guard, sample) for sample in judged], dtype=float)
    violating = int(np.isfinite(turns).sum())
    if min(violating, int((turns > 0).sum())) < LEAST:
        return 0.0
    return best_shift(margins(guard, judged), violating)


def _turn(guard: StreamGuard, sample: Encoded) -> float:
    """The first of the response's labelled tokens that violates; infinity where none does."""
    safe = [guard.config.maps.risk.index(name) for name in guard.config.maps.safe]
    risk = sample.targets["risk"][sample.targets["branch"] == RESPONSE]
    flagged = ~np.isin(risk, [IGNORE, *safe])
    return float(flagged.argmax()) if flagged.any() else np.inf


@torch.inference_mode()
def margins(guard: StreamGuard, samples: Sequence[Encoded]) -> np.ndarray:
    """[n, 3] per response how far two tokens running prefer a violating class to a safe one, at the most: where the
    response is still safe, where it turns (WITHIN tokens), and anywhere; -inf where there are no such two.

    A safe response never turns; one that violates from its first labelled token on turns at all of them.
    """
    safe = [guard.config.maps.risk.index(name) for name in guard.config.maps.safe]
    violating = [i for i in range(len(guard.config.maps.risk)) if i not in safe]
    told = np.full((len(samples), 3), -np.inf)
    for index, hidden in states(guard, samples):
        labels = samples[index].targets
        here = labels["branch"][labels["branch"] != IGNORE] == RESPONSE
        logits = guard.heads(hidden[torch.from_numpy(here).to(hidden.device)])[0].float().cpu().numpy()
        by_token = logits[:, violating].max(axis=1) - logits[:, safe].max(axis=1)
        running = np.minimum(by_token[1:], by_token[:-1])
        turn = int(min(_turn(guard, samples[index]), len(by_token)))
        parts = running[:turn], running[turn : turn + WITHIN if turn else None], running
        told[index] = [part.max(initial=-np.inf) for part in parts]
    return told


def best_shift(looks: np.ndarray, violating: int) -> float:
    """The shift by which responses with these margins [n, 3] are flagged best; of equal ones the nearest to none.

    Best by F1 against the `violating` ones, where a response that is flagged ahead of its turn, or long after it,
    counts as flagged and not as found.
    """
    known = np.unique(looks[np.isfinite(looks)])
    shifts = np.concatenate([[0.0], (known[1:] + known[:-1]) / 2])
    early, in_time, anywhere = looks.T

    def above(some: np.ndarray) -> np.ndarray:
        return len(some) - np.searchsorted(np.sort(some), shifts, side="right")

    found = in_time > early
    hits = above(in_time[found]) - above(early[found])
    f1 = 2 * hits / np.maximum(above(anywhere) + violating, 1)
    return float(min(zip(-f1, np.abs(shifts), shifts, strict=True))[2])
