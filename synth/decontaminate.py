"""Which texts lie too near an evaluation set to be trained on.

Three tests, each exact after normalisation (shingles.py), any of which condemns a text: `long run` - it
shares an n-gram of 13 tokens with an evaluation text (Brown et al. 2020); `short runs` - it holds at least
half of an evaluation text's n-grams of 8 tokens (after Chowdhery et al. 2022, who ask for 70 %): short
questions wrapped in longer prompts have no run of 13; `near-duplicate` - their Jaccard similarity reaches the
threshold (MinHash candidates, verified): questions of fewer than 8 tokens are seen by this alone.

A token is a word, or a character where a script has no spaces.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from synth.lsh import jaccard
from synth.minhash import estimates
from synth.near import DedupConfig, Signed, comparable, sign
from synth.shingles import as_text, batches, gram_hashes, joined, spans, token_hashes

LONG, SHORT, SHARE = 13, 8, 0.5
CONTAMINATED = pa.schema([
    ("row", pa.int64()), ("eval_row", pa.int64()), ("reason", pa.string()), ("overlap", pa.float64()),
])  # fmt: skip


def nearest(texts: pa.Array, eval_texts: pa.Array) -> dict[int, dict[str, Any]]:
    """One line of `contaminated` for every text near an evaluation text, by the text's position."""
    return {line["row"]: line for line in contaminated(texts, eval_texts).to_pylist()}


def contaminated(
    texts: pa.Array,
    eval_texts: pa.Array,
    config: DedupConfig | None = None,
    long: int = LONG,
    short: int = SHORT,
    share: float = SHARE,
) -> pa.Table:
    """The texts near an evaluation text: CONTAMINATED, one line per row and reason, in order of rows.

    `eval_row` is the evaluation text of greatest overlap (the first of equals); `overlap` is the share of its
    n-grams that the row holds, or the Jaccard similarity. Null and empty texts are near nothing.
    """
    config = config or DedupConfig()
    texts, evals = as_text(texts), as_text(eval_texts)
    grams = {n: EvalGrams(evals, n) for n in (long, short)}
    against = sign(evals, config)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]] = []
    for first, last in batches(texts, 1 << 24):
        part = texts.slice(first, last - first)
        row, other, overlap = grams[long].overlaps(part)
        found.append((row + first, other, overlap, "long run"))
        row, other, overlap = grams[short].overlaps(part)
        enough = overlap >= share
        found.append((row[enough] + first, other[enough], overlap[enough], "short runs"))
        row, other, overlap = _near(sign(part, config), against, config)
        found.append((row + first, other, overlap, "near-duplicate"))
    return _best(found)


class EvalGrams:
    """The distinct n-grams of evaluation texts, and which texts hold each."""

    def __init__(self, evals: pa.Array, n: int) -> None:
        self.n = n
        row, gram = _distinct_grams(evals, n)
        order = np.lexsort((row, gram))
        self.owner = row[order]
        self.grams, self.first = np.unique(gram[order], return_index=True)
        self.count = np.diff(np.append(self.first, len(order)))
        self.size = np.bincount(row, minlength=len(evals))

    def overlaps(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, evaluation row, share of the latter's n-grams in the former) of all pairs that share one."""
        row, gram = _distinct_grams(texts, self.n)
        if not len(self.grams) or not len(row):
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        at = np.searchsorted(self.grams, gram)
        at[at == len(self.grams)] = 0
        hit = self.grams[at] == gram
        row, at = row[hit], at[hit]
        owner = self.owner[spans(self.first[at], self.count[at])]
        pair, shared = np.unique(np.repeat(row, self.count[at]) * len(self.size) + owner, return_counts=True)
        row, owner = np.divmod(pair, len(self.size))
        return row, owner, shared / self.size[owner]


def _distinct_grams(texts: pa.Array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, hash) of every n-gram of texts that have n tokens, once per row."""
    hashes, offsets = token_hashes(texts)
    sizes = np.diff(offsets)
    rows = np.flatnonzero(sizes >= n)
    grams = gram_hashes(hashes, offsets[rows], sizes[rows], n) if len(rows) else np.empty(0, np.uint64)
    owner = np.repeat(rows, sizes[rows] - n + 1)
    order = np.lexsort((grams, owner))
    owner, grams = owner[order], grams[order]
    fresh = np.ones(len(grams), dtype=bool)
    fresh[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
    return owner[fresh], grams[fresh]


def _near(signed: Signed, against: Signed, config: DedupConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, evaluation row, similarity) of verified near-duplicates across the two sides."""
    both = joined([against.shingles, signed.shingles])
    sketch = np.concatenate([against.sketch, signed.sketch])
    count = len(against.sketch)
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for band in range(len(against.keys)):
        order = np.argsort(against.keys[band])
        keys = against.keys[band][order]
        first = np.searchsorted(keys, signed.keys[band], side="left")
        sizes = np.searchsorted(keys, signed.keys[band], side="right") - first
        left = order[spans(first, sizes)]
        right = count + np.repeat(np.arange(len(sizes)), sizes)
        hopeful = estimates(sketch, left, right) >= config.threshold - 0.2
        pairs.append(np.stack([left[hopeful], right[hopeful]]))
    left, right = np.unique(np.concatenate(pairs, axis=1), axis=1)
    valid = comparable(both, left, right, config)
    left, right = left[valid], right[valid]
    similarity = jaccard(both, left, right)
    close = similarity >= config.threshold
    row = both.row[right[close]] - len(against.shingles.tokens)
    return row, both.row[left[close]], similarity[close]


def _best(found: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]) -> pa.Table:
    """One line per row and reason: its evaluation row of greatest overlap."""
    if not found:
        return CONTAMINATED.empty_table()
    row, other, overlap = (np.concatenate([part[i] for part in found]) for i in range(3))
    reasons = sorted({part[3] for part in found})
    reason = np.repeat([reasons.index(part[3]) for part in found], [len(part[0]) for part in found])
    order = np.lexsort((other, -overlap, reason, row))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(row[order]) != 0) | (np.diff(reason[order]) != 0)
    kept = order[fresh]
    names = pa.array(reasons, pa.string()).take(pa.array(reason[kept]))
    columns = [row[kept], other[kept], names, overlap[kept]]
    return pa.Table.from_arrays(
        [pa.array(c).cast(f.type) for c, f in zip(columns, CONTAMINATED, strict=True)], schema=CONTAMINATED
    )
