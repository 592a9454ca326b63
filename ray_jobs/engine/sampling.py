"""Drawing tokens cheaply and reproducibly.

Top-k comes first, so that softmax, sorting and cumulative sums run over 50 values instead of a vocabulary
(the order top-k, temperature, top-p is that of transformers; a temperature does not change which k are the
largest). Each row spends ONE uniform number per step: splitmix64 (Steele, Lea & Flood, 2014) of its own
seed and step, so a row's draws depend neither on its neighbours in the batch nor on how often the batch was
cut. The token is the inverse of the cumulative distribution at that number. What remains of the batch is
rounding: logits differ in the last bits with the batch's shape, and a draw that lands within that of a
border can fall on the other side.
"""

import numpy as np
import torch

from ray_jobs.engine.calls import Sampling

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) per row for its seed [B] and step [B] (any non-negative integers)."""
    with np.errstate(over="ignore"):
        z = _scramble(seeds.astype(np.uint64)) + (steps.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        return (_scramble(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def draw(logits_BV: torch.Tensor, sampling: Sampling, uniform_B: np.ndarray) -> torch.Tensor:
    """One token id per row, [B], on the logits' device."""
    if sampling.temperature <= 0:
        return logits_BV.argmax(dim=-1)
    vocabulary = logits_BV.shape[-1]
    k = min(sampling.top_k or vocabulary, vocabulary)
    value_BK, token_BK = logits_BV.topk(k, dim=-1)
    probability_BK = torch.softmax(value_BK.double() / sampling.temperature, dim=-1)
    before_BK = probability_BK.cumsum(dim=-1) - probability_BK
    # The smallest set that reaches top_p: a token stays while what comes before it is below. The first
    # always does.
    probability_BK = probability_BK.masked_fill(before_BK >= sampling.top_p, 0.0)
    cumulative_BK = probability_BK.cumsum(dim=-1)
    uniform_B1 = torch.as_tensor(uniform_B, device=logits_BV.device)[:, None]
    index_B = (cumulative_BK <= uniform_B1 * cumulative_BK[:, -1:]).sum(dim=-1)
    last_B = (probability_BK > 0).sum(dim=-1) - 1
    return token_BK.gather(1, torch.minimum(index_B, last_B)[:, None])[:, 0]
