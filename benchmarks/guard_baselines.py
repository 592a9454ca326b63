"""What the guards are held against: linear models on word counts or sentence vectors, a lexicon, sentences.

All are trained on the very rows that the guards were trained on. A text is judged alone: the answer without its
question, since the test questions are new.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from label_sets import kept, sentences
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ray_jobs.eval_formats import EvalRow

WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")
LEXICON_SHARE, LEXICON_COUNT = (
    0.5,
    3,
)  # a word is toxic when people marked half of its three or more occurrences


def text_of(row: EvalRow) -> str:
    return row.response if row.side == "response" else row.prompt


def regression() -> LogisticRegression:
    return LogisticRegression(max_iter=2000, class_weight="balanced")


def tfidf(characters: bool) -> TfidfVectorizer:
    shape = {"analyzer": "char", "ngram_range": (1, 3)} if characters else {"ngram_range": (1, 2)}
    return TfidfVectorizer(min_df=2, sublinear_tf=True, **shape)


def by_words(trained: list[EvalRow], test: list[EvalRow], characters: bool) -> np.ndarray:
    """[n] probabilities of violating, from TF-IDF (of characters where the script has no spaces)."""
    model = make_pipeline(tfidf(characters), regression())
    model.fit([text_of(row) for row in trained], [row.violating("strict") for row in trained])
    return model.predict_proba([text_of(row) for row in test])[:, 1]


def by_vectors(trained: list[EvalRow], test: list[EvalRow], _characters: bool) -> np.ndarray:
    """[n] probabilities of violating, from MiniLM sentence vectors."""
    vectors = kept(sentences, tuple(text_of(row) for row in [*trained, *test]))
    model = regression().fit(vectors[: len(trained)], [row.violating("strict") for row in trained])
    return model.predict_proba(vectors[len(trained) :])[:, 1]


BASELINES: dict[str, Callable[[list[EvalRow], list[EvalRow], bool], np.ndarray]] = {
    "TF-IDF": by_words,
    "MiniLM": by_vectors,
}


def marked(row: EvalRow, start: int, end: int) -> bool:
    """Whether people marked any of the characters [start, end)."""
    return any(start < last and first < end for first, last in row.onset)


def words(row: EvalRow) -> Iterator[tuple[str, int, int]]:
    for found in WORD.finditer(row.response):
        yield found.group().casefold(), found.start(), found.end()


def lexicon_onsets(trained: list[EvalRow], test: list[EvalRow]) -> list[int | None]:
    """The character at which the first word begins that people mostly marked in the training rows."""
    seen, toxic = Counter[str](), Counter[str]()
    for row in trained:
        for word, start, end in words(row):
            seen[word] += 1
            toxic[word] += marked(row, start, end)
    lexicon = {w for w, n in seen.items() if n >= LEXICON_COUNT and toxic[w] >= LEXICON_SHARE * n}
    return [next((start for word, start, _ in words(row) if word in lexicon), None) for row in test]


def parts(row: EvalRow) -> list[tuple[str, int, int]]:
    """Sentences with their characters."""
    return [
        (found.group(), found.start(), found.end())
        for found in SENTENCE.finditer(row.response)
        if found.group().strip()
    ]


def sentence_onsets(trained: list[EvalRow], test: list[EvalRow]) -> list[int | None]:
    """The character at which the first sentence begins that a TF-IDF classifier of sentences flags."""
    rows = [(text, marked(row, start, end)) for row in trained for text, start, end in parts(row)]
    model = make_pipeline(tfidf(False), regression())
    model.fit([text for text, _ in rows], [flag for _, flag in rows])
    found: list[int | None] = []
    for row in test:
        pieces = parts(row)
        told = model.predict([text for text, _, _ in pieces]) if pieces else []
        starts = [start for (_, start, _), flag in zip(pieces, told, strict=True) if flag]
        found.append(starts[0] if starts else None)
    return found
