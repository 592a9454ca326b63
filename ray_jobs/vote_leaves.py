"""How the voters do on each leaf of the policy: where they confuse severities, abstain, or disagree.

Gold rows carry no leaf, so this is counted on the run's own rows. The reference of a row is the severity that a person
gave it; else the one it was written for, which is a wish and no truth: off the diagonal either the writer missed or the
voters did, and a leaf that stands out is one to read (`guardmill review votes --query "leaf = '…'"`). Rows that nobody
was asked about count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from label.audit import confusion, krippendorff_alpha
from label.combiners import Majority, votes_of
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput


@dataclass(frozen=True)
class LeafVotes:
    """One leaf and side. `confusion` [reference][voted or silent]; `alpha`: Krippendorff's, NaN with a single voter."""

    leaf: str
    side: str
    rows: int
    by_people: int
    agree: float
    abstained: float
    alpha: float
    confusion: list[list[int]]


def by_leaf(store: Store, severities: Sequence[str], votes: TableVersion) -> list[LeafVotes]:
    """All leaves with rows that were voted on, those where votes and references agree least first."""
    ballots = store.find("ballots", votes.provenance.identity)
    if ballots is None:
        return []
    columns = ["id", "leaf", "side", "severity", "intended", "origin", "abstain"]
    table = store.read(votes.ref, columns=columns)
    told = ballot_array(
        store.read(ballots.ref, columns=["parent_id", "voter", "severity"]), table["id"], len(severities)
    )
    names = np.asarray(severities, dtype=object)
    people = np.asarray(table["origin"].to_pylist(), dtype=object) == "human"
    reference = np.where(people, table["severity"].to_pylist(), table["intended"].to_pylist())
    truth = np.array([np.flatnonzero(names == name)[0] if name in names else -1 for name in reference])
    singles = votes_of(told)
    asked = (truth >= 0) & ~np.isnan(told).all(axis=(1, 2))
    voted = np.where((singles >= 0).any(axis=1), Majority().posterior(told).argmax(axis=1), -1)
    keys = np.array(
        [
            f"{leaf}\n{side}"
            for leaf, side in zip(*(table[c].to_pylist() for c in ("leaf", "side")), strict=True)
        ]
    )
    abstain = table["abstain"].to_numpy(zero_copy_only=False)
    found = []
    for key in np.unique(keys[asked]):
        here = np.flatnonzero(asked & (keys == key))
        leaf, _, side = str(key).partition("\n")
        found.append(
            LeafVotes(
                leaf or "(none)",
                side,
                len(here),
                int(people[here].sum()),
                float((truth[here] == voted[here]).mean()),
                float(abstain[here].mean()),
                krippendorff_alpha(singles[here], len(names)),
                confusion(truth[here], voted[here], len(names)),
            )
        )
    return sorted(found, key=lambda one: (one.agree, one.leaf, one.side))


def voted_seeds(store: Store, severities: Sequence[str]) -> dict[tuple[str, str, str], str]:
    """(leaf, language, text) of a written prompt -> what most heads called it that were fitted without its group.
    BadInput where the root has no such votes."""
    if not {"head_ballots", "seeds"} <= set(store.tables()):
        raise BadInput(f"{store.root} has no votes on seeds: only a run with fitted voters makes them")
    table = store.read("seeds", columns=["id", "leaf", "language", "text"])
    ballots = store.read("head_ballots", columns=["parent_id", "voter", "severity"])
    told = ballot_array(ballots, table["id"], len(severities))
    voted = Majority().posterior(told).argmax(axis=1)
    keys = zip(*(table[name].to_pylist() for name in ("leaf", "language", "text")), strict=True)
    asked = ~np.isnan(told).all(axis=(1, 2))
    return {key: severities[at] for key, at, known in zip(keys, voted, asked, strict=True) if known}


def ballot_array(ballots: pa.Table, ids: pa.ChunkedArray, severities: int) -> np.ndarray:
    """[n, V, S] probabilities of the rows `ids` from a ballots table, NaN where a voter was silent or not asked."""
    answered = ballots.filter(pc.is_valid(ballots["severity"]))
    voters = pc.unique(ballots["voter"])
    result = np.full((len(ids), max(len(voters), 1), severities), np.nan)
    if answered.num_rows:
        row = pc.index_in(answered["parent_id"], value_set=ids.combine_chunks()).to_numpy(
            zero_copy_only=False
        )
        voter = pc.index_in(answered["voter"], value_set=voters).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(answered["severity"]).to_numpy().reshape(answered.num_rows, -1)
        known = ~np.isnan(row.astype(float))
        result[row[known].astype(int), voter[known].astype(int)] = values[known]
    return result
