"""What the fitted heads of `voters` read: vectors of texts, by kind of features.

"embed" and "hidden" come from a model as it is and "char_ngrams" from no model: the same vectors whoever is fitted on
them. "tuned" trains the embedder's upper layers on the labelled rows first (train/encoder.py), so its vectors know
these rows' labels: whoever answers for a row out of fold needs an encoder that was trained without its group.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ray_jobs.step import Work
from synth.errors import BadInput
from train.encoder import EncoderConfig

FEATURE_ROLES = {"embed": "embedder", "tuned": "embedder", "hidden": "hidden", "char_ngrams": ""}


class Features(Protocol):
    """Vectors [n, D] of all items, for a head that may learn from those in `seen` [n] only. `changed`: the weights, by
    name, that were trained for the vectors asked for last."""

    changed: dict[str, Any]

    def vectors(self, seen: np.ndarray) -> np.ndarray: ...


@dataclass
class Fixed:
    """The same vectors for every head."""

    made: np.ndarray
    changed: dict[str, Any] = field(default_factory=dict)

    def vectors(self, seen: np.ndarray) -> np.ndarray:
        return self.made


class Tuned:
    """Vectors of an encoder that is trained, in this process, on what a head may learn from."""

    def __init__(
        self, work: Work, texts: list[str], labels: dict[str, np.ndarray], config: EncoderConfig
    ) -> None:
        from ray_jobs.engine.features import SentenceEmbedder
        from ray_jobs.engine.weights import form
        from train.encoder import EncoderTrainer

        model = work.engines.roles["embedder"]
        if model.engine != "local" or form(model) != "sentence":
            raise BadInput(
                "features 'tuned' train the upper layers of a sentence encoder on the local engine; the role "
                f"'embedder' is {model.name} on {model.engine}"
            )
        try:
            self.trainer = EncoderTrainer(SentenceEmbedder(model).model, texts, config)
        except ValueError as error:
            raise BadInput(f"features 'tuned' cannot train {model.name}: {error}") from error
        self.labels = labels
        self.changed: dict[str, Any] = {}

    def vectors(self, seen: np.ndarray) -> np.ndarray:
        self.changed = self.trainer.fit(self.labels, seen)
        return self.trainer.vectors()


def features_of(work: Work, kind: str, texts: list[str], labels: dict[str, np.ndarray]) -> Features:
    """The vectors of `texts`, by kind of features. `labels`: of every output, as train.encoder.tune takes them."""
    from ray_jobs.engine.head import ngram_vectors

    if kind == "tuned":
        return Tuned(work, texts, labels, replace(work.config.encoder, seed=work.seed))
    if not FEATURE_ROLES[kind]:
        return Fixed(ngram_vectors(texts))
    return Fixed(embedded(work, FEATURE_ROLES[kind], texts))


def embedded(work: Work, role: str, texts: list[str]) -> np.ndarray:
    """[n, D] vectors of the model bound to `role`. BadInput when a text cannot be embedded."""
    from ray_jobs.engine import Failure

    vectors = []
    for vector in work.engines.get(role).embed(texts):
        if isinstance(vector, Failure):
            raise BadInput(f"a row cannot be embedded: {vector.reason}")
        vectors.append(vector)
    return np.stack(vectors)
