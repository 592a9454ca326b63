"""The local engine: a model on torch in this process.

What answers a call follows from the model's kind: a causal language model samples, scores and gives hidden
states; an embedder gives vectors; a streaming guard reads tokens. Models that differ only in how they are
used (base, instruct, a hidden layer) share one set of weights. (A fitted head needs no engine: see head.py.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ray_jobs.engine.calls import (
    Completion,
    Failure,
    Message,
    Model,
    Prompt,
    Sampling,
    Scores,
    TokenScores,
    Vector,
)
from ray_jobs.engine.weights import form


class LocalModel:
    """A loaded model, or another use of the one that `shared` holds.

    `progress` is called at every step of the work. Raises BadInput, in one sentence, when the model cannot be
    loaded; a call that this kind of model cannot answer raises TypeError.
    """

    def __init__(
        self, model: Model, progress: Callable[[], None] = lambda: None, shared: "LocalModel | None" = None
    ) -> None:
        self.model, self.progress, self.form = model, progress, form(model)
        self.loaded: Any = shared.loaded if shared else load(model)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One sampled text per prompt and seed."""
        from ray_jobs.engine.generate import generate

        if sampling.regex or sampling.schema:
            raise TypeError("the local engine cannot hold a text to a regular expression or a JSON schema")
        if sampling.choice:
            return self._choose(prompts, sampling, seeds)
        return generate(
            self._get("language", "generate"), self._encode(prompts), sampling, seeds, self.progress
        )

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """Probabilities over each prompt's continuations."""
        from ray_jobs.engine.score import score

        return score(self._get("language", "score"), self._encode(prompts), continuations, self.progress)

    def _choose(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One of the stated choices per prompt and seed, by their probabilities to the power of 1/temperature."""
        from ray_jobs.engine.sampling import uniforms

        scored = self.score(prompts, [sampling.choice] * len(prompts))
        draws = uniforms(np.array(seeds, np.uint64), np.zeros(len(seeds)))
        return [
            told if isinstance(told, Failure) else chosen(told, sampling, float(draw))
            for told, draw in zip(scored, draws, strict=True)
        ]

    def score_tokens(self, conversations: Sequence[list[Message]]) -> list[TokenScores | Failure]:
        """A streaming guard's verdicts on the last assistant turn, token by token."""
        guard = self._get("stream", "score tokens")
        from ray_jobs.engine.stream import score_tokens

        return score_tokens(guard, conversations, self.progress)

    def embed(self, texts: Sequence[Prompt]) -> list[Vector | Failure]:
        """One vector per text; a reward model's is its score."""
        if self.form in ("sentence", "reward"):
            return self.loaded.embed(texts, self.progress)
        from ray_jobs.engine.features import last_hidden

        lm = self._get("language", "embed")
        layer = int(self.model.option("layer", lm.config.num_hidden_layers))
        return last_hidden(lm, self._encode(texts), layer, self.progress)

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int] | Failure]:
        return [self.loaded.encode(prompt, self.model.kind != "base") for prompt in prompts]

    def _get(self, needed: str, call: str) -> Any:
        if self.form != needed:
            raise TypeError(f"model {self.model.name!r} is of kind {self.model.kind!r}: it cannot {call}")
        return self.loaded


def chosen(told: Scores, sampling: Sampling, draw: float) -> Completion:
    """The choice at `draw` in [0, 1) of the distribution over choices; the likeliest at temperature 0."""
    if sampling.temperature <= 0:
        return Completion(sampling.choice[int(np.argmax(told.probabilities))], "stop", told.prompt_tokens, 1)
    logs = np.log(np.maximum(told.probabilities, 1e-300)) / sampling.temperature
    powers = np.exp(logs - logs.max())
    at = int(np.searchsorted(np.cumsum(powers) / powers.sum(), draw, side="right"))
    return Completion(sampling.choice[min(at, len(powers) - 1)], "stop", told.prompt_tokens, 1)


def load(model: Model) -> Any:
    """The object behind a model: CausalLM, SentenceEmbedder, StreamModel or RewardModel, by its form."""
    shape = form(model)
    if shape == "reward":
        from ray_jobs.engine.reward import RewardModel

        return RewardModel(model)
    if shape == "sentence":
        from ray_jobs.engine.features import SentenceEmbedder

        return SentenceEmbedder(model)
    if shape == "stream":
        from ray_jobs.engine.stream import StreamModel

        return StreamModel(model)
    from ray_jobs.engine.causal import CausalLM

    return CausalLM(model)
