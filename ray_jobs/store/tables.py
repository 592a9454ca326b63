"""Tables: fragments written by any process, made visible by one Lance commit, read by exact version.

`write` puts data files into the table's folder and returns their metadata; nothing is visible until `commit`
lists them in ONE Overwrite, which also carries the provenance in the schema metadata. A version is thus a
complete list of fragments, and a fragment written for one version serves any later one of the same schema.
Fragments are written in overwrite mode, which numbers fields from the declared schema alone: in append mode
Lance takes the numbers of the version it finds, and a fragment could not outlive a change of schema.

Lance commits fragments whose files are gone and does not look inside: so files, sizes, schema and unique ids
are checked before each commit. Two writers at once get consecutive versions; the one that comes second tries
again.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ray_jobs.store.digest import DIGEST_COLUMN, is_list, kind_of, row_digests
from ray_jobs.store.provenance import (
    METADATA_KEY,
    Overtaken,
    Provenance,
    StoreError,
    TableVersion,
    storage_errors,
)
from ray_jobs.store.root import Root
from ray_jobs.store.versions import exists, folder, lance_module, open_table
from synth.errors import BadInput
from synth.ids import stable_hash

_COMMIT_TRIES = 30
_COMMON = tuple(pa.field(name, pa.string(), nullable=False) for name in ("id", "parent_id", "group_id"))


def table_schema(fields: list[pa.Field]) -> pa.Schema:
    """id, parent_id and group_id in front of `fields`, digest behind. BadInput for a name twice."""
    schema = pa.schema([*_COMMON, *fields, pa.field(DIGEST_COLUMN, pa.string(), nullable=False)])
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise BadInput(
            f"a schema names column {min(twice)} twice (id, parent_id, group_id, digest are built in)"
        )
    for field in schema:
        kind_of(field.type)
    return schema


def write(root: Root, name: str, table: pa.Table, schema: pa.Schema) -> list[str]:
    """Writes rows as fragments of `schema` and returns their metadata as JSON; an empty table gives none."""
    rows = conform(name, table, schema)
    if rows.num_rows == 0:
        return []
    lance_module()
    from lance.fragment import write_fragments

    with storage_errors(f"write table {name} under {root.address}"):
        if root.is_local:
            os.makedirs(root.path(folder(name)), exist_ok=True)
        written = write_fragments(
            rows,
            root.uri(folder(name)),
            schema=schema,
            mode="overwrite",
            storage_options=root.storage_options,
        )
    mark = {"schema": _schema_hash(schema)}
    return [json.dumps(fragment.to_json() | {"guardmill": mark}, sort_keys=True) for fragment in written]


def conform(name: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema` in its order, its types and fresh digests.

    BadInput when columns are missing, unknown, of another type, null against the schema, or an id comes
    twice.
    """
    given, wanted = set(table.column_names), set(schema.names) - {DIGEST_COLUMN}
    for problem, columns in (
        ("lacks", wanted - given),
        ("has the unknown", given - wanted - {DIGEST_COLUMN}),
    ):
        if columns:
            raise BadInput(f"table {name} {problem} column {', '.join(sorted(columns))}")
    cast = []
    for field in schema.remove(schema.get_field_index(DIGEST_COLUMN)):
        column = table.column(field.name)
        if column.null_count and not field.nullable:
            raise BadInput(f"table {name}: column {field.name} has no value in {column.null_count} rows")
        if not fits(column.type, field.type):
            raise BadInput(f"table {name}: column {field.name} is {column.type}, not {field.type}")
        try:
            cast.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise BadInput(f"table {name}: column {field.name}: {str(error).splitlines()[0]}") from error
    rows = pa.table(cast, names=[n for n in schema.names if n != DIGEST_COLUMN])
    unique_ids(name, rows.column("id"))
    with_digest = rows.append_column(DIGEST_COLUMN, row_digests(rows)).select(schema.names)
    return with_digest.cast(schema.remove_metadata())


def fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast keeps what the values mean: the same kind, nulls, or whole numbers as floats.

    Arrow itself would turn 1 into "1" and drop a struct field that the schema lacks.
    """
    if pa.types.is_null(given) or given == wanted:
        return True
    if pa.types.is_struct(given) and pa.types.is_struct(wanted):
        known = {field.name: field.type for field in wanted}
        return all(field.name in known and fits(field.type, known[field.name]) for field in given)
    if is_list(given) and is_list(wanted):
        return fits(given.value_type, wanted.value_type)
    if pa.types.is_integer(given) and pa.types.is_floating(wanted):
        return True
    try:
        return kind_of(given) == kind_of(wanted)
    except TypeError:  # maps, decimals, views: no schema of ours can ask for one
        return False


def unique_ids(name: str, ids: pa.ChunkedArray) -> None:
    """BadInput naming an id that comes twice."""
    if pc.count_distinct(ids).as_py() != len(ids):
        counted = ids.value_counts()
        first = next(c["values"] for c in counted.to_pylist() if c["counts"] > 1)
        raise BadInput(f"table {name} has the id {first} more than once")


def fragments_exist(root: Root, name: str, fragments: list[str]) -> bool:
    """Whether every data file of `fragments` is there with its full size."""
    return not missing_files(root, name, fragments)


def missing_files(root: Root, name: str, fragments: list[str]) -> list[str]:
    """The data files that are gone or cut short."""
    files = [file for text in fragments for file in json.loads(text)["files"]]
    paths = [f"{folder(name)}/data/{file['path']}" for file in files]
    found = root.infos(paths) if paths else []
    return [
        path
        for path, file, info in zip(paths, files, found, strict=True)
        if info.type != pafs.FileType.File or info.size != (file["file_size_bytes"] or info.size)
    ]


def commit(
    root: Root,
    name: str,
    schema: pa.Schema,
    fragments: list[str],
    provenance: Provenance,
    after: int | None = None,
) -> TableVersion:
    """Makes `fragments` the whole content of a new version, in one commit with its provenance.

    `after`: the version that must still be the newest, else Overtaken. StoreError when a data file is gone, was
    written for another schema, or an id comes twice; the earlier versions stay as they are.
    """
    gone = missing_files(root, name, fragments)
    if gone:
        raise StoreError(
            f"cannot commit table {name}: {len(gone)} data files are gone or cut short, as {gone[0]}"
        )
    if any(json.loads(text)["guardmill"]["schema"] != _schema_hash(schema) for text in fragments):
        raise StoreError(f"cannot commit table {name}: a fragment was written for another schema")
    try:
        unique_ids(name, _ids(root, name, fragments))
    except BadInput as error:
        raise StoreError(f"cannot commit: {error}") from error
    stamped = provenance.stamped()
    version = _overwrite(
        root, name, schema.with_metadata({METADATA_KEY: stamped.to_json().encode()}), fragments, after
    )
    return TableVersion(name, version, sum(json.loads(t)["physical_rows"] for t in fragments), stamped)


def _overwrite(
    root: Root, name: str, schema: pa.Schema, fragments: list[str], after: int | None = None
) -> int:
    """Commits after the newest version, again when another writer was faster; returns the new version."""
    lance = lance_module()
    from lance.commit import CommitConflictError
    from lance.fragment import FragmentMetadata

    metadata = [FragmentMetadata.from_json(_without_mark(text)) for text in fragments]
    operation = lance.LanceOperation.Overwrite(schema, metadata)
    for attempt in range(_COMMIT_TRIES):
        with storage_errors(f"commit table {name} under {root.address}"):
            newest = open_table(root, name).version if exists(root, name) else 0
            if after is not None and newest != after:
                raise Overtaken(f"table {name} has a new version v{newest} since v{after} was read")
            try:
                return lance.LanceDataset.commit(
                    root.uri(folder(name)),
                    operation,
                    read_version=newest,
                    storage_options=root.storage_options,
                    max_retries=0,
                ).version
            except (CommitConflictError, OSError, RuntimeError) as error:
                # a table that came into being meanwhile is no conflict to Lance: it misses version 0
                raced = newest == 0 and exists(root, name)
                if not raced and not isinstance(error, CommitConflictError):
                    raise
                time.sleep(random.random() * 0.02 * (attempt + 1))
    raise StoreError(
        f"cannot commit table {name}: other writers were faster {_COMMIT_TRIES} times; try again"
    )


def _without_mark(text: str) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "guardmill"})


def read_fragments(
    root: Root, name: str, fragments: list[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of fragments, one table for each file, whether a version lists them or not."""
    lance_module()
    from lance.file import LanceFileReader

    def read(path: str) -> pa.Table:
        uri = f"{root.uri(folder(name))}/data/{path}"
        reader = LanceFileReader(uri, storage_options=root.storage_options, columns=columns)
        return reader.read_all().to_table()

    paths = data_files(fragments)
    with storage_errors(f"read the fragments of table {name}"), ThreadPoolExecutor(8) as pool:
        yield from pool.map(read, paths)


def fragments_of(root: Root, at: TableVersion) -> list[str]:
    """The fragments of a version, in order, as `write` gave them: later versions may list them again."""
    dataset = open_table(root, at.name, at.version)
    mark = {"schema": _schema_hash(dataset.schema)}
    found = [fragment.metadata.to_json() for fragment in dataset.get_fragments()]
    return [json.dumps(fragment | {"guardmill": mark}, sort_keys=True) for fragment in found]


def data_files(fragments: list[str]) -> list[str]:
    """The names of the fragments' data files."""
    return [file["path"] for text in fragments for file in json.loads(text)["files"]]


def _ids(root: Root, name: str, fragments: list[str]) -> pa.ChunkedArray:
    """The id column of fragments that no version lists yet."""
    chunks = [chunk for t in read_fragments(root, name, fragments, ["id"]) for chunk in t.column("id").chunks]
    return pa.chunked_array(chunks, pa.string())


def _schema_hash(schema: pa.Schema) -> str:
    return stable_hash([[f.name, str(f.type), f.nullable] for f in schema])
