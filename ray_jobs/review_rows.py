"""What a reviewer is shown: which rows of a table of labelled samples, in what order, and the evidence on each.

Orders: `random`; `stratified` (sides, severities and languages in turn, rare ones as often as frequent); `abstained`
(votes under the band first, then the least certain); `disagreeing` (voters by voters' distance: the mean probability
mass that they do not share); `translated`; `second` (rows that another person labelled and this one has not). All are
fixed by the seed, so that two reviewers with the same order see the same rows.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa

from label.folds import stable_order
from label.token_labels import ANSWER
from ray_jobs import human_labels
from ray_jobs.report.source import quoted
from ray_jobs.review_choice import ORDERS, Choice
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput
from synth.policy import Policy

NEEDED = ("side", "prompt", "history", "response", "thinking", "language", "leaf", "source", "severity",
          "categories", "refusal", "confidence", "abstain", "origin")  # fmt: skip


def reviewable(store: Store, ref: str) -> TableVersion:
    """A table of labelled samples. BadInput for any other, with those that can be reviewed."""
    version = store.resolve(ref)
    if set(NEEDED) <= set(store.schema(version.ref).names):
        return version
    named = [name for name in store.tables() if set(NEEDED) <= set(store.schema(name).names)]
    raise BadInput(
        f"{version.ref} holds no labelled samples; tables to review are {', '.join(named) or 'not there yet'}"
    )


def chosen(store: Store, version: TableVersion, choice: Choice, reviewer: str) -> list[dict[str, Any]]:
    """The rows to show, in order. BadInput for an unknown order or a filter that cannot be read."""
    if choice.order not in ORDERS:
        raise BadInput(f"unknown order {choice.order!r}; there are {', '.join(ORDERS)}")
    columns = ["id", "side", "severity", "language", "source", "abstain", "confidence"]
    every = store.read(version.ref, columns=["id"])["id"].to_pylist()
    table = every_row(store, version, columns, choice.query)
    ranked = ordered(store, version, table, choice, reviewer)[: choice.count]
    place = {row: at for at, row in enumerate(every)}
    found = store.take(version.ref, [place[row] for row in ranked]).to_pylist() if ranked else []
    by_id = {row["id"]: row for row in found}
    return [by_id[row] for row in ranked]


def every_row(store: Store, version: TableVersion, columns: list[str], query: str) -> pa.Table:
    from ray_jobs.store import StoreError

    if not query:
        return store.read(version.ref, columns=columns)
    try:
        return store.read(version.ref, columns=columns, filter=query)
    except StoreError as problem:
        raise BadInput(f"the query {query!r} cannot be used on {version.ref}: {problem}") from problem


def ordered(store: Store, version: TableVersion, table: pa.Table, choice: Choice, reviewer: str) -> list[str]:
    """Ids in the order asked for."""
    mixed = table.take(stable_order(table["id"].to_pylist(), choice.seed, "review"))
    rows = mixed.to_pylist()
    if choice.order == "stratified":
        strata: dict[tuple[str, ...], deque[str]] = defaultdict(deque)
        for row in rows:
            strata[row["side"], row["severity"], row["language"]].append(row["id"])
        turns = zip_longest(*(strata[key] for key in sorted(strata)))
        return [row for row in chain.from_iterable(turns) if row is not None]
    if choice.order == "abstained":
        rows = sorted((row for row in rows if row["abstain"]), key=lambda row: row["confidence"])
    elif choice.order == "translated":
        rows = [row for row in rows if row["source"] == "translation"]
    elif choice.order == "disagreeing":
        spread = disagreement(store, version)
        rows = sorted((r for r in rows if spread.get(r["id"], 0.0) > 0), key=lambda r: -spread[r["id"]])
    elif choice.order == "second":
        last = human_labels.latest(human_labels.read(store))
        mine = {sample for sample, person in last if person == reviewer}
        others = {sample for sample, person in last if person != reviewer}
        rows = [row for row in rows if row["id"] in others - mine]
    return [row["id"] for row in rows]


def disagreement(store: Store, version: TableVersion) -> dict[str, float]:
    """Sample id -> 1 - the mean mass that two voters share, over all pairs; rows with fewer than two voters are 0."""
    told: dict[str, list[list[float]]] = defaultdict(list)
    ballots = ballots_of(store, version)
    if ballots is None:
        return {}
    for row in store.read(ballots.ref, columns=["parent_id", "severity"]).to_pylist():
        if row["severity"] is not None:
            told[row["parent_id"]].append(row["severity"])
    return {sample: _distance(np.asarray(answers)) for sample, answers in told.items()}


def _distance(answers: np.ndarray) -> float:
    """Mean total variation between the rows of [V, S]."""
    if len(answers) < 2:
        return 0.0
    pairs = np.abs(answers[:, None] - answers[None]).sum(axis=2) / 2
    return float(pairs.sum() / (len(answers) * (len(answers) - 1)))


def upstream(store: Store, version: TableVersion, name: str) -> TableVersion | None:
    """The version of table `name` that `version` was made from, or itself."""
    queue, seen = deque([version]), {version.ref}
    while queue:
        at = queue.popleft()
        if at.name == name:
            return at
        for ref in at.provenance.inputs.values():
            if ref not in seen:
                seen.add(ref)
                queue.append(store.resolve(ref))
    return None


def ballots_of(store: Store, version: TableVersion) -> TableVersion | None:
    """The ballots of the votes that `version` is, or was made from."""
    votes = upstream(store, version, "votes")
    return None if votes is None else store.find("ballots", votes.provenance.identity)


class Evidence:
    """What is known of the chosen rows beside their columns: ballots, the text a translation was made from, and where
    a response turns."""

    def __init__(
        self, store: Store, version: TableVersion, policy: Policy, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self.policy = policy
        ids = [row["id"] for row in rows]
        translated = [row["parent_id"] for row in rows if row["source"] == "translation"]
        ballots, votes = ballots_of(store, version), upstream(store, version, "votes")
        self.ballots: dict[str, list[dict[str, Any]]] = defaultdict(list)
        columns = ["parent_id", "voter", "severity", "category", "refusal", "raw"]
        for row in _where(store, ballots, "parent_id", ids, columns):
            self.ballots[row["parent_id"]].append(row)
        sources = _where(store, votes, "id", translated, ["id", "prompt", "language"])
        self.sources = {row["id"]: row for row in sources}
        turns = store.resolve("token_labels") if "token_labels" in store.tables() else None
        told = _where(store, turns, "parent_id", ids, ["parent_id", "part", "response", "onset", "outcome"])
        self.tokens = {row["parent_id"]: row for row in told if row["part"] == ANSWER}

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """JSON-able evidence on one row. Offsets count code points of the response."""
        turns = self.tokens.get(row["id"])
        if turns is not None and turns["response"] != row["response"]:
            turns = None
        source = self.sources.get(row["parent_id"]) if row["source"] == "translation" else None
        return {
            "votes": [self.vote(row["side"], one) for one in self.ballots.get(row["id"], [])],
            "translated_from": source and {"text": source["prompt"], "language": source["language"]},
            "tokens": turns and {"onset": turns["onset"], "outcome": turns["outcome"]},
        }

    def vote(self, side: str, ballot: Mapping[str, Any]) -> dict[str, Any]:
        """A ballot in words: probabilities by severity (none: abstained), the categories named, refusal."""
        names = [c.name for c in self.policy.categories if side in c.sides]
        told = ballot["severity"]
        return {
            "voter": ballot["voter"],
            "severity": told and dict(zip(self.policy.severity_names, told, strict=True)),
            "categories": [n for n, p in zip(names, ballot["category"] or [], strict=False) if p >= 0.5],
            "refusal": ballot["refusal"],
            "raw": ballot["raw"],
        }


def _where(
    store: Store, version: TableVersion | None, column: str, values: Sequence[str], columns: list[str]
) -> list[dict[str, Any]]:
    if version is None or not values:
        return []
    listed = ", ".join(map(quoted, values))
    return store.read(version.ref, columns=columns, filter=f"{column} in ({listed})").to_pylist()
