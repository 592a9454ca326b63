"""How far two labellings of a gold set agree, and what became of the rows on which they differ.

Beside the gold set `NAME.jsonl` may stand `NAME_second.jsonl`, a labelling made without sight of the first (one object
a line: id, severity, categories, refusal), and `NAME_settled.jsonl`, the log of the rows on which the two differ: what
the first and the second said, what was settled, and why. The gold set holds the settled labels; the first ones are read
back from the log. Rows without a second label (written later) are counted and left out.

Agreement is Krippendorff's alpha for nominal data, over all severities and in either reading, with a percentile
bootstrap over groups. Two labellers of one kind, such as two passes of a language model, share blind spots: their alpha
bounds that of two people from above.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from label.audit import confusion, krippendorff_alpha
from synth.errors import BadInput
from synth.policy import GoldRow, Policy

RESAMPLES = 300


@dataclass(frozen=True)
class Label:
    """What one labelling says of a row."""

    severity: str
    categories: tuple[str, ...]
    refusal: bool | None


@dataclass(frozen=True)
class Settled:
    """One row of the log. `id` is the gold row's."""

    id: str
    text: str
    first: Label
    second: Label
    settled: Label
    why: str


@dataclass(frozen=True)
class Agreement:
    """One side. `alpha` by question: severity, strict, loose, and refusal where it is labelled, each with its interval;
    `category`: the share of rows that both call violating on which a category is shared; `counts` [first][second]."""

    side: str
    rows: int
    unread: int
    same: float
    alpha: Mapping[str, tuple[float, float, float]]
    category: float
    counts: list[list[int]]


def second_labels(policy: Policy, gold: Sequence[GoldRow]) -> dict[str, Label]:
    """Gold id -> the second label; empty without the file. BadInput for an unknown row or label."""
    return {
        row["id"]: _label(where, policy, row, gold_row)
        for where, row, gold_row in _rows(policy, gold, "second")
    }


def settled_rows(policy: Policy, gold: Sequence[GoldRow]) -> tuple[Settled, ...]:
    """The log; empty without the file. BadInput where what was settled is not what the gold set says."""
    found = []
    for where, row, gold_row in _rows(policy, gold, "settled"):
        first, second, last = (_label(where, policy, row.get(name), gold_row) for name in
                               ("first", "second", "settled"))  # fmt: skip
        if last != label_of(gold_row):
            raise BadInput(f"{where}: settled as {last.severity}, but the gold set says {gold_row.severity}")
        found.append(Settled(row["id"], str(row.get("text", "")), first, second, last, str(row["why"])))
    return tuple(found)


def label_of(row: GoldRow) -> Label:
    """The label that the gold set holds."""
    return Label(row.severity, row.categories, row.refusal)


def beside(policy: Policy, what: str) -> Path:
    """The file of a labelling beside the policy's gold set."""
    gold = Path(policy.source).parent / policy.gold
    return gold.with_name(f"{gold.stem}_{what}.jsonl")


def _rows(policy: Policy, gold: Sequence[GoldRow], what: str) -> list[tuple[str, dict[str, Any], GoldRow]]:
    """(place, object, gold row) of every line of a file beside the gold set."""
    path, known, found = beside(policy, what), {row.id: row for row in gold}, []
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}: line {number}"
        try:
            row = json.loads(line)
            found.append((where, row, known[row["id"]]))
        except (ValueError, TypeError) as problem:
            raise BadInput(f"{where}: not readable: {problem}") from problem
        except KeyError as problem:
            raise BadInput(f"{where}: no row of the gold set has the id {problem}") from problem
    return found


def _label(where: str, policy: Policy, told: Any, row: GoldRow) -> Label:
    try:
        label = Label(told["severity"], tuple(told["categories"]), told["refusal"])
    except (KeyError, TypeError) as problem:
        raise BadInput(f"{where}: a label has severity, categories and refusal") from problem
    unknown = set(label.categories) - {category.id for category in policy.categories_of(row.side)}
    if label.severity not in policy.severity_names or unknown:
        raise BadInput(f"{where}: unknown label {label.severity!r} {', '.join(sorted(unknown))}".rstrip())
    return label


def agreement(policy: Policy, gold: Sequence[GoldRow]) -> list[Agreement]:
    """Per side with second labels: how far the first labelling and the second agree."""
    second = second_labels(policy, gold)
    changed = {row.id: row.first for row in settled_rows(policy, gold)}
    found = []
    for side in policy.sides:
        here = [row for row in gold if row.side == side]
        both = [row for row in here if row.id in second]
        if both:
            pairs = [(changed.get(row.id, label_of(row)), second[row.id]) for row in both]
            found.append(_side(policy, side, both, pairs, len(here) - len(both)))
    return found


def _side(
    policy: Policy, side: str, rows: Sequence[GoldRow], pairs: Sequence[tuple[Label, Label]], unread: int
) -> Agreement:
    names = policy.severity_names
    votes = np.array([[names.index(a.severity), names.index(b.severity)] for a, b in pairs])
    questions = {"severity": votes}
    for reading in ("strict", "loose"):
        violates = np.array([policy.violates(name, reading) for name in names])
        questions[reading] = violates[votes].astype(int)
    if policy.refusal and side == "response":
        questions["refusal"] = np.array([[bool(a.refusal), bool(b.refusal)] for a, b in pairs], dtype=int)
    groups = [row.group_id for row in rows]
    alpha = {name: _with_interval(answers, len(names), groups) for name, answers in questions.items()}
    shared = [bool({*a.categories} & {*b.categories}) for a, b in pairs if a.categories and b.categories]
    return Agreement(
        side,
        len(rows),
        unread,
        float((votes[:, 0] == votes[:, 1]).mean()),
        alpha,
        float(np.mean(shared)) if shared else float("nan"),
        [line[:-1] for line in confusion(votes[:, 0], votes[:, 1], len(names))],
    )


def _with_interval(votes: np.ndarray, values: int, groups: Sequence[str]) -> tuple[float, float, float]:
    """Alpha, and its 95 % interval over draws of whole groups."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    rng, drawn = np.random.default_rng(0), []
    for draw in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES):
        drawn.append(krippendorff_alpha(np.repeat(votes, draw[index], axis=0), values))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return krippendorff_alpha(votes, values), float(low), float(high)
