"""One column of a table as numbers, with errors that name the column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys_mtl.encoding.batch import FloatArray, IntArray
from recsys_mtl.encoding.hashing import bucket_column, table_seed
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Bag, IdFeature, ListFeature, Schema, Vector


@dataclass(frozen=True)
class Codes:
    """Hashed values of an id feature.

    Parameters
    ----------
    codes
        A reserved row or 3 + bucket per value; shape (n,), or (m,) for lists.
    offsets
        For lists: where each row's codes begin, shape (n + 1,). Else 0 .. n.
    weights
        For lists: pooling weight of each code, shape (m,). Else ones.
    """

    codes: IntArray
    offsets: IntArray
    weights: FloatArray


def read_codes(schema: Schema, feature: IdFeature, frame: pl.DataFrame, num_buckets: int) -> Codes:
    """Hash the values of an id feature into `num_buckets` buckets."""
    column = frame[feature.source]
    if isinstance(feature, ListFeature):
        values, lengths = _split(column, feature)
        weights = None
        if isinstance(feature, Bag) and feature.weights is not None:
            weights = _list_weights(frame[feature.weights], lengths, feature)
        keep = _kept(lengths, feature)
        if keep is not None:
            values = values.filter(pa.array(keep))
            weights = None if weights is None else weights[keep]
            lengths = np.minimum(lengths, feature.max_length or lengths.max())
        pooling = _pooling(lengths, weights, feature)
    else:
        values, lengths = _arrow(column), np.ones(column.len(), dtype=np.int64)
        pooling = np.ones(column.len(), dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    seed = table_seed(feature.table_name)
    try:
        codes = bucket_column(values, seed=seed, num_buckets=num_buckets, algorithm=schema.hash)
    except EncodingError as error:
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}: {error}"
        ) from None
    return Codes(codes, offsets, pooling)


def count_distinct(frame: pl.DataFrame, feature: IdFeature) -> int:
    """Count the distinct values of an id feature."""
    column = frame[feature.source]
    if isinstance(feature, ListFeature):
        values, _ = _split(column, feature)
        return len(values.unique())
    return column.n_unique()


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
    listed = column.cast(pl.List(pl.Float32))
    lengths = listed.list.len()
    wrong = (lengths != feature.dim).fill_null(value=False)
    if wrong.any():
        row = wrong.arg_max() or 0
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold lists of"
            f" {feature.dim} numbers. Found length {lengths[row]} in row {row}."
        )
    present = listed.is_not_null().to_numpy()
    out = np.zeros((column.len(), feature.dim), dtype=np.float32)
    values = listed.drop_nulls().explode(empty_as_null=False, keep_nulls=False).to_numpy()
    if not np.isfinite(values).all():
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, whose lists must hold finite"
            " numbers. Found null, NaN or infinity inside a list."
        )
    out[present] = values.reshape(-1, feature.dim)
    return out


def _arrow(column: pl.Series) -> pa.ChunkedArray:
    return pa.chunked_array(column)


def _split(column: pl.Series, feature: ListFeature) -> tuple[pa.Array, IntArray]:
    """Return the ids of all rows one after another, and how many each row has."""
    if column.dtype == pl.Null:
        return pa.nulls(0), np.zeros(column.len(), dtype=np.int64)
    if feature.separator is not None:
        column = _pieces(column, feature, feature.separator)
    if not isinstance(column.dtype, pl.List | pl.Array):
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold lists. Found"
            f" {column.dtype}. If it holds joined strings, give the feature a separator."
        )
    listed = _arrow(column)
    lengths = pc.fill_null(pc.list_value_length(listed), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(listed), lengths


def _pieces(column: pl.Series, feature: ListFeature, separator: str) -> pl.Series:
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        raise EncodingError(
            f"Feature {feature.name!r} reads column {column.name!r}, which must hold strings to be"
            f" split at {separator!r}. Found {column.dtype}."
        )
    frame = column.str.split(separator).to_frame()
    pieces = pl.col(column.name).list.eval(pl.element().filter(pl.element() != ""))
    return frame.select(pieces)[column.name]


def _kept(lengths: IntArray, feature: ListFeature) -> npt.NDArray[np.bool_] | None:
    """Mark the ids within `max_length`: a bag's first ones, a history's last ones."""
    cap = feature.max_length
    if cap is None or lengths.size == 0 or int(lengths.max()) <= cap:
        return None
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    if isinstance(feature, Bag):
        return position < cap
    return position >= np.repeat(lengths - cap, lengths)


def _list_weights(column: pl.Series, lengths: IntArray, feature: ListFeature) -> FloatArray:
    listed = _arrow(column.cast(pl.List(pl.Float32)))
    counts = pc.fill_null(pc.list_value_length(listed), 0).to_numpy()
    wrong = counts != lengths
    if wrong.any():
        row = int(wrong.argmax())
        raise EncodingError(
            f"Feature {feature.name!r}: column {column.name!r} must hold one weight per id."
            f" Found {int(counts[row])} weights for {int(lengths[row])} ids in row {row}."
        )
    values = pc.list_flatten(listed)
    weights = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float32)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise EncodingError(
            f"Feature {feature.name!r}: column {column.name!r} must hold finite weights of at least 0."
        )
    return weights


def _pooling(lengths: IntArray, weights: FloatArray | None, feature: ListFeature) -> FloatArray:
    """Return each id's factor in the pooled vector; a mean over weights that sum to 0 gives 0."""
    if weights is None:
        weights = np.ones(int(lengths.sum()), dtype=np.float32)
    if isinstance(feature, Bag) and feature.pooling == "sum":
        return weights
    row = np.repeat(np.arange(lengths.size), lengths)
    total = np.bincount(row, weights=weights, minlength=lengths.size).astype(np.float64)
    inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return (weights * inverse[row]).astype(np.float32)
