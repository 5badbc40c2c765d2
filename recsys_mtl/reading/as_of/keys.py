"""Keys as numbers: each distinct key of a table, and of all tables before it, has a code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading.as_of.kernels import IntArray
from recsys_mtl.schema import Bins, KeyPart

_CODE = "code"
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_AS_NUMBERS = (pl.Boolean, pl.Date, pl.Time)


def read_ids(column: pl.Series, where: str) -> pl.Series:
    """Return ids as 64-bit integers, strings or bytes, so that one id is one value in any table.

    Parameters
    ----------
    column
        Integers, booleans, dates, times, strings, categories or bytes; floats that are whole, which
        is what pandas makes of integers with a null. NaN counts as null.
    where
        What reads the column, for errors.

    Raises
    ------
    EncodingError
        If it holds something else.
    """
    dtype = column.dtype
    try:
        if dtype in _TEXTS:
            return column.cast(pl.String)
        if dtype in (pl.Binary, pl.Null):
            return column
        if dtype.is_float():
            return _whole(column)
        if dtype.is_integer() or dtype.is_temporal() or dtype in _AS_NUMBERS:
            return column.to_physical().cast(pl.Int64)
    except pl.exceptions.PolarsError:
        pass
    raise EncodingError(
        f"{where} reads column {column.name!r}, which must hold ids: whole numbers of 64 bits, texts,"
        f" dates or bytes. Found {dtype}. Cast the column, or cut numbers by Bins({column.name!r}, ...)."
    )


def _whole(column: pl.Series) -> pl.Series:
    known = column.fill_nan(None)
    ids = known.cast(pl.Int64)
    if (ids.cast(column.dtype) != known).any():
        raise pl.exceptions.InvalidOperationError("not whole")
    return ids


def read_values(column: pl.Series, where: str) -> pl.Series:
    """Return numbers as float64, null where they are null or NaN.

    Raises
    ------
    EncodingError
        If the column holds no numbers, or infinite ones.
    """
    dtype = column.dtype
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise EncodingError(
            f"{where} reads column {column.name!r}, which must hold numbers. Found {dtype}: cast it."
        )
    values = column.cast(pl.Float64).fill_nan(None)
    if values.is_infinite().any():
        raise EncodingError(
            f"{where} reads column {column.name!r}, which must hold finite numbers or null. Found"
            " infinity."
        )
    return values


@dataclass(frozen=True)
class KeyBook:
    """The distinct keys met so far; a key's code is its place.

    Parameters
    ----------
    frame
        One row per key, one column per part; None before the first.
    """

    frame: pl.DataFrame | None = None

    def __len__(self) -> int:
        return 0 if self.frame is None else self.frame.height

    def encode(self, frame: pl.DataFrame, parts: Sequence[KeyPart]) -> tuple[IntArray, Self]:
        """Return each row's code, -1 where a part is null, and the book with the keys that are new.

        Raises
        ------
        EncodingError
            If a column holds no ids, or ids of another kind than the book.
        """
        if not parts:
            return np.zeros(frame.height, np.int64), type(self)(pl.DataFrame({"all": [True]}))
        keys = pl.DataFrame([_read_part(frame, part, str(i)) for i, part in enumerate(parts)])
        known = self.frame
        if known is None:
            known = keys.clear()
        keys = self._alike(keys, known, parts)
        known = known.cast(keys.schema)  # a part without a value so far has no type
        new = keys.unique().drop_nulls().join(known, on=keys.columns, how="anti")
        grown = pl.concat([known, new.sort(keys.columns)])
        coded = grown.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(_CODE))
        found = keys.join(coded, on=keys.columns, how="left", maintain_order="left")[_CODE]
        return found.fill_null(-1).to_numpy(), type(self)(grown)

    def _alike(
        self, keys: pl.DataFrame, known: pl.DataFrame, parts: Sequence[KeyPart]
    ) -> pl.DataFrame:
        for name, part in zip(keys.columns, parts, strict=True):
            mine, its = known[name].dtype, keys[name].dtype
            if mine != its and its == pl.Null:
                keys = keys.with_columns(pl.col(name).cast(mine))
            elif mine not in (its, pl.Null):
                raise EncodingError(
                    f"Key column {part!r} must hold one kind of ids in all tables. Found {its} after"
                    f" {mine}: cast it."
                )
        return keys


def _read_part(frame: pl.DataFrame, part: KeyPart, name: str) -> pl.Series:
    if isinstance(part, Bins):
        values = read_values(frame[part.column], f"{part}")
        bins = np.searchsorted(part.edges, values.to_numpy(), side="right").astype(np.int64)
        return (
            pl.select(pl.when(values.is_not_null()).then(pl.Series(bins))).to_series().alias(name)
        )
    return read_ids(frame[part], "A key").alias(name)
