"""Digests: what must change them, what must not, and a fixed value that holds on every machine."""

import math
import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.store import row_digests
from ray_jobs.store.digest import encode_column, kind_of

texts = st.none() | st.text(max_size=8)
floats = st.none() | st.floats(width=32)
messages = st.none() | st.fixed_dictionaries({"role": texts, "content": texts})
records = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=5),
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "ok": st.none() | st.booleans(),
            "p": st.none() | st.lists(floats, max_size=3),
            "history": st.none() | st.lists(messages, max_size=3),
            "blob": st.none() | st.binary(max_size=4),
        }
    ),
    max_size=6,
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n", pa.int64()),
        ("ok", pa.bool_()),
        ("p", pa.list_(pa.float32())),
        ("history", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("blob", pa.binary()),
    ]
)
WIDE = pa.schema(
    [
        ("blob", pa.large_binary()),
        ("history", pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.string())]))),
        ("p", pa.large_list(pa.float64())),
        ("ok", pa.bool_()),
        ("n", pa.int64()),
        ("id", pa.large_string()),
    ]
)


def digests(rows: list[dict], schema: pa.Schema = SCHEMA) -> list[str]:
    return row_digests(pa.Table.from_pylist(rows, schema=schema)).to_pylist()


def canonical(value: object) -> object:
    """An oracle for equality: floats by their bits, with one NaN and one zero."""
    if isinstance(value, float):
        return ("f", "nan" if math.isnan(value) else struct.pack("<d", value + 0.0))
    if isinstance(value, bool):
        return ("b", value)
    if isinstance(value, list):
        return tuple(canonical(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, canonical(v)) for k, v in sorted(value.items()))
    return value


@given(records)
@settings(max_examples=100, deadline=None)
def test_digests_are_equal_exactly_when_rows_are(rows):
    keys = [canonical(row) for row in rows]
    found = digests(rows)
    assert all((found[i] == found[j]) == (keys[i] == keys[j]) for i in range(len(rows)) for j in range(i))


@given(records, st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_chunks_slices_widths_and_column_order_do_not_count(rows, a, b):
    whole = pa.Table.from_pylist(rows, schema=SCHEMA)
    low, high = sorted((min(a, len(rows)), min(b, len(rows))))
    cut = pa.concat_tables([whole.slice(0, low), whole.slice(low, high - low), whole.slice(high)])
    expected = row_digests(whole).to_pylist()
    assert row_digests(cut).to_pylist() == expected
    assert row_digests(whole.slice(low)).to_pylist() == expected[low:]
    assert digests(rows, WIDE) == expected
    assert row_digests(whole.append_column("digest", pa.array(["x"] * len(rows)))).to_pylist() == expected


@given(st.lists(st.lists(st.lists(texts, max_size=3) | st.none(), max_size=3), max_size=4))
@settings(max_examples=60, deadline=None)
def test_borders_of_nested_lists_count(values):
    column = encode_column(pa.array(values, pa.list_(pa.list_(pa.string())))).to_pylist()
    keys = [repr(v) for v in values]
    assert all((column[i] == column[j]) == (keys[i] == keys[j]) for i in range(len(keys)) for j in range(i))


def test_what_lies_under_a_null_does_not_count():
    values = pa.array([1, 2, 3], pa.int64())
    offsets = pa.array([0, 2, 3], pa.int32())
    hidden = pa.ListArray.from_arrays(offsets, values, mask=pa.array([True, False]))
    plain = pa.array([None, [3]], pa.list_(pa.int64()))
    assert row_digests(pa.table({"x": hidden})) == row_digests(pa.table({"x": plain}))
    vectors = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    lists = pa.array([[1.0, 2.0], None], pa.list_(pa.float64()))
    assert row_digests(pa.table({"x": vectors})) == row_digests(pa.table({"x": lists}))


def test_dictionaries_count_as_their_values_and_zero_and_nan_are_one():
    plain = pa.array(["a", None, "a"])
    assert row_digests(pa.table({"x": plain.dictionary_encode()})) == row_digests(pa.table({"x": plain}))
    odd = struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\xff")[0]
    a, b, c, d = row_digests(pa.table({"x": [0.0, -0.0, math.nan, odd]})).to_pylist()
    assert a == b != c == d


def test_names_and_kinds_count():
    one = row_digests(pa.table({"x": [1]}))
    others = [pa.table({"y": [1]}), pa.table({"x": [1.0]}), pa.table({"x": ["1"]}), pa.table({"x": [True]})]
    assert all(row_digests(other) != one for other in others)
    assert row_digests(pa.table({"x": pa.array([1], pa.int8())})) == one
    assert row_digests(pa.table({"x": pa.array([1], pa.uint64())})) == one


def test_a_digest_is_the_same_for_ever():
    """Changing this value makes every stored digest a false alarm."""
    row = {
        "id": "a1",
        "n": 7,
        "ok": True,
        "p": [0.5, None],
        "history": [{"role": "user", "content": "好"}],
        "blob": None,
    }
    assert digests([row]) == ["46312534364c11a88eab"]


def test_types_without_a_digest_are_refused():
    with pytest.raises(TypeError, match="map<string, string> has no digest"):
        kind_of(pa.map_(pa.string(), pa.string()))
