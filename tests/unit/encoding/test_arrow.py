import ctypes
import itertools

import numpy as np
import pyarrow as pa
import pytest

from recsys_mtl.encoding import arrow
from recsys_mtl.errors import EncodingError


def lists_of(view: arrow.ListView):
    """Rebuild Python lists from a ListView, a null row as None."""
    items = view.values.to_pylist()
    bounds = view.offsets.tolist()
    rows = [items[a:b] for a, b in itertools.pairwise(bounds)]
    if view.valid is None:
        return rows
    return [row if valid else None for row, valid in zip(rows, view.valid, strict=True)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.string(), (arrow.OFFSETS_32, 0)),
        (pa.binary(), (arrow.OFFSETS_32, 0)),
        (pa.large_string(), (arrow.OFFSETS_64, 0)),
        (pa.large_binary(), (arrow.OFFSETS_64, 0)),
        (pa.string_view(), (arrow.VIEWS, 0)),
        (pa.binary_view(), (arrow.VIEWS, 0)),
        (pa.binary(3), (arrow.FIXED_BYTES, 3)),
        (pa.int8(), (arrow.SIGNED, 1)),
        (pa.int64(), (arrow.SIGNED, 8)),
        (pa.uint16(), (arrow.UNSIGNED, 2)),
        (pa.bool_(), (arrow.BITS, 0)),
        (pa.date32(), (arrow.SIGNED, 4)),
        (pa.date64(), (arrow.MILLISECONDS, 8)),
        (pa.null(), (arrow.NULLS, 0)),
    ],
)
def test_layout_of_every_id_type(kind: pa.DataType, expected: tuple[int, int]):
    view = arrow.view_column(pa.array([None, None], kind))
    assert (view.kind, view.width) == expected
    assert view.layout[:2] == expected


def test_view_points_at_the_arrays_own_buffers():
    array = pa.array(["a", None, "bc"]).slice(1)
    bits, offsets, values = (buffer.address for buffer in array.buffers())
    view = arrow.view_column(array)
    assert (view.validity, view.offsets, view.values, view.offset) == (bits, offsets, values, 1)


def test_validity_is_left_out_where_a_slice_has_no_null():
    assert arrow.view_column(pa.array([1, None, 2]).slice(2)).validity == 0


def test_view_lists_every_data_buffer_of_string_views():
    array = pa.array(["x" * 40, "short"], pa.string_view())
    assert arrow.view_column(array).buffers.tolist() == [array.buffers()[2].address]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.decimal128(5), pa.float64(), pa.struct([("a", pa.int8())])]
)
def test_type_without_ids_is_refused_by_name(kind: pa.DataType):
    with pytest.raises(EncodingError, match=r"Cast it") as error:
        arrow.view_column(pa.array([None], kind))
    assert str(kind) in str(error.value)


def test_chunks_leave_empty_ones_out():
    column = pa.chunked_array([[], ["a"], [], ["b"]], pa.string())
    assert [chunk.to_pylist() for chunk in arrow.chunks_of(column)] == [["a"], ["b"]]
    assert [chunk.to_pylist() for chunk in arrow.chunks_of(pa.array([1]))] == [[1]]
    assert arrow.chunks_of(pa.array([], pa.int8())) == []


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 20])
def test_valid_rows_respect_the_bit_offset(start: int):
    values = [None if i % 3 == 0 else i for i in range(30)]
    valid = arrow.valid_rows(pa.array(values).slice(start))
    assert valid.tolist() == [value is not None for value in values[start:]]


def test_valid_rows_of_full_and_of_null_columns():
    assert arrow.valid_rows(pa.array([1, 2])) is None
    assert arrow.valid_rows(pa.nulls(3)).tolist() == [False] * 3


def test_primitive_values_share_the_arrays_memory():
    array = pa.array([1.5, None, 3.5, 4.5], pa.float32()).slice(2)
    values = arrow.primitive_values(array)
    assert values.tolist() == [3.5, 4.5]
    assert values.dtype == np.float32
    assert values.ctypes.data == array.buffers()[1].address + 8
    assert arrow.primitive_values(pa.array([], pa.int16())).dtype == np.int16


def test_primitive_values_refuse_strings():
    with pytest.raises(EncodingError, match="got string"):
        arrow.primitive_values(pa.array(["1"]))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
def test_lists_become_items_and_offsets_from_zero(kind: pa.DataType):
    rows = [[9], [1, 2], None, [], [3]]
    view = arrow.view_lists(pa.array(rows, kind).slice(1))
    assert view.offsets.tolist() == [0, 2, 2, 2, 3]
    assert view.offsets.dtype == np.int64
    assert lists_of(view) == rows[1:]


def test_items_of_lists_are_not_copied():
    array = pa.array([[1, 2], [3]])
    view = arrow.view_lists(array)
    assert view.values.buffers()[1].address == array.values.buffers()[1].address
    assert view.valid is None


def test_items_under_a_null_list_are_dropped():
    items = pa.array([1, 2, 3, 4, 5])
    array = pa.ListArray.from_arrays([0, 2, 3, 5], items, mask=pa.array([False, True, False]))
    view = arrow.view_lists(array)
    assert lists_of(view) == [[1, 2], None, [4, 5]]
    assert view.offsets.tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_fixed_size_lists_respect_slices_and_nulls(start: int):
    rows = [[1, 2], None, [5, 6], [7, 8]]
    array = pa.array(rows, pa.list_(pa.int64(), 2)).slice(start)
    assert lists_of(arrow.view_lists(array)) == rows[start:]


def test_chunked_lists_read_as_one():
    rows = [["a"], None, [], ["b", "c"], ["d"]]
    kind = pa.list_(pa.string())
    chunks = [pa.array(rows[:2], kind), pa.array([], kind), pa.array(rows[2:], kind)]
    view = arrow.view_lists(pa.chunked_array(chunks))
    assert lists_of(view) == rows
    assert isinstance(view.values, pa.ChunkedArray)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 3)]
)
def test_list_column_without_rows_has_one_offset(kind: pa.DataType):
    for column in (pa.array([], kind), pa.chunked_array([], kind), pa.array([None], kind)[:0]):
        view = arrow.view_lists(column)
        assert view.offsets.tolist() == [0]
        assert len(view.values) == 0
        assert view.values.type == kind.value_type


@pytest.mark.parametrize("column", [pa.array([1]), pa.chunked_array([["a"]])])
def test_scalar_column_is_no_list(column: pa.Array | pa.ChunkedArray):
    with pytest.raises(EncodingError, match="must be a list column"):
        arrow.view_lists(column)


def read_short_views(view: arrow.ColumnView, rows: int) -> list[bytes | None]:
    """Follow a view of values of up to 12 bytes."""
    raw = np.frombuffer(ctypes.string_at(view.values, 16 * rows), np.uint8).reshape(rows, 16)
    bits = ctypes.string_at(view.validity, rows // 8 + 1) if view.validity else b"\xff" * rows
    return [
        raw[i, 4 : 4 + raw[i, 0]].tobytes() if bits[i // 8] >> i % 8 & 1 else None
        for i in range(rows)
    ]


def test_chosen_values_are_null_where_code_or_value_is():
    values = pa.array(["x", "a", None, "b"], pa.string_view()).slice(1)
    codes = pa.array([2, None, 0, 1, 2], pa.uint8()).slice(1)
    view = arrow.view_chosen(values, codes)
    assert read_short_views(view, 4) == [None, b"a", None, b"b"]
    assert arrow.view_chosen(values, pa.array([0, 2], pa.int64())).validity != 0
    full = arrow.view_chosen(values.slice(0, 1), pa.array([0, 0], pa.int8()))
    assert full.validity == 0
    assert read_short_views(full, 2) == [b"a", b"a"]


def test_chosen_values_keep_their_data_buffers():
    values = pa.array(["a value kept out of line", "another one, also long"], pa.string_view())
    view = arrow.view_chosen(values, pa.array([1], pa.int32()))
    assert view.buffers.tolist() == [buffer.address for buffer in values.buffers()[2:]]
