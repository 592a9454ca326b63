"""Lint: what a policy may say and yet should not. Each finding is one sentence; none means that it passes.

Near-duplicates are found by the Jaccard similarity of character 3-grams (case and spacing folded), exactly:
by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007) two sets of similarity t must share one of
the first |A| - ceil(t|A|) + 1 grams in order of rarity, so only such pairs are compared. That suits any
script and the few thousand texts of a policy; data sets go through `synth.dedup`.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from synth.errors import BadInput
from synth.policy_types import READINGS, GoldRow, Leaf, Policy
from synth.templates import FIELDS, render

NEAR_LEAVES = 0.7  # seeds of two leaves
NEAR_LABELS = 0.85  # seeds of one leaf with different severities: they share words by design
NEAR_GOLD = 0.6  # a gold text and a seed or pair
KEYWORDS_SEEN = 0.25  # share of a leaf's keywords that should occur in its own texts
LOPSIDED = 6.0  # times as many seeds of one severity as of another, or as in the median leaf
SHORT_PIECES = 60  # words and marks of an empty moderation_short: 80 tokens less a short text


def lint(policy: Policy, gold: Sequence[GoldRow] = (), votes: Mapping[str, str] | None = None) -> list[str]:
    """All findings, in the policy's order. Without `gold` the gold set is not looked at.

    `votes` may map seed ids to the severity that voters gave: a seed whose label is on the other side of the
    line under both readings is a finding.
    """
    return [
        *_templates(policy),
        *(finding for leaf in policy.leaves for finding in _leaf(policy, leaf)),
        *_taxonomy(policy),
        *_near_seeds(policy),
        *(_gold(policy, gold) if gold else ()),
        *_votes(policy, votes or {}),
    ]


def needed_templates(policy: Policy) -> tuple[str, ...]:
    """The templates that the policy's sides and labels call for."""
    unneeded = set() if "response" in policy.sides else {"respond_base"}
    unneeded |= set() if policy.refusal else {"refusal_policy"}
    if not any(leaf.style for leaf in policy.leaves):
        unneeded |= {"style_instruct", "style_continuation"}
    if not any(leaf.sketches for leaf in policy.leaves):
        unneeded |= {"follow_up_instruct", "follow_up_continuation"}
    return tuple(name for name in FIELDS if name not in unneeded)


def _templates(policy: Policy) -> Iterator[str]:
    leaf = policy.leaves[0]
    sample = {
        "leaf": leaf,
        "severity": policy.worst,
        "seeds": [seed.text for seed in leaf.seeds[:2]],
        "keyword": "word",
        "style": leaf,
        "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "pairs": leaf.pairs[:1],
        "examples": [{"prompt": "a", "response": "b"}],
        "text": "text",
        "translation": "text",
        "conversation": "USER: text",
        "language": "en",
        "source": "en",
        "target": "zh",
    }
    for name in needed_templates(policy):
        if name not in policy.templates:
            yield f"templates: '{name}' is missing"
            continue
        try:
            text = render(policy, name, **sample)
        except BadInput as error:
            yield str(error)
            continue
        pieces = len(re.findall(r"\w+|[^\w\s]", text))
        if name == "moderation_short" and pieces > SHORT_PIECES:
            yield f"templates: moderation_short is not short: {pieces} words and marks, over {SHORT_PIECES}"


def _leaf(policy: Policy, leaf: Leaf) -> Iterator[str]:
    where = f"leaf {leaf.id}"
    if not leaf.excludes:
        yield f"{where}: no neighbour: 'excludes' should name what is nearest and not in it"
    unguided = [name for name in policy.severity_names if name not in leaf.guidance]
    if unguided:
        yield f"{where}: no guidance for {', '.join(unguided)}"
    if not leaf.pairs:
        yield f"{where}: no pairs"
    if "response" in policy.sides and not leaf.sketches:
        yield f"{where}: no sketches of responses"
    yield from _keywords(leaf)
    counts = Counter(seed.severity for seed in leaf.seeds)
    absent = [name for name in policy.severity_names if not counts[name]]
    if absent:
        yield f"{where}: no seed that is {' or '.join(absent)}"
    for many, few in ((policy.worst, policy.mildest), (policy.mildest, policy.worst)):
        if counts[few] and counts[many] > LOPSIDED * counts[few]:
            yield f"{where}: {counts[many]} {many} seeds against {counts[few]} {few}"


def _keywords(leaf: Leaf) -> Iterator[str]:
    if not leaf.keywords:
        yield f"leaf {leaf.id}: no keywords"
        return
    written = _fold("\n".join([*texts_of([leaf]), leaf.name, leaf.definition]))
    languages = {seed.language for seed in leaf.seeds}
    keywords = [keyword.text for keyword in leaf.keywords if keyword.language in languages]
    unseen = [keyword for keyword in keywords if _fold(keyword) not in written]
    if keywords and len(unseen) > (1 - KEYWORDS_SEEN) * len(keywords):
        some = ", ".join(f"'{keyword}'" for keyword in unseen[:3])
        yield f"leaf {leaf.id}: {len(unseen)} of {len(keywords)} keywords are in none of its texts: {some} …"
    counts = Counter((keyword.language, _fold(keyword.text)) for keyword in leaf.keywords)
    for (_, text), count in counts.items():
        if count > 1:
            yield f"leaf {leaf.id}: the keyword '{text}' stands twice"


def _taxonomy(policy: Policy) -> Iterator[str]:
    per_category = Counter(leaf.category for leaf in policy.leaves)
    for category in policy.categories:
        if not per_category[category.id]:
            yield f"category {category.id}: no leaf belongs to it"
    sizes = sorted(len(leaf.seeds) for leaf in policy.leaves)
    median = sizes[len(sizes) // 2]
    for leaf in policy.leaves:
        if len(leaf.seeds) * LOPSIDED < median or len(leaf.seeds) > LOPSIDED * median:
            yield f"leaf {leaf.id}: {len(leaf.seeds)} seeds, where the median leaf has {median}"
    names = Counter(_fold(leaf.name) for leaf in policy.leaves)
    for leaf in policy.leaves:
        if names[_fold(leaf.name)] > 1:
            yield f"leaf {leaf.id}: another leaf is called '{leaf.name}' too"


def _near_seeds(policy: Policy) -> Iterator[str]:
    seeds = [seed for leaf in policy.leaves for seed in leaf.seeds]
    for left, right, similarity in near_pairs([seed.text for seed in seeds], NEAR_LEAVES):
        a, b = seeds[left], seeds[right]
        if a.leaf != b.leaf:
            yield f"leaves {a.leaf} and {b.leaf}: nearly the same seed ({similarity:.2f}): '{_cut(a.text)}'"
        elif a.severity != b.severity and similarity >= NEAR_LABELS:
            yield f"leaf {a.leaf}: nearly the same seed is {a.severity} and {b.severity}: '{_cut(a.text)}'"


def _gold(policy: Policy, gold: Sequence[GoldRow]) -> Iterator[str]:
    written = texts_of(policy.leaves)
    judged = [row.prompt if row.side == "prompt" else row.response for row in gold]
    for left, right, similarity in near_pairs([*written, *judged], NEAR_GOLD, split=len(written)):
        yield (
            f"gold row {right - len(written) + 1}: near a seed ({similarity:.2f}): "
            f"'{_cut(judged[right - len(written)])}' and '{_cut(written[left])}'"
        )
    for side in policy.sides:
        rows = [row for row in gold if row.side == side]
        if not rows:
            yield f"gold: no row for the side '{side}'"
            continue
        severities = Counter(row.severity for row in rows)
        for name in policy.severity_names:
            if not severities[name]:
                yield f"gold: no {side} is {name}"
            elif severities[name] > 0.75 * len(rows):
                yield f"gold: {severities[name]} of {len(rows)} {side}s are {name}"
        found = {category for row in rows for category in row.categories}
        for category in policy.categories_of(side):
            if category.id not in found:
                yield f"gold: no {side} of the category {category.id}"


def _votes(policy: Policy, votes: Mapping[str, str]) -> Iterator[str]:
    for leaf in policy.leaves:
        for seed in leaf.seeds:
            voted = votes.get(seed.id, seed.severity)
            if all(policy.violates(voted, way) != policy.violates(seed.severity, way) for way in READINGS):
                yield f"leaf {leaf.id}: voters find a {seed.severity} seed {voted}: '{_cut(seed.text)}'"


def near_pairs(texts: Sequence[str], threshold: float, split: int = 0) -> list[tuple[int, int, float]]:
    """All (i, j, similarity) with i < j and Jaccard similarity of character 3-grams of at least `threshold`.

    With `split`, only pairs with i < split <= j are looked for.
    """
    grams = [_grams(text) for text in texts]
    rarity = Counter(gram for own in grams for gram in own)
    holders: dict[str, list[int]] = defaultdict(list)
    found = []
    for j, own in enumerate(grams):
        length = len(own) - math.ceil(threshold * len(own)) + 1
        prefix = sorted(own, key=lambda gram: (rarity[gram], gram))[:length]
        candidates = {i for gram in prefix for i in holders[gram]} if j >= split else set()
        for i in sorted(candidates):
            shared = len(own & grams[i])
            similarity = shared / (len(own) + len(grams[i]) - shared)
            if similarity >= threshold:
                found.append((i, j, similarity))
        if not split or j < split:
            for gram in prefix:
                holders[gram].append(j)
    return found


def _grams(text: str) -> frozenset[str]:
    folded = f" {_fold(text)} "
    return frozenset(folded[start : start + 3] for start in range(max(1, len(folded) - 2)))


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _cut(text: str, length: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def texts_of(leaves: Iterable[Leaf]) -> list[str]:
    """Every seed and pair text of the leaves, in order."""
    texts = []
    for leaf in leaves:
        texts += [seed.text for seed in leaf.seeds]
        texts += [text for pair in leaf.pairs for text in (pair.violating, pair.benign)]
    return texts
