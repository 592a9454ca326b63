"""Human-labelled sets for the label benchmarks: texts, labels, groups and fixed vectors.

    toxicchat   prompts of real users; 2,801 rows, 384 violating
    gptfuzz     responses to attacks, grouped by question; 6,160 rows
    gold        the prompts of our own safety gold set, in ten languages (see `gold_prompts`)
    cold        Chinese posts, offensive or not; 6,431 rows, labelled half automatically

Vectors: all-MiniLM-L6-v2 on the first 128 tokens, for Chinese, which it does not read, TF-IDF of character 1- to
3-grams reduced to 256 dimensions by SVD; or multilingual-e5-small, the `local` recipe's teacher, on as many tokens. All
are made without labels. What was computed once is kept under build/bench/vectors.
"""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.eval_formats import read_file
from ray_jobs.voters import item_text
from synth.ids import stable_hash
from synth.policy import load_gold, load_policy

FILES = {
    "toxicchat": ("toxicchat_human/toxic_chat_train.json", "toxic-chat"),
    "gptfuzz": ("gptfuzz_labeled/train.csv", "gptfuzz"),
    "cold": ("cold_zh/dev.csv", "cold"),
}
KEPT = Path("build/bench/vectors")


@dataclass(frozen=True)
class LabelSet:
    """n rows: `violating` [n] as people said, `groups` of rows that belong together, `vectors` [n, D]."""

    name: str
    texts: tuple[str, ...]
    violating: np.ndarray
    groups: tuple[str, ...]
    vectors: np.ndarray

    def take(self, rows: np.ndarray) -> LabelSet:
        """Some rows."""
        texts, groups = (tuple(every[row] for row in rows) for every in (self.texts, self.groups))
        return replace(
            self, texts=texts, groups=groups, violating=self.violating[rows], vectors=self.vectors[rows]
        )


def load(bench: Path, name: str, limit: int = 0, e5: bool = False) -> LabelSet:
    """A set by name; with `limit` its rows of lowest hash. `e5`: vectors of the multilingual encoder."""
    file, form = FILES[name]
    rows = [row for row in read_file(str(bench / file), form).rows if row.violates is not None]
    if limit:
        rows = sorted(rows, key=lambda row: stable_hash(row.prompt, row.response))[:limit]
    texts = tuple(item_text(row.side, row.prompt, row.history, row.response) for row in rows)
    violating = np.array([row.violating("strict") for row in rows])
    make = multilingual if e5 else characters if name == "cold" else sentences
    return LabelSet(name, texts, violating, tuple(row.group for row in rows), kept(make, texts))


def gold_prompts() -> tuple[LabelSet, tuple[str, ...]]:
    """The safety policy's gold prompts, `violating` in the strict reading, and their severities."""
    policy = load_policy("safety")
    rows = [row for row in load_gold(policy) if row.side == "prompt"]
    texts = tuple(item_text(row.side, row.prompt, list(row.history), row.response) for row in rows)
    violating = np.array([policy.violates(row.severity, "strict") for row in rows])
    groups = tuple(row.group_id for row in rows)
    severities = tuple(row.severity for row in rows)
    return LabelSet("gold", texts, violating, groups, kept(sentences, texts)), severities


def kept(make: Any, texts: tuple[str, ...]) -> np.ndarray:
    """[n, D] vectors, computed once per list of texts."""
    path = KEPT / f"{make.__name__}-{stable_hash(texts)}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make(texts))
    return np.load(path)


def sentences(texts: tuple[str, ...]) -> np.ndarray:
    """MiniLM on the first 128 tokens."""
    return _encoded("minilm", texts, "float32")


def multilingual(texts: tuple[str, ...]) -> np.ndarray:
    """multilingual-e5-small on the first 128 tokens, in bfloat16 where the CPU has it, as the recipe has it."""
    return _encoded("multilingual-e5-small", texts, "auto")


def _encoded(name: str, texts: tuple[str, ...], dtype: str) -> np.ndarray:
    from ray_jobs.engine import Model
    from ray_jobs.engine.features import SentenceEmbedder

    model = SentenceEmbedder(Model("local", name, "embedder", options=(("dtype", dtype),))).model
    model.max_seq_length = 128
    return model.encode(list(texts), batch_size=64, show_progress_bar=False)


def characters(texts: tuple[str, ...]) -> np.ndarray:
    """Character n-grams, 256 dimensions."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    return TruncatedSVD(256, random_state=0).fit_transform(grams.fit_transform(texts))


def arguments(about: str | None) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write {environment, measurements, claims} here")
    parser.add_argument(
        "--bench", type=Path, help="the folder of the human-labelled sets; nothing runs without"
    )
    return parser


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def claim(name: str, value: float, goal: float, unit: str = "", under: bool = False) -> dict[str, Any]:
    """One claim with whether it holds: at least `goal`, or at most."""
    holds = value <= goal if under else value >= goal
    print(
        f"{'holds' if holds else 'FAILS'}  {name}: {value:.4g} {unit} (goal {'≤' if under else '≥'} {goal})"
    )
    return {"name": name, "value": value, "unit": unit, "goal": goal, "holds": bool(holds)}
