"""One column of a table as numbers, with errors that name the column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys_mtl.encoding.arrow import ListView, as_arrow, view_lists
from recsys_mtl.encoding.batch import FloatArray, IntArray, Ragged
from recsys_mtl.encoding.hashing import table_seed
from recsys_mtl.encoding.maps import RowMap
from recsys_mtl.encoding.sources import (
    Placement,
    Source,
    Words,
    column_hashes,
    id_source,
    table_rows,
)
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Bag, IdFeature, ListFeature, Schema, Vector

Result = TypeVar("Result")

_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Binary)
_NUMBERS = (pl.Boolean, pl.Date)


@dataclass(frozen=True)
class IdType:
    """What kind of ids a column holds.

    Parameters
    ----------
    family
        ``"text"`` or ``"numbers"``; ids of one family are hashed alike, whatever their type.
    dtype
        The type they were found in, for errors.
    """

    family: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.family} ({self.dtype})"


def id_type(feature: IdFeature, column: pl.Series) -> IdType | None:
    """Tell what kind of ids a column holds; None where no value tells, or the type is no id's."""
    dtype = column.dtype
    if _holds_nothing(column):
        return None
    if isinstance(feature, ListFeature) and feature.separator is not None:
        return IdType("text", str(dtype))
    if isinstance(feature, ListFeature):
        inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else pl.Null()
    else:
        inner = dtype
    # Bytes are hashed as strings are; booleans and dates as integers are.
    if inner in _TEXTS:
        return IdType("text", str(dtype))
    return IdType("numbers", str(dtype)) if inner.is_numeric() or inner in _NUMBERS else None


def _holds_nothing(column: pl.Series) -> bool:
    """Tell whether the column's type says nothing, as no row has a value of it."""
    if column.null_count() == column.len():
        return True
    if column.dtype.is_float():  # what pandas makes of a column without values
        return bool(column.is_nan().fill_null(True).all())
    return isinstance(column.dtype, pl.List) and column.list.len().sum() == 0


def read_source(schema: Schema, feature: IdFeature, column: pl.Series, rows: RowMap) -> Source:
    """Prepare a column of one id per row for `table_rows`."""
    return _explained(feature, id_source, column, _placements(schema, feature, rows)[0])


def read_several(schema: Schema, feature: IdFeature, frame: pl.DataFrame, rows: RowMap) -> Ragged:
    """Encode a list feature, or one id per row by two hashes: each id's rows and their factors."""
    column = frame[feature.source]
    if isinstance(feature, ListFeature):
        listed = _lists(column, feature)
        values, lengths = listed.values, np.diff(listed.offsets)
    else:
        values, lengths = column, np.ones(column.len(), np.int64)
    placements = _placements(schema, feature, rows)
    sources = [_explained(feature, id_source, values, placement) for placement in placements]
    found = table_rows(sources)
    weights = np.ones(len(values), dtype=np.float32)
    if isinstance(feature, ListFeature):
        if isinstance(feature, Bag) and feature.weights is not None:
            weights = _list_weights(frame[feature.weights], lengths, feature)
        kept = _within_cap(lengths, feature)
        if kept is not None:
            found, weights = found[kept], weights[kept]
            lengths = np.minimum(lengths, feature.max_length or 0)
        weights = _pooling(lengths, weights, feature)
    num_hashes = found.shape[1]
    if num_hashes > 1:
        weights = np.repeat(weights / np.float32(num_hashes), num_hashes)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths * num_hashes)])
    return Ragged(found.reshape(-1), offsets, weights)


def read_tokens(
    schema: Schema, feature: IdFeature, frame: pl.DataFrame
) -> tuple[Words, IntArray | None]:
    """Hash all ids of a feature to tokens; the second value is each row's number of them, if several."""
    column = frame[feature.source]
    placement = Placement(table_seed(feature.table_name), schema.hash)
    hashed = partial(_explained, feature, partial(column_hashes, as_tokens=True))
    if not isinstance(feature, ListFeature):
        return hashed(column, placement), None
    listed = _lists(column, feature)
    tokens, lengths = hashed(listed.values, placement), np.diff(listed.offsets)
    kept = _within_cap(lengths, feature)
    if kept is None:
        return tokens, lengths
    return tokens[kept], np.minimum(lengths, feature.max_length or 0)


def read_numbers(column: pl.Series, name: str) -> npt.NDArray[np.float64]:
    """Return the column as float64 with NaN where it is null; infinities are an error."""
    if column.dtype == pl.Null:
        return np.full(column.len(), np.nan)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise EncodingError(
            f"Feature {name!r} reads column {column.name!r}, which must hold numbers."
            f" Found {column.dtype}. Cast the column, or declare the feature Categorical."
        )
    values = column.cast(pl.Float64).to_numpy()
    infinite = np.isinf(values)
    if infinite.any():
        raise EncodingError(
            f"Feature {name!r} reads column {column.name!r}, which must hold finite numbers or null."
            f" Found {int(infinite.sum())} infinite values, the first in row {int(infinite.argmax())}."
        )
    return values


def read_vectors(column: pl.Series, feature: Vector) -> FloatArray:
    """Return a column of float lists as an array of shape (n, dim); null lists become zeros."""
    dtype = column.dtype
    if dtype == pl.Null:
        return np.zeros((column.len(), feature.dim), dtype=np.float32)
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if inner is None or not inner.is_numeric():
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold lists of"
            f" {feature.dim} numbers. Found {dtype}."
        )
    listed = view_lists(pa.chunked_array(column.cast(pl.List(pl.Float32))))
    present = np.ones(column.len(), dtype=np.bool_) if listed.valid is None else listed.valid
    lengths = np.diff(listed.offsets)
    wrong = present & (lengths != feature.dim)
    if wrong.any():
        row = int(wrong.argmax())
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold lists of"
            f" {feature.dim} numbers. Found length {lengths[row]} in row {row}."
        )
    out = np.zeros((column.len(), feature.dim), dtype=np.float32)
    out[present] = listed.values.to_numpy().reshape(-1, feature.dim)
    finite = np.isfinite(out).all(axis=1)
    if not finite.all():
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, whose lists must hold finite"
            f" numbers. Found null, NaN or infinity inside the list in row {int(finite.argmin())}."
        )
    return out


def _placements(schema: Schema, feature: IdFeature, rows: RowMap) -> list[Placement]:
    seed = table_seed(feature.table_name)
    return [rows.placement(seed, schema.hash, number) for number in range(feature.num_lookups)]


def _explained(
    feature: IdFeature,
    function: Callable[[pa.Array | pa.ChunkedArray, Placement], Result],
    column: pl.Series | pa.Array | pa.ChunkedArray,
    placement: Placement,
) -> Result:
    """Call a function of a column; an error of it names the feature."""
    try:
        return function(as_arrow(column), placement)
    except EncodingError as error:
        raise EncodingError(
            f"Feature {feature.name!r} reads column {feature.source!r}: {error}"
        ) from None


def _lists(column: pl.Series, feature: ListFeature) -> ListView:
    """Return the ids of all rows one after another, and where each row's begin."""
    if column.dtype == pl.Null:
        column = column.cast(pl.List(pl.Null))
    elif feature.separator is not None:
        column = _pieces(column, feature, feature.separator)
    if not isinstance(column.dtype, pl.List | pl.Array):
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold lists. Found"
            f" {column.dtype}. If it holds joined strings, give the feature a separator."
        )
    return view_lists(pa.chunked_array(column))


def _pieces(column: pl.Series, feature: ListFeature, separator: str) -> pl.Series:
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold strings to be"
            f" split at {separator!r}. Found {column.dtype}."
        )
    frame = column.str.split(separator).to_frame()
    stripped = pl.element().str.strip_chars()  # "a, b" holds the ids "a" and "b"
    pieces = pl.col(column.name).list.eval(stripped.filter(stripped != ""))
    return frame.select(pieces)[column.name]


def _within_cap(lengths: IntArray, feature: ListFeature) -> npt.NDArray[np.bool_] | None:
    """Mark the ids within `max_length`: a bag's first ones, a history's last ones."""
    cap = feature.max_length
    if cap is None or lengths.size == 0 or int(lengths.max()) <= cap:
        return None
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    if isinstance(feature, Bag):
        return position < cap
    return position >= np.repeat(lengths - cap, lengths)


def _list_weights(column: pl.Series, lengths: IntArray, feature: Bag) -> FloatArray:
    place = f"Feature {feature.name!r} reads weights from column {column.name!r}, which must hold"
    if column.dtype == pl.Null:
        column = column.cast(pl.List(pl.Float32))
    inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else None
    if inner is None or not (inner.is_numeric() or inner == pl.Null):
        raise EncodingError(f"{place} lists of numbers. Found {column.dtype}.")
    listed = view_lists(pa.chunked_array(column.cast(pl.List(pl.Float32))))
    counts = np.diff(listed.offsets)
    wrong = counts != lengths
    if wrong.any():
        row = int(wrong.argmax())
        raise EncodingError(
            f"{place} one weight per id. Found {counts[row]} weights for {lengths[row]} ids in row"
            f" {row}."
        )
    weights: FloatArray = listed.values.to_numpy()
    allowed = np.isfinite(weights) & (weights >= 0)
    if not allowed.all():
        row = int(np.searchsorted(listed.offsets, allowed.argmin(), side="right")) - 1
        raise EncodingError(f"{place} finite weights of at least 0. Row {row} breaks this.")
    return weights


def _pooling(lengths: IntArray, weights: FloatArray, feature: ListFeature) -> FloatArray:
    """Return each id's factor in the pooled vector; a mean over weights that sum to 0 gives 0."""
    if isinstance(feature, Bag) and feature.pooling == "sum":
        return weights
    row = np.repeat(np.arange(lengths.size), lengths)
    total = np.bincount(row, weights=weights, minlength=lengths.size).astype(np.float64)
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return (weights * inverse[row]).astype(np.float32)
