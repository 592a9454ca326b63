"""Probabilities of stated continuations from one prefill, without decoding or parsing.

The log-probability of a continuation is the sum over its tokens of log p(token | prompt, tokens before
it); the probabilities returned are the softmax of those sums over the continuations asked about (no length
normalisation). The prompt is prefilled once. All first tokens are read from the logits at its end; further
tokens are fed to the same slot right behind the prompt, one continuation over the other: nothing is copied.
What all continuations of a prompt begin with ("Safety:") is read with the prompt, since it adds the same to every sum.
Prompt and continuation are tokenized apart, so a continuation that follows a space should begin with it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ray_jobs.engine.calls import Failure, Scores
from ray_jobs.engine.causal import CausalLM
from ray_jobs.engine.prefix import batch_order

LOGIT_ROWS = 512  # positions whose logits (a vocabulary each) are held at once


def score(
    lm: CausalLM, encoded: Sequence[list[int] | Failure], continuations: Sequence[tuple[str, ...]],
    progress: Callable[[], None] = lambda: None,
) -> list[Scores | Failure]:  # fmt: skip
    """For each encoded prompt, the probabilities of its own continuations."""
    results: list[Scores | Failure | None] = [None] * len(encoded)
    rows: list[tuple[int, list[int], list[list[int]]]] = []
    lengths = [0 if isinstance(ids, Failure) else len(ids) for ids in encoded]
    for i, (ids, texts) in enumerate(zip(encoded, continuations, strict=True)):
        endings = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        if isinstance(ids, Failure):
            results[i] = ids
        elif not endings or not all(endings):
            results[i] = Failure("there is no continuation to score, or an empty one")
        elif len(ids) + max(map(len, endings)) > lm.context:
            results[i] = Failure(f"prompt and continuation exceed the model's context of {lm.context} tokens")
        else:
            same = _begin_alike(endings)
            rows.append((i, ids + endings[0][:same], [ending[same:] for ending in endings]))
    rows.sort(key=lambda row: (*batch_order(row[1]), row[0]))
    with torch.inference_mode():
        while rows:
            longest = max(len(row[1]) for row in rows) + max(len(end) for row in rows for end in row[2])
            batch, rows = rows[: lm.room(longest)], rows[lm.room(longest) :]
            lm.cache.shape(len(batch), longest)
            batch = [batch[i] for i in lm.prefill([ids for _, ids, _ in batch])]
            for (i, _, _), logs in zip(batch, _log_probabilities(lm, batch), strict=True):
                results[i] = Scores(tuple(_softmax(logs)), False, lengths[i])
            progress()
    return results  # type: ignore[return-value]


def _begin_alike(endings: list[list[int]]) -> int:
    """How many first tokens all endings share; each keeps at least one of its own."""
    most = min(map(len, endings)) - 1
    return next((at for at in range(most) if len({ending[at] for ending in endings}) > 1), most)


def _softmax(logs: Sequence[float]) -> list[float]:
    weights = np.exp(np.array(logs) - max(logs))
    return (weights / weights.sum()).tolist()


def _log_probabilities(
    lm: CausalLM, batch: list[tuple[int, list[int], list[list[int]]]]
) -> list[list[float]]:
    """Summed log-probabilities per row and continuation; the prompts lie in the slots, but for their ends."""
    prompts = [ids for _, ids, _ in batch]
    first_BV = _log_softmax(
        lm, lm.tensor([[ids[-1]] for ids in prompts]), lm.tensor([len(p) - 1 for p in prompts])
    )
    logs = [
        first_BV[row, 0, [ending[0] for ending in endings]].tolist()
        for row, (_, _, endings) in enumerate(batch)
    ]
    for k in range(max(len(endings) for _, _, endings in batch)):
        endings = [row[2][k] if k < len(row[2]) else row[2][0] for row in batch]
        queries = max(map(len, endings)) - 1
        if queries == 0:
            continue
        size = max(1, LOGIT_ROWS // queries)
        for low in range(0, len(batch), size):
            part = endings[low : low + size]
            token_BQ = lm.tensor([(ending[:-1] + [0] * queries)[:queries] for ending in part])
            start_B = lm.tensor([len(ids) for ids in prompts[low : low + size]])
            log_BQV = _log_softmax(lm, token_BQ, start_B, low)
            for row, ending in enumerate(part):
                if k < len(logs[low + row]):
                    picked = log_BQV[row, list(range(len(ending) - 1)), ending[1:]]
                    logs[low + row][k] += float(picked.sum())
    return logs


def _log_softmax(lm: CausalLM, token_BQ: torch.Tensor, start_B: torch.Tensor, low: int = 0) -> torch.Tensor:
    logits = lm.extend(token_BQ, start_B, low)
    assert logits is not None
    return torch.log_softmax(logits.float(), dim=-1)
