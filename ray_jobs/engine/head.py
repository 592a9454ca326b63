"""A fitted head: linear classifiers on vectors of a text, kept as plain tensors and JSON.

The features of a text are an embedder's vector ("embed"), that of an embedder whose upper layers were trained on the
same questions ("tuned"), a causal model's hidden state at its last token ("hidden"), or hashed character n-grams
within words ("char_ngrams", 2 to 5 characters, sublinear counts, no model). Each output (severity, categories, refusal
…) is a class-balanced logistic regression on the standardised vector: a softmax over its labels when they exclude each
other, or one sigmoid per label. On 600 ToxicChat rows such a head on MiniLM vectors reached F1 0.79, where a small
language model asked in words was at chance.

A folder holds config.json (features, outputs, labels, and the fingerprint of the model whose vectors it
was fitted on) and model.safetensors ("<output>.weight" [labels, D], "<output>.bias" [labels], "mean" and
"scale" [D]); beside them, for "tuned", encoder.safetensors: the embedder's weights that training changed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ray_jobs.engine.calls import Model
from ray_jobs.engine.weights import IDENTITY_OPTIONS
from synth.errors import BadInput

TUNED = "encoder.safetensors"
NGRAM_BUCKETS = 2**15


@dataclass(frozen=True)
class Output:
    """One question. exclusive: its labels are alternatives (softmax), else each is its own yes or no."""

    name: str
    labels: tuple[str, ...]
    exclusive: bool = True


@dataclass(frozen=True)
class Head:
    """weights: per output ([labels, D], [labels]); mean and scale [D] standardise the vectors."""

    features: str
    outputs: tuple[Output, ...]
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]]
    mean: np.ndarray
    scale: np.ndarray
    base: Model | None = None
    base_fingerprint: str = ""

    def predict(self, vectors: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Probabilities [N, labels] of every output for vectors [N, D]."""
        centred = (np.asarray(vectors, dtype=np.float32) - self.mean) / self.scale
        return {
            output.name: _probabilities(
                centred @ self.weights[output.name][0].T + self.weights[output.name][1], output
            )
            for output in self.outputs
        }

    def columns(self, labels: Sequence[str]) -> list[tuple[str, int]]:
        """Where each label is answered: (output name, column). Raises BadInput for a label no output has."""
        known = {label: (output.name, i) for output in self.outputs for i, label in enumerate(output.labels)}
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise BadInput(
                f"the head answers {', '.join(map(repr, known))}, not {', '.join(map(repr, unknown))}"
            )
        return [known[label] for label in labels]


def ngram_vectors(texts: Sequence[str]) -> np.ndarray:
    """Hashed character n-gram vectors [N, 32768], float32, of unit length."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), n_features=NGRAM_BUCKETS, alternate_sign=False, norm=None
    )
    counts = hashing.transform(texts).astype(np.float32)
    counts.data = 1.0 + np.log(counts.data)
    vectors = counts.toarray()
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def fit(
    vectors: np.ndarray | Sequence[np.ndarray], outputs: Sequence[Output], targets: Mapping[str, np.ndarray],
    features: str, base: Model | None = None, base_fingerprint: str = "", strength: float | None = None,
) -> Head:  # fmt: skip
    """Fit every output on vectors [N, D].

    targets[name]: for an exclusive output label indices [N], −1 where the row has no answer; else 0/1 [N,
    labels]. A label that never (or always) occurs gets a constant answer from its share. strength: inverse
    L2 penalty C (default 0.1 on dense vectors, 10 on n-grams). Raises BadInput when an output has no
    labelled row.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if features == "char_ngrams":  # sparse by nature: standardising would drown the frequent in the rare
        mean, scale = np.zeros(vectors.shape[1], np.float32), np.ones(vectors.shape[1], np.float32)
    else:
        mean, scale = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
    if strength is None:
        strength = 10.0 if features == "char_ngrams" else 0.1 / np.sqrt(max(1, vectors.shape[1] / 384))
    inputs = _sparse(vectors) if features == "char_ngrams" else (vectors - mean) / scale
    weights = {}
    for output in outputs:
        target = np.asarray(targets[output.name])
        labelled = target >= 0 if output.exclusive else np.ones(len(target), dtype=bool)
        if not labelled.any():
            raise BadInput(f"no row has a label for {output.name!r}, so its head cannot be fitted")
        fitted = _fit_exclusive if output.exclusive else _fit_independent
        weights[output.name] = fitted(inputs[labelled], target[labelled], len(output.labels), float(strength))
    return Head(features, tuple(outputs), weights, mean, scale, base, base_fingerprint)


def _sparse(vectors: np.ndarray) -> Any:
    """Compressed rows: of 32768 buckets a text fills some hundreds."""
    from scipy.sparse import csr_matrix

    return csr_matrix(vectors)


def _fit_exclusive(
    vectors: Any, target: np.ndarray, labels: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial regression; a label without examples gets a bias that leaves it about one row's share."""
    weight = np.zeros((labels, vectors.shape[1]), np.float32)
    bias = np.full(labels, -np.log(len(target) + 1.0), np.float32)
    present = np.unique(target)
    if len(present) == 1:
        bias[present[0]] = 0.0
        return weight, bias
    model = _regression(strength).fit(vectors, target)
    if (
        len(present) == 2
    ):  # scikit-learn keeps one row for two classes: half of it, with either sign, is the same
        weight[present] = np.stack([-model.coef_[0] / 2, model.coef_[0] / 2])
        bias[present] = [-model.intercept_[0] / 2, model.intercept_[0] / 2]
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return weight, bias


def _fit_independent(
    vectors: Any, target: np.ndarray, labels: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    weight = np.zeros((labels, vectors.shape[1]), np.float32)
    bias = np.zeros(labels, np.float32)
    for label in range(labels):
        yes = int(target[:, label].sum())
        if 0 < yes < len(target):
            model = _regression(strength).fit(vectors, target[:, label])
            weight[label], bias[label] = model.coef_[0], model.intercept_[0]
        else:
            bias[label] = np.log((yes + 0.5) / (len(target) - yes + 0.5))
    return weight, bias


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)


def _probabilities(logits: np.ndarray, output: Output) -> np.ndarray:
    if not output.exclusive:
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -60, 60)))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def save(head: Head, folder: str | Path) -> None:
    """Write the head's folder whole or not at all; an older one there is replaced."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".head-", dir=target.parent))
    tensors = {"mean": head.mean, "scale": head.scale}
    for name, (weight, bias) in head.weights.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()},
              working / "model.safetensors")  # fmt: skip
    config = {
        "architectures": ["GuardmillHead"],
        "features": head.features,
        "base": asdict(_essence(head.base)) if head.base else None,
        "base_fingerprint": head.base_fingerprint,
        "outputs": [asdict(output) for output in head.outputs],
    }
    (working / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
    if target.exists():
        shutil.rmtree(target)
    os.rename(working, target)


def _essence(base: Model) -> Model:
    """The model without the options that only say how it runs."""
    return replace(base, options=tuple(option for option in base.options if option[0] in IDENTITY_OPTIONS))


def load(folder: str | Path) -> Head:
    """Read a head's folder. Raises BadInput, in one sentence, when it is not one."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
        outputs = tuple(Output(o["name"], tuple(o["labels"]), o["exclusive"]) for o in config["outputs"])
        weights = {o.name: (tensors[f"{o.name}.weight"], tensors[f"{o.name}.bias"]) for o in outputs}
        base = config["base"]
        if base is not None:
            base = Model(**{**base, "options": tuple((key, value) for key, value in base["options"])})
        return Head(config["features"], outputs, weights, tensors["mean"], tensors["scale"], base,
                    config["base_fingerprint"])  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadInput(f"{folder} is no fitted head: {type(error).__name__}: {error}") from error
