"""The local engine: one model on torch in this process, with the four calls.
 What answers a call follows from the model's kind: a causal language model samples, scores and gives hidden
states; an embedder gives vectors; a fitted head scores by the vectors of its base model; a streaming guard
reads tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ray_jobs.engine import head as heads
from ray_jobs.engine.calls import Completion, Failure, Message, Model, Prompt, Sampling, Scores, TokenScores
from ray_jobs.engine.weights import fingerprint, locate
from synth.errors import BadInput

if TYPE_CHECKING:  # a head on character n-grams needs neither torch nor transformers
    from ray_jobs.engine.causal import CausalLM
    from ray_jobs.engine.features import SentenceEmbedder


class LocalModel:
    """A loaded model. Raises BadInput, in one sentence, when it cannot be loaded.

    `progress` is called at every step of the work; a call that this kind of model cannot answer raises
    TypeError.
    """

    def __init__(self, model: Model, progress: Callable[[], None] = lambda: None) -> None:
        self.model, self.progress = model, progress
        self.lm: CausalLM | None = None
        self.embedder: SentenceEmbedder | None = None
        self.head: heads.Head | None = None
        self.base: LocalModel | None = None
        if model.kind == "head":
            self._load_head()
        elif model.kind == "stream_guard":
            self._load_stream_guard()
        elif model.kind == "embedder" and not _is_causal(model):
            from ray_jobs.engine.features import SentenceEmbedder

            self.embedder = SentenceEmbedder(model)
        else:
            from ray_jobs.engine.causal import CausalLM

            self.lm = CausalLM(model)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One sampled text per prompt and seed."""
        from ray_jobs.engine.generate import generate

        return generate(self._language_model("generate"), prompts, sampling, seeds, self.progress)

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        """Probabilities over each prompt's continuations; a head's over those of its labels."""
        if self.head is not None:
            return self._score_by_head(prompts, continuations)
        from ray_jobs.engine.score import score

        return score(self._language_model("score"), prompts, continuations, self.progress)

    def score_tokens(self, conversations: Sequence[list[Message]]) -> list[TokenScores | Failure]:
        """A streaming guard's verdicts on the last assistant turn, token by token."""
        if self.model.kind != "stream_guard":
            raise TypeError(
                f"model {self.model.name!r} is of kind {self.model.kind!r}: it gives no verdict per token"
            )
        from ray_jobs.engine.stream import score_tokens

        return score_tokens(self.guard, self.tokenizer, conversations, self.progress)

    def embed(self, texts: Sequence[Prompt]) -> list[np.ndarray | Failure]:
        """One float32 vector per text."""
        if self.embedder is not None:
            return self.embedder.embed(texts, self.progress)[0]
        from ray_jobs.engine.features import last_hidden

        lm = self._language_model("embed")
        layer = int(self.model.option("layer", lm.config.num_hidden_layers))
        return last_hidden(lm, texts, layer, self.progress)[0]

    def _language_model(self, call: str) -> "CausalLM":
        if self.lm is None:
            raise TypeError(f"model {self.model.name!r} is of kind {self.model.kind!r}: it cannot {call}")
        return self.lm

    def _load_head(self) -> None:
        self.head = heads.load(locate(self.model.name))
        if self.head.base is None:
            return
        if (found := fingerprint(self.head.base)) != self.head.base_fingerprint:
            raise BadInput(
                f"head {self.model.name!r} was fitted on {self.head.base_fingerprint}, but {found} is at hand"
            )
        runtime = tuple(option for option in self.model.options if option[0] != "layer")
        layer = tuple(option for option in self.head.base.options if option[0] == "layer")
        self.base = LocalModel(replace(self.head.base, options=runtime + layer), self.progress)

    def _load_stream_guard(self) -> None:
        from ray_jobs.engine.stream import load

        self.guard, self.tokenizer = load(self.model)

    def vectors(self, prompts: Sequence[Prompt]) -> list[np.ndarray | Failure]:
        """The vectors this head reads: its base model's, or character n-grams."""
        if self.base is not None:
            return self.base.embed(prompts)
        texts = [
            prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
            for prompt in prompts
        ]
        return list(heads.ngram_vectors(texts)) if texts else []

    def _score_by_head(
        self, prompts: Sequence[Prompt], continuations: Sequence[tuple[str, ...]]
    ) -> list[Scores | Failure]:
        assert self.head is not None
        vectors = self.vectors(prompts)
        good = [i for i, vector in enumerate(vectors) if not isinstance(vector, Failure)]
        results: list[Scores | Failure] = [vector for vector in vectors]  # type: ignore[misc]
        if not good:
            return results
        answers = self.head.predict(np.stack([vectors[i] for i in good]))  # type: ignore[arg-type]
        for row, i in enumerate(good):
            chosen = tuple(float(answers[name][row, at]) for name, at in self.head.columns(continuations[i]))
            results[i] = Scores(chosen, False, 0)
        return results


def _is_causal(model: Model) -> bool:
    """Whether an embedder is a language model read at its last token: a model without sentence-transformers parts."""
    import json

    source = Path(locate(model.name))
    if not source.is_dir():
        return bool(dict(model.options).get("layer"))
    if (source / "modules.json").is_file() or not (source / "config.json").is_file():
        return False
    architectures = json.loads((source / "config.json").read_text()).get("architectures") or [""]
    return any("CausalLM" in name for name in architectures)
