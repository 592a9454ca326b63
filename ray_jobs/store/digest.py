"""Row digests: BLAKE2b-80 of a canonical encoding of every column, stable across machines and Arrow layouts.

Each column is turned into one byte string per row by whole-array operations, the columns of a row are joined,
and only the final hash runs row by row. The encoding is injective within a type: a fixed-width value takes 9
bytes (1 valid, 8 little-endian), text and lists carry their length in such a cell, structs a cell and their
children. Canonical means: null slots hold zeros whatever the buffer says, -0.0 equals 0.0, all NaNs are one,
widths of integers, floats and offsets do not count, columns and struct fields are taken by name. Column names
and kinds seed the hash, so renaming a column changes every digest of the table.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.store.provenance import StoreError

DIGEST_COLUMN = "digest"
_BATCH_ROWS = 16_384  # bounds the encoded copy; beyond 8k rows the batch size no longer shows in the speed
_CELL = np.dtype([("valid", "u1"), ("word", "<u8")])


def row_digests(table: pa.Table) -> pa.Array:
    """One 20-digit hexadecimal string per row of `table`, over all columns but `digest`.

    Raises TypeError for a column type outside numbers, booleans, times, text, bytes, lists and structs.
    """
    columns = sorted(name for name in table.column_names if name != DIGEST_COLUMN)
    kinds = [(name, kind_of(table.schema.field(name).type)) for name in columns]
    seeded = hashlib.blake2b(json.dumps(kinds, ensure_ascii=False).encode(), digest_size=10)
    digests: list[str] = []
    for start in range(0, table.num_rows, _BATCH_ROWS):
        rows = table.slice(start, _BATCH_ROWS)
        encoded = _joined([encode_column(rows.column(name)) for name in columns])
        offsets, data = _offsets(encoded).tolist(), memoryview(encoded.buffers()[2] or b"")
        for i in range(len(encoded)):
            state = seeded.copy()
            state.update(data[offsets[i] : offsets[i + 1]])
            digests.append(state.hexdigest())
    return pa.array(digests, pa.string())


def check_digests(ref: str, rows: pa.Table) -> pa.Table:
    """`rows`, each with its stored digest. StoreError names the first that differs."""
    bad = rows.column("id").filter(pc.not_equal(row_digests(rows), rows.column(DIGEST_COLUMN)))
    if len(bad):
        raise StoreError(f"{ref} is damaged: row {bad[0]} and {len(bad) - 1} more differ from their digests")
    return rows


def encode_column(column: pa.Array | pa.ChunkedArray) -> pa.LargeBinaryArray:
    """The canonical bytes of every value; equal bytes mean equal values of the same kind."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return encode_column(array.cast(kind.value_type))
    if pa.types.is_struct(kind):
        children = dict(zip([f.name for f in kind], array.flatten(), strict=True))
        head = _cells(_valid(array), np.zeros(len(array), "<u8"))
        return _joined([head, *(encode_column(children[name]) for name in sorted(children))])
    if is_list(kind):
        return _encode_list(array)
    if _is_text(kind):
        values = array.cast(pa.large_binary())
        head = _cells(_valid(array), _words(pc.binary_length(values)))
        return _joined([head, values.fill_null(b"")])
    return _cells(_valid(array), _words(array))


def kind_of(kind: pa.DataType) -> str:
    """The name of a type as digests see it: widths and layouts left out. TypeError if unsupported."""
    if pa.types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if pa.types.is_struct(kind):
        return "struct<" + ",".join(sorted(f"{f.name}:{kind_of(f.type)}" for f in kind)) + ">"
    if is_list(kind):
        return f"list<{kind_of(kind.value_type)}>"
    names: Iterable[tuple[str, bool]] = (
        ("text", pa.types.is_string(kind) or pa.types.is_large_string(kind)),
        ("bytes", _is_text(kind)),
        ("bool", pa.types.is_boolean(kind)),
        ("int", pa.types.is_integer(kind)),
        ("float", pa.types.is_floating(kind)),
        (str(kind), pa.types.is_temporal(kind) and not pa.types.is_interval(kind)),
        ("null", pa.types.is_null(kind)),
    )
    for name, matches in names:
        if matches:
            return name
    raise TypeError(f"a column of type {kind} has no digest: use numbers, text, times, lists or structs")


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any layout."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or pa.types.is_fixed_size_binary(kind)


def _encode_list(array: pa.Array) -> pa.LargeBinaryArray:
    """The length, then the values one after the other: a re-slicing of the encoded values, without a copy."""
    lengths = _words(pc.list_value_length(array)).astype(np.int64)
    values = encode_column(array.flatten())  # skips what lies under a null list
    ends = np.concatenate([[0], np.cumsum(lengths)])
    offsets = pa.py_buffer(np.ascontiguousarray(_offsets(values)[ends]))
    rows = pa.Array.from_buffers(pa.large_binary(), len(array), [None, offsets, values.buffers()[2]])
    return _joined([_cells(_valid(array), lengths.astype("<u8")), rows])


def _words(array: pa.Array) -> np.ndarray:
    """Values as 64-bit words, [N]; zero where null."""
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array), "<u8")
    if pa.types.is_floating(kind):
        floats = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0
        floats[np.isnan(floats)] = np.nan
        return floats.astype("<f8").view("<u8")
    if pa.types.is_uint64(kind):
        return array.fill_null(0).to_numpy(zero_copy_only=False).astype("<u8")
    if pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    return array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<i8").view("<u8")


def _valid(array: pa.Array) -> np.ndarray:
    return array.is_valid().to_numpy(zero_copy_only=False)


def _cells(valid: np.ndarray, words: np.ndarray) -> pa.LargeBinaryArray:
    """One 9-byte cell per row."""
    cells = np.zeros(len(words), _CELL)
    cells["valid"] = valid
    cells["word"] = np.where(valid, words, 0)
    offsets = pa.py_buffer(np.arange(len(words) + 1, dtype=np.int64) * _CELL.itemsize)
    return pa.Array.from_buffers(pa.large_binary(), len(words), [None, offsets, pa.py_buffer(cells)])


def _offsets(array: pa.LargeBinaryArray) -> np.ndarray:
    """Offsets into the data buffer, [N + 1]."""
    if len(array) == 0:
        return np.zeros(1, np.int64)
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _joined(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    separator = pa.scalar(b"", pa.large_binary())
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, separator)
