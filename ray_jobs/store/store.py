"""`Store`: every call of the package in one class, picklable, so that Ray tasks can carry it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_jobs.store import artifacts, compact, exclude, push, retention, tables, versions
from ray_jobs.store.diff import Diff, diff_versions
from ray_jobs.store.lineage import LineageRow, descend, trace
from ray_jobs.store.lock import hold
from ray_jobs.store.provenance import Provenance, TableVersion, storage_errors
from ray_jobs.store.pull import pull_version
from ray_jobs.store.root import Root


class Store:
    """Tables, records and folders under one root.

    References are "prompts" (newest), "prompts@v3" or "prompts@tag". Wrong names and references raise
    BadInput, broken or refusing storage StoreError; both are one sentence. Nothing is created before the
    first write.
    """

    def __init__(self, root: str) -> None:
        """`root` is a local folder or s3://bucket/prefix. BadInput when it is a file."""
        self.files = Root(str(root))

    @property
    def root(self) -> str:
        """The root as an absolute path or s3 address."""
        return self.files.address

    def tables(self) -> list[str]:
        """Names of the tables that have a version, sorted."""
        return versions.names(self.files)

    def versions(self, name: str) -> list[TableVersion]:
        """All versions of a table, oldest first. BadInput for an unknown table."""
        tags = versions.tags_of(self.files, name)
        return [
            versions.describe(self.files, name, v, tags) for v in versions.version_numbers(self.files, name)
        ]

    def log(self, name: str) -> list[TableVersion]:
        """All versions of a table, newest first."""
        return self.versions(name)[::-1]

    def resolve(self, ref: str) -> TableVersion:
        """The one version that `ref` means."""
        return versions.resolve(self.files, ref)

    def find(self, name: str, identity: str) -> TableVersion | None:
        """The newest version of a table that a step of this identity made; None when there is none."""
        if not versions.exists(self.files, name):
            return None
        tags = versions.tags_of(self.files, name)
        newest_first = reversed(versions.version_numbers(self.files, name))
        found = (versions.describe(self.files, name, number, tags) for number in newest_first)
        return next((version for version in found if version.provenance.identity == identity), None)

    def provenance(self, ref: str) -> Provenance:
        """What a version carries about how it was made."""
        return self.resolve(ref).provenance

    def read(self, ref: str, columns: list[str] | None = None, filter: str | None = None) -> pa.Table:
        """A version's rows, in the order they were committed. `filter` is SQL: "language = 'en'"."""
        with storage_errors(f"read {ref}"):
            return self._scan(ref, columns).to_table(columns=columns, filter=filter).replace_schema_metadata()

    def batches(
        self, ref: str, columns: list[str] | None = None, rows: int = 16_384
    ) -> Iterator[pa.RecordBatch]:
        """A version's rows in order, at most `rows` at a time."""
        with storage_errors(f"read {ref}"):
            yield from self._scan(ref, columns).to_batches(columns=columns, batch_size=rows)

    def take(self, ref: str, positions: list[int], columns: list[str] | None = None) -> pa.Table:
        """The rows at `positions`, as `read` would number them."""
        with storage_errors(f"read {ref}"):
            return self._scan(ref, columns).take(positions, columns=columns).replace_schema_metadata()

    def schema(self, ref: str) -> pa.Schema:
        """A version's columns, as they were declared."""
        return self._scan(ref, None).schema.remove_metadata()

    def dataset(self, ref: str, columns: list[str] | None = None) -> Any:
        """A version as a `ray.data.Dataset`, read lazily by fragment."""
        import ray.data

        at = self.resolve(ref)
        if at.rows == 0:  # no fragment, no block: a Lance read would lose the schema
            empty = self.schema(at.ref).empty_table()
            return ray.data.from_arrow(empty.select(columns) if columns else empty)
        return ray.data.read_lance(
            self.files.uri(versions.folder(at.name)),
            version=at.version,
            columns=columns,
            storage_options=self.files.storage_options,
        )

    def write_fragments(self, name: str, table: pa.Table, schema: pa.Schema) -> list[str]:
        """Writes rows for a later `commit`, from any process; returns one JSON text per fragment.

        The columns may come in any order; `digest` is computed. BadInput when a column is missing, unknown,
        of another type or null against the schema, or when an id comes twice. Nothing becomes visible.
        """
        return tables.write(self.files, name, table, schema)

    def fragments_exist(self, name: str, fragments: list[str]) -> bool:
        """Whether every data file of the fragments is still there, whole."""
        return tables.fragments_exist(self.files, name, fragments)

    def commit(
        self, name: str, schema: pa.Schema, fragments: list[str], provenance: Provenance
    ) -> TableVersion:
        """One new version that consists of exactly these fragments (none: an empty table) and its provenance.

        Fragments may have been committed before. StoreError when files are gone, schemas differ or an id
        comes twice; earlier versions stay as they are. With several writers, each gets a version of its own.
        """
        return tables.commit(self.files, name, schema, fragments, provenance)

    def tag(self, ref: str, tag: str) -> TableVersion:
        """Names a version; a tag that exists moves. A tagged version is never cleaned up."""
        return versions.set_tag(self.files, ref, tag)

    def untag(self, name: str, tag: str) -> None:
        """Takes a tag off. BadInput when the table has no such tag."""
        versions.remove_tag(self.files, name, tag)

    def diff(self, a: str, b: str) -> Diff:
        """What changed from version `a` to version `b`, by id and digest, with changed rows per column."""
        return diff_versions(self, a, b)

    def pull(self, ref: str, folder: str | Path, format: str = "parquet") -> dict[str, Any]:
        """Copies one exact version into `folder` (parquet, jsonl or lance) and returns its manifest.

        Parts that an earlier, broken pull left whole are kept; every row is checked against its digest.
        """
        return pull_version(self, ref, Path(folder), format)

    def push(self, ref: str, target: "Store") -> TableVersion:
        """Copies one exact version, checkpoints included, into another store; what has arrived before is kept.

        Every row is checked against its digest on both sides. Returns the target's version of it.
        """
        return push.push_version(self, ref, target)

    def push_lineage(self, ref: str, target: "Store") -> list[TableVersion]:
        """`push` of all that a version was made from, and of itself, last."""
        return push.push_lineage(self, ref, target)

    def compact(self, name: str) -> TableVersion:
        """The newest version's rows in few files, as a new version that steps take for the same."""
        return compact.compact(self, name)

    def exclude(
        self, name: str, where: Mapping[str, str], reason: str, dry_run: bool = False
    ) -> exclude.Excluded:
        """Drops rows by column values, and all that was made from them, across tables, for good."""
        return exclude.exclude(self, name, where, reason, dry_run)

    def excluded_ids(self) -> pa.Array:
        """The ids of rows that no later version may have."""
        return exclude.excluded_ids(self)

    def lineage(self, ref: str, id: str) -> list[LineageRow]:
        """The row and all it was made from, back to the seed. BadInput when `ref` has no such row."""
        return trace(self, ref, id)

    def children(self, ref: str, id: str) -> list[LineageRow]:
        """All rows made from this one, in the newest version of each table that `ref` went into."""
        return descend(self, ref, id)

    def cleanup(self, keep: int, dry_run: bool = False) -> list[str]:
        """Removes versions beyond the newest `keep` of each table and returns their names.

        What bears a tag, what a checkpoint was trained on, and what a kept version was made from all stay.
        """
        return retention.cleanup(self, keep, dry_run)

    def lock(self) -> AbstractContextManager[None]:
        """Holds the root for one run; a second one gets `Busy`. A dead holder's lock is free."""
        return hold(self.files)

    def put_json(self, path: str, record: Any) -> None:
        """Writes one small record atomically, at a path inside the root."""
        self.files.put_json(path, record)

    def get_json(self, path: str) -> Any:
        """The record at a path; None when there is none."""
        return self.files.get_json(path)

    def remove_json(self, path: str) -> None:
        """Removes the record at a path, if it is there."""
        self.files.delete(path)

    def list_json(self, prefix: str) -> list[str]:
        """Paths of the records under a folder, sorted; each is what `get_json` takes."""
        return self.files.list_json(prefix)

    def artifact_dir(self, name: str) -> str:
        """A local folder to write a checkpoint in; one name has one folder, so a run can resume."""
        return artifacts.working_dir(self.files, name)

    def working_folder(self, name: str) -> Path:
        """Where `artifact_dir` is, or would be."""
        return artifacts.working_path(self.files, name)

    def put_folder(self, local_dir: str, name: str) -> tuple[str, str]:
        """Stores a folder for good: (its path inside the root, the sha256 of its content)."""
        return artifacts.put_folder(self.files, local_dir, name)

    def get_folder(self, uri: str, sha256: str) -> str:
        """A local folder with exactly that content. StoreError when it is gone or not what was stored."""
        return artifacts.get_folder(self.files, uri, sha256)

    def _scan(self, ref: str, columns: list[str] | None) -> Any:
        at = self.resolve(ref)
        dataset = versions.open_table(self.files, at.name, at.version)
        versions.known_columns(at.ref, dataset.schema, columns)
        return dataset
