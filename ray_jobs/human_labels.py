"""human_labels: what people said about rows, who and when. Nothing is ever taken out of it or changed in it.

Every save is a new version: all rows of the newest one and the new ones. A person who changes their mind adds a row;
the latest of each person counts. A row's id is a hash of what was said by whom and when, so two writers who save at the
same time cannot lose each other's rows: the later one merges what came between and saves again.

What counts for training is the consensus: the severity (or "unusable") that most people gave, the categories and the
refusal that most of those people gave. Where no answer has more people than every other, the row is disputed: it keeps
its label, is marked as abstained, and so trains nothing until another person decides. `votes` and `controversial` read
the table; a machine's label never stands against a person's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from label.audit import krippendorff_alpha
from ray_jobs.store import Provenance, Store, TableVersion, table_schema
from synth.errors import BadInput
from synth.ids import row_id, stable_hash
from synth.policy import Policy

TABLE = "human_labels"
# parent_id is the sample that was read and `seen` the exact version it was read in; `at` is UTC in ISO form. An
# unusable row (a broken translation, no text) has an empty severity.
SCHEMA = table_schema(
    [
        pa.field("reviewer", pa.string()),
        pa.field("at", pa.string()),
        pa.field("severity", pa.string()),
        pa.field("categories", pa.list_(pa.string())),
        pa.field("refusal", pa.bool_()),
        pa.field("unusable", pa.bool_()),
        pa.field("side", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("language", pa.string()),
        pa.field("seen", pa.string()),
    ]
)
COLUMNS = [name for name in SCHEMA.names if name != "digest"]


@dataclass(frozen=True)
class Said:
    """What a person said about a row: a severity with categories and refusal, or that it is unusable."""

    severity: str = ""
    categories: tuple[str, ...] = ()
    refusal: bool | None = None
    unusable: bool = False


@dataclass(frozen=True)
class Consensus:
    """What people said together; `disputed` where no answer is ahead of every other."""

    said: Said
    disputed: bool
    reviewers: tuple[str, ...]


def label_row(
    policy: Policy, sample: Mapping[str, Any], said: Said, reviewer: str, at: str, seen: str
) -> dict[str, Any]:
    """A row of the table. BadInput for a label that the policy does not know on the sample's side."""
    check(policy, sample["side"], said, sample["id"])
    if not reviewer.strip():
        raise BadInput(f"row {sample['id']}: a label needs the name of the person who gave it")
    mildest = said.unusable or said.severity == policy.mildest
    told = {
        "severity": "" if said.unusable else said.severity,
        "categories": [] if mildest else list(said.categories),
        "refusal": None if said.unusable or sample["side"] != "response" else said.refusal,
        "unusable": said.unusable,
    }
    return {
        "id": row_id(sample["id"], "human", [reviewer, at, *told.values()]),
        "parent_id": sample["id"],
        "group_id": sample["group_id"],
        "reviewer": reviewer,
        "at": at,
        **told,
        **{name: sample[name] for name in ("side", "leaf", "language")},
        "seen": seen,
    }


def check(policy: Policy, side: str, said: Said, where: str) -> None:
    """BadInput for an unknown severity, or a category that the side does not have."""
    if not said.unusable and said.severity not in policy.severity_names:
        raise BadInput(
            f"row {where}: unknown severity {said.severity!r}; the policy has {', '.join(policy.severity_names)}"
        )
    known = [category.id for category in policy.categories if side in category.sides]
    unknown = [category for category in said.categories if category not in known]
    if unknown:
        raise BadInput(f"row {where}: no category {unknown[0]!r} on a {side}; there are {', '.join(known)}")


def read(store: Store) -> list[dict[str, Any]]:
    """All rows of the newest version, none where nobody has labelled yet."""
    return store.read(TABLE, columns=COLUMNS).to_pylist() if TABLE in store.tables() else []


def ensure(store: Store) -> None:
    """An empty first version where there is none, so that steps can read the table."""
    if TABLE not in store.tables():
        store.commit(TABLE, SCHEMA, [], _provenance([], {}))


def save(store: Store, rows: Sequence[dict[str, Any]], seen: Mapping[str, str]) -> TableVersion:
    """The newest version with `rows` in it. Rows that are there already make no new version. `seen`: the versions the
    rows were read in, by table."""
    ensure(store)
    while True:
        newest = store.resolve(TABLE)
        there = store.read(newest.ref, columns=COLUMNS).to_pylist()
        known = {row["id"] for row in there}
        added = {row["id"]: row for row in rows if row["id"] not in known}
        if not added:
            return newest
        every = [*there, *added.values()]
        table = pa.Table.from_pylist(every, schema=pa.schema([SCHEMA.field(name) for name in COLUMNS]))
        fragments = store.write_fragments(TABLE, table, SCHEMA)
        made = store.commit(TABLE, SCHEMA, fragments, _provenance(every, seen))
        if made.version == newest.version + 1:
            return made
        between = range(
            newest.version + 1, made.version
        )  # others saved meanwhile, and this version lacks their rows
        rows = [
            row for number in between for row in store.read(f"{TABLE}@v{number}", columns=COLUMNS).to_pylist()
        ]


def _provenance(rows: Sequence[Mapping[str, Any]], seen: Mapping[str, str]) -> Provenance:
    people = sorted({row["reviewer"] for row in rows})
    identity = stable_hash(TABLE, sorted(row["id"] for row in rows))
    counts = {"in": len(rows), "out": len(rows), "failed": 0, "dropped": {}}
    return Provenance("review", identity, {"reviewers": people}, inputs=dict(seen), counts=counts)


def latest(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The last row of each person on each sample: (sample id, reviewer) -> row."""
    return {
        (row["parent_id"], row["reviewer"]): row for row in sorted(rows, key=lambda r: (r["at"], r["id"]))
    }


def said_in(row: Mapping[str, Any]) -> Said:
    return Said(row["severity"], tuple(row["categories"] or ()), row["refusal"], bool(row["unusable"]))


def consensus(rows: Iterable[dict[str, Any]]) -> dict[str, Consensus]:
    """Sample id -> what people said about it, by the rule at the top of this module."""
    told: dict[str, dict[str, Said]] = defaultdict(dict)
    for (sample, reviewer), row in latest(rows).items():
        told[sample][reviewer] = said_in(row)
    return {sample: _agreed(by_person) for sample, by_person in told.items()}


def _agreed(by_person: Mapping[str, Said]) -> Consensus:
    answers = Counter((said.severity, said.unusable) for said in by_person.values()).most_common()
    (severity, unusable), count = answers[0]
    disputed = len(answers) > 1 and answers[1][1] == count
    same = [said for said in by_person.values() if (said.severity, said.unusable) == answers[0][0]]
    categories = Counter(category for said in same for category in said.categories)
    refusals = Counter(said.refusal for said in same if said.refusal is not None).most_common()
    settled = refusals and (len(refusals) == 1 or refusals[0][1] > refusals[1][1])
    return Consensus(
        Said(
            severity,
            tuple(sorted(c for c, n in categories.items() if 2 * n >= len(same))),
            refusals[0][0] if settled else None,
            unusable,
        ),
        disputed,
        tuple(sorted(by_person)),
    )


def apply(policy: Policy, rows: Iterable[dict[str, Any]], told: Mapping[str, Consensus]) -> Counter[str]:
    """Give labelled samples the label that people gave; returns how many were labelled, disputed and unusable."""
    counts: Counter[str] = Counter()
    for row in rows:
        agreed = told.get(row["id"])
        if agreed is None:
            continue
        if agreed.said.severity not in ("", *policy.severity_names):
            counts["label that the policy no longer has"] += 1
            continue
        outcome = "disputed" if agreed.disputed else "unusable" if agreed.said.unusable else "human"
        counts[outcome] += 1
        row["origin"], row["abstain"] = outcome, outcome != "human"
        if outcome == "human":
            _set(policy, row, agreed.said)
    return counts


def _set(policy: Policy, row: dict[str, Any], said: Said) -> None:
    """A person's label on a sample. Categories that nobody named are the row's own, else its leaf's."""
    row["severity"], row["confidence"] = said.severity, 1.0
    if said.severity == policy.mildest:
        row["categories"] = []
    elif said.categories:
        row["categories"] = list(said.categories)
    elif not row["categories"] and row["leaf"]:
        category = policy.leaf(row["leaf"]).category
        sides = next(one.sides for one in policy.categories if one.id == category)
        row["categories"] = [category] if row["side"] in sides else []
    if said.refusal is not None:
        row["refusal"] = said.refusal


def agreement(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How far people agree, on the rows that two or more of them labelled.

    {"reviewers": {name: samples}, "shared": samples with two or more, "alpha": Krippendorff's nominal alpha over
    severities and "unusable" (None without shared rows), "same": share on which all said the same, "disputed": ids}.
    """
    last = latest(rows)
    people = sorted({reviewer for _, reviewer in last})
    samples = sorted({sample for sample, _ in last})
    answers = sorted({row["severity"] for row in last.values()})
    votes = np.full((len(samples), len(people)), -1, dtype=np.int64)
    place = {sample: at for at, sample in enumerate(samples)}
    for (sample, reviewer), row in last.items():
        votes[place[sample], people.index(reviewer)] = answers.index(row["severity"])
    shared = (votes >= 0).sum(axis=1) >= 2
    same = [len(set(line[line >= 0].tolist())) == 1 for line in votes[shared]]
    return {
        "reviewers": {name: int((votes[:, at] >= 0).sum()) for at, name in enumerate(people)},
        "shared": int(shared.sum()),
        "alpha": krippendorff_alpha(votes, len(answers)) if shared.any() else None,
        "same": float(np.mean(same)) if same else None,
        "disputed": sorted(sample for sample, told in consensus(last.values()).items() if told.disputed),
    }
