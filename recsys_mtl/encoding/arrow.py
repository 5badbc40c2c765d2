"""Views of Arrow arrays as addresses and zero-copy numpy arrays, for kernels that read buffers in place.

The Arrow layouts are those of https://arrow.apache.org/docs/format/Columnar.html. Nothing is copied
unless said, and nothing outside an array's own slice is ever described.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys_mtl.errors import EncodingError

# How a value is found. Plain integers, because the kernels take them as arguments.
NULLS: Final = 0  # no buffers at all
OFFSETS_32: Final = 1  # offsets into one byte buffer
OFFSETS_64: Final = 2
VIEWS: Final = 3  # 16-byte views: short values inline, long ones in one of several buffers
FIXED_BYTES: Final = 4  # `width` bytes each
SIGNED: Final = 5  # integers of `width` bytes
UNSIGNED: Final = 6
BITS: Final = 7  # one bit each
MILLISECONDS: Final = 8  # int64 milliseconds of a whole number of days
NUMBERS: Final = 9  # float64, NaN where missing

_VIEW_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ColumnView:
    """Describe where the values of one Arrow array lie.

    Addresses are those of the whole buffers: value `i` of the array is number `offset + i` of them.
    An address is valid while the view lives.

    Parameters
    ----------
    owner
        What keeps the buffers alive: the array looked at.
    kind
        One of the layout constants of this module.
    width
        Bytes of a value; 0 where values have different lengths.
    offset
        The slice's first value in the buffers.
    validity
        Address of the validity bits; 0 when no value is null.
    values
        Address of the values: bytes, 16-byte views, integers or bits.
    offsets
        Address of the offsets; 0 where there are none.
    buffers
        Addresses of the data buffers that views point into.
    """

    owner: object
    kind: int
    width: int
    offset: int
    validity: int = 0
    values: int = 0
    offsets: int = 0
    buffers: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def layout(self) -> tuple[int, ...]:
        """The numbers a kernel needs, in the order it takes them."""
        return self.kind, self.width, self.offset, self.validity, self.values, self.offsets


@dataclass(frozen=True, slots=True)
class ListView:
    """Hold the items of a list column and where each row's items begin.

    Parameters
    ----------
    values
        The items of all rows, one after the other.
    offsets
        `rows + 1` positions in `values`, from 0 to its length. A null row has no items.
    valid
        Whether a row is not null, or None when every row is.
    """

    values: pa.Array | pa.ChunkedArray
    offsets: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_] | None


def as_arrow(column: Any) -> pa.Array | pa.ChunkedArray:
    """Take a column of any dataframe library as Arrow, without a copy where the library allows it.

    Parameters
    ----------
    column
        A polars or pandas series, or an Arrow array, chunked or not.

    Returns
    -------
    pa.Array | pa.ChunkedArray
        The column; NaN of pandas is null.

    Raises
    ------
    EncodingError
        If Arrow has no one type for its values, or a string is no valid text.
    TypeError
        If it is no column.
    """
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    try:
        if isinstance(column, pl.Series):
            if column.dtype == pl.Object:  # of which the capsule holds addresses
                raise pa.ArrowInvalid("they are Python objects")
            return pa.chunked_array(column)  # by the capsule: strings stay views
        if type(column).__module__.startswith("pandas") and getattr(column, "ndim", 0) == 1:
            return pa.Array.from_pandas(column)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise EncodingError(f"Arrow has no type for the column's values: {error}") from error
    raise TypeError(
        "A column must be a polars or pandas series or an Arrow array."
        f" Found {type(column).__name__}."
    )


def chunks_of(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    """Give the column's contiguous arrays, in order.

    Parameters
    ----------
    column
        An Arrow column, chunked or not.

    Returns
    -------
    list[pa.Array]
        Its chunks; empty ones are left out.
    """
    arrays = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [array for array in arrays if len(array)]


def view_column(array: pa.Array) -> ColumnView:
    """Describe the buffers of an array of strings, bytes, integers, booleans, dates or nulls.

    Parameters
    ----------
    array
        One contiguous array, possibly a slice.

    Returns
    -------
    ColumnView
        The addresses of its buffers.

    Raises
    ------
    EncodingError
        If the type is none of those; a dictionary's codes and values are viewed separately.
    """
    kind, width = _layout(array.type)
    if kind == NULLS:
        return ColumnView(array, kind, width, array.offset)
    validity, *data = (buffer.address if buffer else 0 for buffer in array.buffers())
    if not array.null_count:
        validity = 0
    if kind in (OFFSETS_32, OFFSETS_64):
        offsets, values = data
        return ColumnView(array, kind, width, array.offset, validity, values, offsets)
    values, *rest = data
    buffers = np.array(rest, np.int64)
    return ColumnView(array, kind, width, array.offset, validity, values, buffers=buffers)


def view_lists(column: pa.Array | pa.ChunkedArray) -> ListView:
    """Split a list column into its items and 64-bit offsets that start at 0.

    Parameters
    ----------
    column
        A column of type list, large_list or fixed_size_list.

    Returns
    -------
    ListView
        Items without copy (except where a null row hides some: then the others are gathered),
        offsets and validity. The items are chunked if the column is.

    Raises
    ------
    EncodingError
        If the column is no list.
    """
    if isinstance(column, pa.Array):
        return _view_list_array(column)
    _check_list(column.type)
    views = [_view_list_array(chunk) for chunk in chunks_of(column)]
    starts = np.cumsum([0, *(len(view.values) for view in views)])
    shifted = [view.offsets[1:] + start for view, start in zip(views, starts, strict=False)]
    items = pa.chunked_array([view.values for view in views], column.type.value_type)
    valid = None
    if any(view.valid is not None for view in views):
        valid = np.concatenate(
            [np.ones(len(v.offsets) - 1, np.bool_) if v.valid is None else v.valid for v in views]
        )
    return ListView(items, np.concatenate([np.zeros(1, np.int64), *shifted]), valid)


def valid_rows(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    """Unpack the validity bits of an array.

    Parameters
    ----------
    array
        One contiguous array, possibly a slice.

    Returns
    -------
    npt.NDArray[np.bool_] | None
        Whether each value is not null, or None when every one is.
    """
    if not array.null_count:
        return None
    bits = array.buffers()[0] if array.buffers() else None
    if bits is None:
        return np.zeros(len(array), np.bool_)
    first, skipped = divmod(array.offset, 8)
    packed = np.frombuffer(bits, np.uint8)[first : first + (skipped + len(array) + 7) // 8]
    unpacked = np.unpackbits(packed, count=skipped + len(array), bitorder="little")
    return unpacked[skipped:].view(np.bool_)


def primitive_values(array: pa.Array) -> npt.NDArray[np.generic]:
    """View an array of integers or floats as numpy, whatever lies under its nulls.

    Parameters
    ----------
    array
        One contiguous array of integers or floats, possibly a slice.

    Returns
    -------
    npt.NDArray[np.generic]
        The values in the array's own type, read-only; unspecified where the array is null.

    Raises
    ------
    EncodingError
        If the array is of another type.
    """
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        msg = f"Values must be integers or floats to be viewed as numbers, got {kind}. Cast the column."
        raise EncodingError(msg)
    dtype = np.dtype(kind.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def view_chosen(values: pa.Array, codes: pa.Array) -> ColumnView:
    """Describe the values that codes choose, for view types, which Arrow itself cannot gather.

    Parameters
    ----------
    values
        The distinct values of a dictionary, string_view or binary_view; at least one.
    codes
        Positions in `values`; those under a null may be anything.

    Returns
    -------
    ColumnView
        One value per code, null where the code or its value is. Only the 16-byte views are copied.
    """
    valid = valid_rows(codes)
    positions = primitive_values(codes).astype(np.int64)
    if valid is not None:
        positions[~valid] = 0
    present = valid_rows(values)
    if present is not None:
        valid = present[positions] if valid is None else valid & present[positions]
    whole = view_column(values)
    table = np.frombuffer(values.buffers()[1], f"V{_VIEW_BYTES}")[values.offset :]
    chosen = pa.py_buffer(table[positions])
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return ColumnView(
        owner=(values, chosen, bits),
        kind=VIEWS,
        width=0,
        offset=0,
        validity=bits.address if bits else 0,
        values=chosen.address,
        buffers=whole.buffers,
    )


def _layout(kind: pa.DataType) -> tuple[int, int]:
    """Return the layout constant and the width in bytes of a type."""
    types = pa.types
    if types.is_string(kind) or types.is_binary(kind):
        return OFFSETS_32, 0
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return OFFSETS_64, 0
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return VIEWS, 0
    if types.is_fixed_size_binary(kind):
        return FIXED_BYTES, kind.byte_width
    if types.is_signed_integer(kind) or types.is_date32(kind):
        return SIGNED, kind.bit_width // 8
    if types.is_unsigned_integer(kind):
        return UNSIGNED, kind.bit_width // 8
    if types.is_date64(kind):
        return MILLISECONDS, 8
    if types.is_boolean(kind):
        return BITS, 0
    if types.is_null(kind):
        return NULLS, 0
    msg = (
        "A categorical column must hold strings, bytes, integers, booleans or dates, "
        f"got {kind}. Cast it to a string or an integer first."
    )
    raise EncodingError(msg)


def _check_list(kind: pa.DataType) -> None:
    types = pa.types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        msg = f"A bag or history must be a list column, got {kind}. Cast it to a list of ids."
        raise EncodingError(msg)


def _view_list_array(array: pa.Array) -> ListView:
    kind, rows = array.type, len(array)
    _check_list(kind)
    valid = valid_rows(array)
    if not rows:
        return ListView(array.values.slice(0, 0), np.zeros(1, np.int64), None)
    if pa.types.is_fixed_size_list(kind):
        raw = np.arange(array.offset, array.offset + rows + 1, dtype=np.int64) * kind.list_size
    else:
        dtype = np.dtype(np.int64 if pa.types.is_large_list(kind) else np.int32)
        first = array.offset * dtype.itemsize
        raw = np.frombuffer(array.buffers()[1], dtype, count=rows + 1, offset=first)
    lengths = np.diff(raw)
    if valid is None or not lengths[~valid].any():
        first = int(raw[0])
        items = array.values.slice(first, int(raw[-1]) - first)
        return ListView(items, raw.astype(np.int64) - first, valid)
    lengths = np.where(valid, lengths, 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    # Arrow lets a null list own items; flatten() leaves them out.
    return ListView(array.flatten(), offsets, valid)
