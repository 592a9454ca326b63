"""What the fitted heads of `voters` read: vectors of texts, by kind of features.

"embed" and "hidden" come from a model as it is, "char_ngrams" from no model. "tuned" trains the embedder's upper layers
first (train/encoder.py), on the written rows alone: gold rows stay unseen, so that one training serves every fold of
them and costs no more than itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ray_jobs.step import Work
from synth.errors import BadInput

FEATURE_ROLES = {"embed": "embedder", "tuned": "embedder", "hidden": "hidden", "char_ngrams": ""}


@dataclass(frozen=True)
class Features:
    """vectors [n, D] of all items; `changed`: the weights that were trained for them, by name."""

    vectors: np.ndarray
    changed: dict[str, Any] = field(default_factory=dict)


def features_of(
    work: Work, kind: str, texts: list[str], labels: dict[str, np.ndarray], teaches: np.ndarray
) -> Features:
    """The vectors of `texts`, by kind of features. `labels`: of every output, indices [n] or -1; `teaches` [n]: which
    texts an encoder may be taught."""
    from ray_jobs.engine.head import ngram_vectors

    if kind == "tuned":
        return tuned(work, texts, {name: np.where(teaches, values, -1) for name, values in labels.items()})
    if not FEATURE_ROLES[kind]:
        return Features(ngram_vectors(texts))
    return Features(embedded(work, FEATURE_ROLES[kind], texts))


def tuned(work: Work, texts: list[str], labels: dict[str, np.ndarray]) -> Features:
    """The embedder, loaded once more in this process and taught `labels`. BadInput when it cannot be trained here."""
    from ray_jobs.engine.features import SentenceEmbedder
    from ray_jobs.engine.weights import form
    from train.encoder import EncoderTrainer

    model = work.engines.roles["embedder"]
    if model.engine != "local" or form(model) != "sentence":
        raise BadInput(
            "features 'tuned' train the upper layers of a sentence encoder on the local engine; the role "
            f"'embedder' is {model.name} on {model.engine}"
        )
    exact = replace(model, options=tuple(option for option in model.options if option[0] != "dtype"))
    try:
        encoder = SentenceEmbedder(exact).model
        trainer = EncoderTrainer(encoder, texts, replace(work.config.encoder, seed=work.seed))
    except ValueError as error:
        raise BadInput(f"features 'tuned' cannot train {model.name}: {error}") from error
    changed = trainer.fit(labels)
    return Features(trainer.vectors(), changed)


def embedded(work: Work, role: str, texts: list[str]) -> np.ndarray:
    """[n, D] vectors of the model bound to `role`. BadInput when a text cannot be embedded."""
    from ray_jobs.engine import Failure

    vectors = []
    for vector in work.engines.get(role).embed(texts):
        if isinstance(vector, Failure):
            raise BadInput(f"a row cannot be embedded: {vector.reason}")
        vectors.append(vector)
    return np.stack(vectors)
