"""Reader: row groups of one parquet file, in the columns and types that all files of an input have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import require

_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_READ_AHEAD = 1 << 20


@dataclass
class Reader:
    """One parquet file.

    Parameters
    ----------
    path
        The file.
    schema
        Columns to read and the types they have in all files. A column that the file lacks is taken
        from its path, as in ``day=2026-01-31``.
    """

    path: str
    schema: dict[str, pl.DataType]

    def frames(self, groups: Iterable[int], chunk_rows: int) -> Iterator[pl.DataFrame]:
        """Read row groups, streaming: at most so many rows are decoded at once.

        Raises
        ------
        EncodingError
            If something cannot be read, a column is missing, or a value has no place in its type.
        """
        try:
            file = parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_READ_AHEAD)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable("", error) from error
        with file:
            own = set(file.schema_arrow.names)
            named = [name for name in self.schema if name in own]
            partition = self._partition(own)
            for group in groups:
                try:
                    for batch in file.iter_batches(
                        chunk_rows, row_groups=[group], columns=named, use_threads=False
                    ):
                        yield self._frame(batch, partition)
                except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
                    raise self._unreadable(f", row group {group}", error) from error

    def _unreadable(self, place: str, error: Exception) -> EncodingError:
        return EncodingError(
            f"The interactions could not be read: file {self.path}{place}: {error}"
        )

    def _partition(self, own: set[str]) -> list[pl.Expr]:
        """Return the columns that the file lacks and its path names."""
        pairs = (piece.partition("=") for piece in Path(self.path).parts if "=" in piece)
        named = {name: value for name, _, value in pairs}
        missing = [name for name in self.schema if name not in own]
        require([*own, *named], missing, f"file {self.path}")
        found = []
        for name in missing:
            dtype = self.schema[name]
            text = None if named[name] == _NO_VALUE else unquote(named[name])
            try:
                value = _parsed(pl.Series([text], dtype=pl.String), dtype)[0]
            except pl.exceptions.PolarsError as error:
                raise EncodingError(
                    f"Column {name!r} must have one type in all files. Found {dtype}, and {text!r} in the"
                    f" path of file {self.path}."
                ) from error
            found.append(pl.lit(value, dtype=dtype).alias(name))
        return found

    def _frame(self, batch: pa.RecordBatch, partition: list[pl.Expr]) -> pl.DataFrame:
        frame = pl.DataFrame(pa.Table.from_batches([batch])).with_columns(partition)
        return frame.select(self._cast(frame[name], dtype) for name, dtype in self.schema.items())

    def _cast(self, column: pl.Series, dtype: pl.DataType) -> pl.Series:
        """Return the column in the type of all files, if that changes no value."""
        if column.dtype == dtype:
            return column
        if not is_untyped(column.dtype) and _meaning(column.dtype) != _meaning(dtype):
            raise self._differs(column, dtype, "")
        try:
            found = column.cast(dtype)
            same = found.cast(column.dtype).eq_missing(column)
        except pl.exceptions.PolarsError as error:
            raise self._differs(column, dtype, f" ({error})") from error
        if found.dtype != dtype:
            raise self._differs(column, dtype, "")
        if not same.all():
            raise self._differs(column, dtype, f", such as {column.filter(~same)[0]!r}")
        return found

    def _differs(self, column: pl.Series, dtype: pl.DataType, why: str) -> EncodingError:
        return EncodingError(
            f"Column {column.name!r} must have one type in all files. Found {dtype} in the first, and"
            f" {column.dtype} in file {self.path}{why}: cast one of them."
        )


def _parsed(text: pl.Series, dtype: pl.DataType) -> pl.Series:
    if dtype == pl.Date:
        return text.str.to_date()
    if dtype == pl.Boolean:
        return text.str.to_lowercase().replace_strict(
            {"true": True, "false": False}, return_dtype=pl.Boolean
        )
    if isinstance(dtype, pl.Datetime):
        return text.str.to_datetime(time_unit=dtype.time_unit)
    return text.cast(dtype)


def _meaning(dtype: pl.DataType) -> object:
    """Return what values of a type stand for; between two such kinds, casts make other values."""
    inner = getattr(dtype, "inner", None)
    if inner is not None:
        return _meaning(inner)
    if isinstance(dtype, pl.Struct):
        return tuple((one.name, _meaning(cast("pl.DataType", one.dtype))) for one in dtype.fields)
    if dtype in _TEXTS:
        return "text"
    if isinstance(dtype, pl.Datetime):
        return "moment" if dtype.time_zone else "time of a clock"
    if dtype == pl.Date:
        return "time of a clock"
    return type(dtype).__name__ if dtype.is_temporal() else "value"


def is_untyped(dtype: pl.DataType) -> bool:
    """Tell whether a type says nothing of values: there were none, or empty lists only."""
    inner = getattr(dtype, "inner", None)
    return dtype == pl.Null if inner is None else is_untyped(inner)
