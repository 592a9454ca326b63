"""A streaming guard behind `score_tokens`: train/stream_score.py does the work, this puts it on a device."""

from collections.abc import Callable, Sequence

from ray_jobs.engine.calls import Failure, Message, Model, TokenScores
from ray_jobs.engine.causal import place
from ray_jobs.engine.weights import locate
from train.stream_score import load_guard, score_conversations

CONVERSATIONS = 64  # scored between two signs of progress
MARKERS = 8  # tokens of layout around a turn, at most


class StreamModel:
    """A loaded streaming guard, in the published layout or our own. Raises BadInput when it is none."""

    def __init__(self, model: Model) -> None:
        where = place(model)
        guard, self.tokenizer = load_guard(locate(model.name))
        self.guard = guard.to(where.device, where.dtype)  # type: ignore[call-arg, arg-type]
        self.context = int(getattr(guard.config.backbone_config, "max_position_embeddings", 0) or 2**31)

    def unreadable(self, conversation: Sequence[Message]) -> str:
        """Why a conversation cannot be scored, or ""."""
        roles = [turn["role"] for turn in conversation]
        if not roles or roles[-1] not in ("user", "assistant") or "user" not in roles[-2:]:
            return "the conversation does not end with a user turn, or with an assistant turn after one"
        tokens = sum(len(self.tokenizer(turn["content"])["input_ids"]) + MARKERS for turn in conversation)
        if tokens > self.context:
            return f"the conversation has about {tokens} tokens, the guard's context holds {self.context}"
        return ""


def score_tokens(
    model: StreamModel, conversations: Sequence[list[Message]], progress: Callable[[], None] = lambda: None
) -> list[TokenScores | Failure]:
    """Verdicts on every conversation's last user turn, and on each token of the assistant turn after it."""
    reasons = [model.unreadable(conversation) for conversation in conversations]
    results: list[TokenScores | Failure] = [Failure(reason) for reason in reasons]
    good = [i for i, reason in enumerate(reasons) if not reason]
    for at in range(0, len(good), CONVERSATIONS):
        part = good[at : at + CONVERSATIONS]
        scores = score_conversations(model.guard, model.tokenizer, [conversations[i] for i in part])
        for i, found in zip(part, scores, strict=True):
            results[i] = TokenScores(
                found.offsets,
                found.risk,
                found.category,
                found.query_risk,
                found.query_category,
                found.tokens,
            )
        progress()
    return results
