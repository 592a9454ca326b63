"""Shingle sets of texts, computed on whole Arrow batches: no Python object per row, token or n-gram.

Algorithm. A batch of texts becomes one array of code points. Table look-ups fold case and class every code
point (separator, word character, or a token of its own: letters of scripts written without spaces, and
symbols such as emoji). A token's 64-bit hash is a polynomial over its code points, read off one running sum
modulo 2**64 (the base is odd, so a position's power can be divided out); an n-gram's hash is a weighted sum
of its tokens' hashes. A text's shingles are the distinct hashes of its n-grams, sorted; a text of fewer than
n tokens is one shingle.

Normalisation: NFKC, then case folding by code point (full folding would change lengths, so "ß" stays "ß"),
and punctuation and white space only separate.

n follows the length where it is not fixed (`LADDER`): a 5-gram leaves 4 shingles of an 8-word prompt and any
edit kills them, a bigram of a long text makes strangers similar. Two texts of different n are compared at the
smaller one, so a text a little above a step of the ladder also gets a `variant` at the n below it.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LADDER = ((0, 1), (5, 2), (16, 3), (48, 5))  # from this many tokens on, this n
BATCH_BYTES = 1 << 18  # the batch's 64-bit arrays then stay in a core's cache
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_NO_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip
SEPARATOR, WORD, ALONE = 0, 1, 2


@dataclass(frozen=True)
class Shingles:
    """Shingle sets of E entries. `hashes[offsets[e]:offsets[e + 1]]` is entry e's set, sorted, without
    repeats.

    `row[e]` is the text it belongs to, `n[e]` its n-gram length and `own[e]` whether that is the text's own n
    or a variant at the step below. `tokens` is the number of tokens of every text; a text without any has no
    entry.
    """

    row: np.ndarray
    n: np.ndarray
    own: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    tokens: np.ndarray

    def take(self, entries: np.ndarray) -> "Shingles":
        """The given entries, in the given order."""
        sizes = np.diff(self.offsets)[entries]
        picked = spans(self.offsets[entries], sizes)
        return Shingles(
            self.row[entries],
            self.n[entries],
            self.own[entries],
            starts_of(sizes),
            self.hashes[picked],
            self.tokens,
        )


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 after which every bit depends on every bit."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """Offsets [k + 1] of consecutive spans of the given sizes [k]."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def spans(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The concatenation of `range(start, start + size)`, without a loop."""
    offsets = starts_of(sizes)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], sizes)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Per code point: its class, and the hash of what it folds to."""
    kinds = np.zeros(0x110000, dtype=np.uint8)
    folded = np.arange(0x110000, dtype=np.uint64)
    for point in (*range(0x32400), *range(0xE0100, 0xE01F0)):
        char = chr(point)
        major = unicodedata.category(char)
        if major[0] in "LMN":
            kinds[point] = WORD
            fold = char.casefold()
            folded[point] = ord(fold) if len(fold) == 1 else point
        elif major == "So":
            kinds[point] = ALONE
    for first, last in _NO_SPACES:
        block = kinds[first : last + 1]
        block[block == WORD] = ALONE
    kinds[0xFE00:0xFE10] = SEPARATOR  # variation selectors: the same emoji with and without one is one token
    return kinds, mix(folded + np.uint64(1))


_powers_cache: dict[int, np.ndarray] = {}


def _powers(base: np.uint64, count: int) -> np.ndarray:
    known = _powers_cache.get(int(base))
    if known is None or len(known) < count:
        known = np.full(max(count, BATCH_BYTES + 1), base, dtype=np.uint64)
        known[0] = 1
        np.cumprod(known, out=known)
        _powers_cache[int(base)] = known
    return known[:count]


def as_text(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One large_string array without nulls; bytes that are not UTF-8 become the replacement character."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
    if pa.types.is_binary(texts.type) or pa.types.is_large_binary(texts.type):
        return pa.array([(b or b"").decode("utf-8", "replace") for b in texts.to_pylist()], pa.large_string())
    texts = texts.cast(pa.large_string()).fill_null("")
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return as_text(texts.cast(pa.large_binary()))
    return texts


def _code_points(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, a line feed after each, and the offset of each text in them."""
    lines = pc.binary_join_element_wise(texts, *(pa.scalar(end, texts.type) for end in ("", "\n")))
    offsets = np.frombuffer(lines.buffers()[1], dtype=np.int64)[: len(texts) + 1]
    raw = np.frombuffer(lines.buffers()[2], dtype=np.uint8)[: offsets[-1]]
    if raw.max() < 0x80:
        return raw.astype(np.intp), offsets
    whole = raw.tobytes().decode("utf-8")
    if not unicodedata.is_normalized("NFKC", whole):
        rows = [unicodedata.normalize("NFKC", text) + "\n" for text in texts.to_pylist()]
        offsets, whole = (
            starts_of(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))),
            "".join(rows),
        )
    else:
        offsets = starts_of((raw & 0xC0) != 0x80)[offsets]
    return np.frombuffer(whole.encode("utf-32-le"), dtype=np.uint32).astype(np.intp), offsets


def token_hashes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Token hashes (uint64) of all texts, end to end, and their offsets [len(texts) + 1]; input as `as_text`'s."""
    if not len(texts):
        return np.empty(0, np.uint64), np.zeros(1, np.int64)
    points, offsets = _code_points(texts)
    kind_table, value_table = _tables()
    kinds = kind_table[points]
    word = np.zeros(len(points) + 1, dtype=np.int8)
    np.equal(kinds, WORD, out=word[1:].view(bool))
    edges = np.diff(word)  # 1 where a word begins, -1 behind its end; every text ends in a separator
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if kinds.max() == ALONE:
        alone = np.flatnonzero(kinds == ALONE)
        starts, ends = np.concatenate([starts, alone]), np.concatenate([ends, alone + 1])
        order = np.argsort(starts)
        starts, ends = starts[order], ends[order]
    running = np.zeros(len(points) + 1, dtype=np.uint64)
    np.cumsum(value_table[points] * _powers(_BASE, len(points)), out=running[1:])
    hashes = (running[ends] - running[starts]) * _powers(_INVERSE, len(points))[starts]
    return mix(hashes), np.searchsorted(starts, offsets)


def gram_hashes(tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n-grams of spans of at least n tokens, span after span: sum(sizes - n + 1) values."""
    at = spans(starts, sizes - (n - 1))
    total = tokens[: len(tokens) - n + 1] * _weight(0)
    for step in range(1, n):
        total += tokens[step : len(tokens) - n + 1 + step] * _weight(step)
    return mix(total[at])


def _weight(step: int) -> np.uint64:
    return mix(np.array([step + 0x5EED], dtype=np.uint64))[0] | np.uint64(1)


def length_n(tokens: np.ndarray) -> np.ndarray:
    """The ladder's n for texts of so many tokens."""
    steps, sizes = np.array(LADDER).T
    return sizes[np.searchsorted(steps, tokens, side="right") - 1]


def plan(
    tokens: np.ndarray, ngram: int | None, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries the texts get: (row, n, own). One per text, and a variant just above a step of the
    ladder."""
    rows = np.flatnonzero(tokens)
    if ngram is not None:
        return rows, np.minimum(tokens[rows], ngram), np.ones(len(rows), dtype=bool)
    own = length_n(tokens[rows])
    below = length_n(np.ceil(tokens[rows] * threshold).astype(np.int64))
    twice = below < own
    row = np.concatenate([rows, rows[twice]])
    order = np.argsort(row, kind="stable")
    n = np.concatenate([own, below[twice]])[order]
    return row[order], n, (np.arange(len(row)) < len(rows))[order]


def shingle_batch(texts: pa.Array, ngram: int | None, threshold: float) -> Shingles:
    """Shingle sets of one batch (`as_text`'s form). Memory: about 60 bytes for each byte of text."""
    hashes, offsets = token_hashes(texts)
    tokens = np.diff(offsets)
    row, n, own = plan(tokens, ngram, threshold)
    sizes = tokens[row] - n + 1
    where = starts_of(sizes)
    grams = np.empty(where[-1], dtype=np.uint64)
    for size in np.unique(n):
        chosen = np.flatnonzero(n == size)
        values = gram_hashes(hashes, offsets[row[chosen]], tokens[row[chosen]], int(size))
        if len(chosen) == len(n):
            grams = values
        else:
            grams[spans(where[chosen], sizes[chosen])] = values
    offsets, grams = _distinct(grams, where)
    return Shingles(row, n, own, offsets, grams, tokens)


def _distinct(grams: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort every span and drop repeats within it: spans of similar size are sorted together as a matrix."""
    sizes = np.diff(where)
    kept = np.ones(len(grams), dtype=bool)
    for block in blocks_of(sizes):
        width = sizes[block]
        cells = np.full((len(block), int(width.max(initial=1))), np.uint64(0xFFFFFFFFFFFFFFFF))
        real = np.arange(cells.shape[1]) < width[:, None]
        at = spans(where[block], width)
        cells[real] = grams[at]
        cells.sort(axis=1)
        fresh = np.ones(cells.shape, dtype=bool)
        np.not_equal(cells[:, 1:], cells[:, :-1], out=fresh[:, 1:])
        grams[at], kept[at] = cells[real], fresh[real]
    total = starts_of(kept)
    return total[where], grams[kept]


def blocks_of(sizes: np.ndarray, cells: int = 1 << 16) -> list[np.ndarray]:
    """Indices of spans grouped by similar size, so that a padded matrix of a group wastes less than a
    quarter."""
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    blocks, first = [], 0
    while first < len(order):
        width = max(int(ordered[first] * 1.25), int(ordered[first]) + 4)
        last = int(np.searchsorted(ordered, width, side="right"))
        last = min(last, first + max(1, cells // width))
        blocks.append(order[first:last])
        first = last
    return blocks


def batches(texts: pa.Array, limit: int = BATCH_BYTES) -> list[tuple[int, int]]:
    """Row ranges of about `limit` bytes of text each (a longer row is a range of its own)."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    ranges, first = [], 0
    while first < len(texts):
        last = int(np.searchsorted(offsets, offsets[first] + limit, side="right")) - 1
        last = min(max(last, first + 1), len(texts))
        ranges.append((first, last))
        first = last
    return ranges


def joined(parts: list[Shingles]) -> Shingles:
    """Batches' shingles as one, rows renumbered."""
    if not parts:
        none = np.empty(0, np.int64)
        return Shingles(none, none, none.astype(bool), np.zeros(1, np.int64), np.empty(0, np.uint64), none)
    rows = starts_of(np.array([len(p.tokens) for p in parts]))
    return Shingles(
        np.concatenate([p.row + first for p, first in zip(parts, rows[:-1], strict=True)]),
        np.concatenate([p.n for p in parts]),
        np.concatenate([p.own for p in parts]),
        starts_of(np.concatenate([np.diff(p.offsets) for p in parts])),
        np.concatenate([p.hashes for p in parts]),
        np.concatenate([p.tokens for p in parts]),
    )
