"""The guards' losses, as METHOD fixes them: pure functions of logits and targets.

Gen: cross-entropy of the answer's tokens. Stream, one query position or one response of n tokens per sample:
`Lq = CE(q-risk) + CE(q-cat)` and `Lr = 1/n Σ CE(r-risk) + CE(r-cat)`, a category term counting only where the
true risk is not a safe one. n counts every labelled token of the response, so a category term weighs 1/n as
its risk term. All return sums and the caller divides by the step's global count: shards of any size then add
up to one exact mean. Deviation: samples may carry weights against class imbalance; with weights of 1 the
formulas are exact.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

IGNORE = -100


def answer_loss(logits_NV: torch.Tensor, labels_N: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Sum of weighted token cross-entropies; positions labelled IGNORE add nothing."""
    token_N = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORE, reduction="none")
    return (token_N * weight_N).sum()


def token_loss(
    risk_logits_NR: torch.Tensor,
    category_logits_NC: torch.Tensor,
    risk_N: torch.Tensor,
    category_N: torch.Tensor,
    safe: Sequence[int],
) -> torch.Tensor:
    """CE(risk) + CE(category) per position, [N]; 0 where risk is IGNORE.

    The category term counts only where the risk is labelled, not in `safe`, and the category is labelled.
    """
    risk_term_N = F.cross_entropy(risk_logits_NR.float(), risk_N, ignore_index=IGNORE, reduction="none")
    not_safe_N = risk_N != IGNORE
    for index in safe:
        not_safe_N = not_safe_N & (risk_N != index)
    counted_N = torch.where(not_safe_N, category_N, torch.full_like(category_N, IGNORE))
    category_term_N = F.cross_entropy(
        category_logits_NC.float(), counted_N, ignore_index=IGNORE, reduction="none"
    )
    return risk_term_N + category_term_N


def sample_means(loss_N: torch.Tensor, segment_N: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Sum over samples of weight x mean of the sample's position losses.

    `segment_N` numbers the samples (any whole numbers from 0), `weight_N` repeats each sample's weight.
    """
    if not len(loss_N):
        return loss_N.sum()
    count_S = torch.bincount(segment_N)
    return (loss_N * weight_N / count_S[segment_N]).sum()
