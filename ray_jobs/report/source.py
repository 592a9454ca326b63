"""What the sections read: the versions of a run, by table name, and the words they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.store import Store, TableVersion
from synth.policy import Policy

SAMPLES = ("distilled", "controversial", "votes")  # tables of labelled samples, the last step's first


class Source:
    """The tables of one run. A table that the flow does not have reads as empty."""

    def __init__(self, store: Store, versions: Mapping[str, TableVersion], policy: Policy) -> None:
        self.store, self.versions, self.policy = store, versions, policy
        self.category_names = {category.id: category.name for category in policy.categories}
        self.leaf_categories = {leaf.id: leaf.category for leaf in policy.leaves}

    def count(self, name: str) -> int:
        return self.versions[name].rows if name in self.versions else 0

    def table(self, name: str, columns: list[str], where: str | None = None) -> pa.Table:
        """Rows of a table that is there."""
        return self.store.read(self.versions[name].ref, columns=columns, filter=where)

    def rows(self, name: str, columns: list[str], where: str | None = None) -> list[dict[str, Any]]:
        """Rows as dicts; none where there is no such table."""
        return self.table(name, columns, where).to_pylist() if name in self.versions else []

    def some(
        self, name: str, columns: list[str], count: int, where: str | None = None
    ) -> list[dict[str, Any]]:
        """The `count` rows of lowest id: ids are hashes, so that is a fixed random choice."""
        if name not in self.versions:
            return []
        ids = sorted(pc.unique(self.table(name, ["id"], where)["id"]).to_pylist())[:count]
        if not ids:
            return []
        found = self.rows(
            name, list(dict.fromkeys(["id", *columns])), f"id in ({', '.join(map(quoted, ids))})"
        )
        return sorted(found, key=lambda row: row["id"])

    @property
    def samples(self) -> str:
        """The table of labelled samples that training reads, "" where nothing is labelled yet."""
        return next((name for name in SAMPLES if name in self.versions), "")

    def category_of(self, leaf: str, categories: list[str] | None = None) -> str:
        """The name of the category that a row was made for, else of its label, else "none"."""
        found = self.leaf_categories.get(leaf) or next(iter(categories or []), "")
        return self.category_names.get(found, found) or "none"


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
