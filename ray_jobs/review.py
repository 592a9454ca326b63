"""One person's review of one table: which rows, what is known of them, what was said, undo, and saving.

A label goes into a journal in the store at once, so that a crash loses nothing; `save` turns the journal into a new
version of `human_labels`. Until then the last label can be undone; after that a row can only be labelled anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ray_jobs import human_labels
from ray_jobs.human_labels import Said
from ray_jobs.review_choice import Choice
from ray_jobs.review_rows import Evidence, chosen, reviewable
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput
from synth.ids import stable_hash
from synth.policy import Policy

SHOWN = ("id", "side", "prompt", "history", "response", "thinking", "language", "leaf", "source")
GUESS = ("severity", "categories", "refusal", "confidence", "abstain", "origin")


class Session:
    """`rows` are the chosen samples in order; `pending` what this person said and has not saved.

    blind: votes and the label so far are held back until the row is labelled.
    """

    def __init__(
        self, store: Store, policy: Policy, ref: str, choice: Choice, reviewer: str, blind: bool = False
    ) -> None:
        """BadInput for a table that cannot be reviewed, an empty choice, or a reviewer without a name."""
        if not reviewer.strip():
            raise BadInput("a review needs the name of the person who reads: --reviewer NAME")
        self.store, self.policy, self.reviewer, self.blind = store, policy, reviewer.strip(), blind
        self.version: TableVersion = reviewable(store, ref)
        self.choice = choice
        self.rows = chosen(store, self.version, choice, self.reviewer)
        if not self.rows:
            raise BadInput(
                f"{self.version.ref} has no row for the order {choice.order!r} {choice.query}".strip()
            )
        self.evidence = Evidence(store, self.version, policy, self.rows)
        self.journal = f"reviews/{stable_hash(self.reviewer)}.json"
        self.pending: list[dict[str, Any]] = (store.get_json(self.journal) or {}).get("rows", [])
        self._read_saved()

    def _read_saved(self) -> None:
        self.saved = human_labels.read(self.store)

    def mine(self) -> dict[str, dict[str, Any]]:
        """This person's latest row on each sample, saved or not."""
        last = human_labels.latest([*self.saved, *self.pending])
        return {sample: row for (sample, person), row in last.items() if person == self.reviewer}

    def about(self) -> dict[str, Any]:
        """What the page needs once: the policy's labels and what is reviewed."""
        sides = self.policy.sides
        return {
            "title": self.policy.title,
            "table": self.version.ref,
            "reviewer": self.reviewer,
            "order": self.choice.order,
            "query": self.choice.query,
            "severities": list(self.policy.severity_names),
            "mildest": self.policy.mildest,
            "refusal": self.policy.refusal,
            "categories": {
                side: [{"id": c.id, "name": c.name} for c in self.policy.categories if side in c.sides]
                for side in sides
            },
            **self.progress(),
        }

    def progress(self) -> dict[str, Any]:
        """Counts, where to go on, and whether each shown row is labelled by this person."""
        mine = self.mine()
        done = [row["id"] in mine for row in self.rows]
        return {
            "rows": len(self.rows),
            "done": done,
            "unsaved": len(self.pending),
            "next": done.index(False) if False in done else len(done) - 1,
            "labels": len(mine),
        }

    def page(self, at: int) -> dict[str, Any]:
        """Row `at` with its evidence and this person's label. BadInput when there is no such row."""
        if not 0 <= at < len(self.rows):
            raise BadInput(f"there is no row {at}; the review has {len(self.rows)}")
        row, mine = self.rows[at], self.mine()
        own = mine.get(row["id"])
        told = self.evidence.of(row)
        hidden = self.blind and own is None
        return {
            "at": at,
            **{name: row[name] for name in SHOWN},
            "guess": None if hidden else {name: row[name] for name in GUESS},
            **(told | {"votes": [], "tokens": None} if hidden else told),
            "hidden": hidden,
            "mine": own
            and {name: own[name] for name in ("severity", "categories", "refusal", "unusable", "at")},
        }

    def label(self, at: int, said: Said) -> dict[str, Any]:
        """Record what this person says about row `at`. BadInput for a label that the policy does not have."""
        self.page(at)
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        row = human_labels.label_row(self.policy, self.rows[at], said, self.reviewer, now, self.version.ref)
        self._journal([*self.pending, row])
        return self.progress()

    def undo(self) -> dict[str, Any]:
        """Take back the last label that is not saved yet; `undone` is its row, None where there is none."""
        undone = None
        if self.pending:
            last = self.pending[-1]
            self._journal(self.pending[:-1])
            ids = [row["id"] for row in self.rows]
            undone = ids.index(last["parent_id"]) if last["parent_id"] in ids else None
        return self.progress() | {"undone": undone}

    def save(self) -> dict[str, Any]:
        """Make the journal a new version of human_labels; without unsaved labels nothing is made."""
        ref = ""
        if self.pending:
            seen = {row["seen"].partition("@")[0]: row["seen"] for row in self.pending}
            ref = human_labels.save(self.store, self.pending, seen).ref
            self._journal([])
            self._read_saved()
        return self.progress() | {"saved": ref}

    def agreement(self) -> dict[str, Any]:
        """How far people agree on the rows this person has labelled."""
        mine = self.mine()
        shared = [row for row in [*self.saved, *self.pending] if row["parent_id"] in mine]
        return human_labels.agreement(shared)

    def _journal(self, pending: list[dict[str, Any]]) -> None:
        self.pending = pending
        if pending:
            self.store.put_json(self.journal, {"rows": pending})
        else:
            self.store.remove_json(self.journal)
