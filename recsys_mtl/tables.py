"""Any table a user holds as a polars frame, and a result back as the kind that came in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError

if TYPE_CHECKING:
    import pandas as pd

_UNCONVERTED = (pa.ArrowException, pl.exceptions.PolarsError, TypeError, ValueError, OverflowError)

Kind = Literal["polars", "pandas", "arrow"]


def is_path(table: Any) -> bool:
    """Tell whether the table is a parquet path, a glob or a list of them."""
    return isinstance(table, str | Path) or (
        isinstance(table, list | tuple)
        and len(table) > 0
        and all(isinstance(part, str | Path) for part in table)
    )


def kind_of(table: Any) -> Kind:
    """Tell which kind of table a result should come back as; parquet paths give polars frames."""
    if _is_pandas(table):
        return "pandas"
    if isinstance(table, pa.Table | pa.RecordBatch):
        return "arrow"
    return "polars"


def lazy_frame(table: Any, *, what: str = "table") -> pl.LazyFrame:
    """Open a table lazily.

    Parameters
    ----------
    table
        A polars frame or lazy frame, a pandas frame, an Arrow table or record batch, or one or
        several parquet paths (folders and globs too). Nothing is copied that need not be.
    what
        Its name in errors.

    Raises
    ------
    EncodingError
        If a file is missing or no parquet, a column mixes types, or two have one name.
    TypeError
        If the table is none of the above.
    """
    if isinstance(table, pl.LazyFrame):
        return table
    if isinstance(table, pl.DataFrame):
        return table.lazy()
    if is_path(table):
        return _scan_parquet(table, what)
    if _is_pandas(table):
        return _from_pandas(table, what).lazy()
    try:
        if isinstance(table, pa.Table | pa.RecordBatch):
            return pl.DataFrame(table).lazy()
    except _UNCONVERTED as error:
        raise EncodingError(
            f"Every column of the {what} must hold one type. {error}. Cast the column first."
        ) from error
    raise TypeError(
        f"The {what} must be a polars, pandas or Arrow table or a parquet path."
        f" Found {type(table).__name__}."
    )


def _from_pandas(table: pd.DataFrame, what: str) -> pl.DataFrame:
    columns = list(getattr(table, "columns", []))  # a series has none
    twice = [name for name, count in Counter(map(str, columns)).items() if count > 1]
    if twice:
        raise EncodingError(
            f"Column names of the {what} must be unique. Found {twice[0]!r} more than once: rename"
            " or drop one."
        )
    try:
        return pl.DataFrame(pl.from_pandas(table))
    except _UNCONVERTED as error:
        # The error of the whole table does not say which column it means.
        for name in columns:
            try:
                pl.from_pandas(table[[name]])
            except _UNCONVERTED as reason:
                raise EncodingError(
                    f"Every column of the {what} must hold one type. Column {name!r} does not:"
                    f" {str(reason).rstrip('.')}. Cast it first, such as with .astype(str)."
                ) from reason
        raise EncodingError(f"The {what} could not be read from pandas: {error}") from error


def as_kind(frame: pl.DataFrame, kind: Kind, index: pd.Index | None = None) -> Any:
    """Return the frame as a polars, pandas or Arrow table; `index` labels the pandas rows."""
    if kind == "arrow":
        return frame.to_arrow()
    if kind == "pandas":
        table = _pandas(frame)
        return table if index is None else table.set_index(index)
    return frame


def _pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """Convert; integers with nulls become pandas' nullable integers, never floats."""
    import pandas as pd

    table = frame.to_pandas()
    for column in frame.iter_columns():
        if column.dtype.is_integer() and column.null_count():
            known = column.fill_null(0).to_numpy()
            table[column.name] = pd.arrays.IntegerArray(known.copy(), column.is_null().to_numpy())
    return table


def damaged_place(paths: Sequence[str]) -> str | None:
    """Find the first parquet file and row group that cannot be decoded, in words."""
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            return f"file {path}: {error}"
        for group in range(file.num_row_groups):
            try:
                file.read_row_group(group)
            except (pa.ArrowInvalid, OSError) as error:
                return f"file {path}, row group {group}: {error}"
    return None


def paths_of(table: Any, *, what: str = "table") -> tuple[str, ...]:
    """List the files behind paths, folders and globs, in the order they are read.

    As polars does it, hidden files and those of folders below are among them. None for tables in memory.
    Addresses such as ``s3://...`` are left to polars and not listed.

    Raises
    ------
    EncodingError
        If a path is no file, or a folder or glob holds none.
    """
    return tuple(path for entry in entries_of(table) for path in _files_of(entry, what))


def entries_of(table: Any) -> list[str]:
    """Return paths, folders, globs and addresses as they were given; none for tables in memory."""
    if not is_path(table):
        return []
    given = table if isinstance(table, list | tuple) else [table]
    return [os.path.expanduser(str(entry)) for entry in given]


def roots_of(table: Any) -> list[str]:
    """Return the folders that are searched at any depth for a table's files."""
    found = [entry.partition("**")[0] for entry in entries_of(table) if "**" in entry]
    return found + [entry for entry in entries_of(table) if Path(entry).is_dir()]


def is_address(entry: str) -> bool:
    """Tell whether an entry is on another machine, or written as if it were."""
    return "://" in entry


def _files_of(entry: str, what: str) -> list[str]:
    if is_address(entry):
        return []
    if Path(entry).is_file():
        return [entry]
    found = {file for path in _matches(entry) for file in _below(path)}
    if not found:
        raise EncodingError(
            f"The {what} must be readable parquet. {entry or repr(entry)}: there is no such file, nor a"
            " file below it."
        )
    return sorted(found)


def _matches(entry: str) -> list[str]:
    # What is there is no pattern, even if its name could be read as one.
    if not entry or Path(entry).exists():
        return [entry] if entry else []
    return glob(entry, recursive=True, include_hidden=True)


def _below(path: str) -> Iterator[str]:
    """Yield a file, or those of a folder, without the marks of other programs: empty, no parquet."""
    below = glob(f"{escape(path)}/**", recursive=True, include_hidden=True)
    for file in below if Path(path).is_dir() else [path]:
        if Path(file).is_file() and (file.endswith(".parquet") or Path(file).stat().st_size):
            yield file


def _scan_parquet(table: Any, what: str) -> pl.LazyFrame:
    paths = entries_of(table)
    folder = len(paths) == 1 and Path(paths[0]).is_dir()  # its partitions are columns
    found = paths_of(paths, what=what)
    try:
        if folder:
            frame = pl.scan_parquet(paths[0], glob=False, hive_partitioning=True)
        elif all(map(_polars_finds, paths)):  # anew each time they are read
            frame = pl.scan_parquet(paths if len(paths) > 1 else paths[0])
        else:
            frame = pl.scan_parquet(list(found), glob=False)
        frame.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        named = ", ".join(paths)
        raise EncodingError(f"The {what} must be readable parquet. {named}: {error}") from error
    return frame


def _polars_finds(entry: str) -> bool:
    """Tell whether polars, too, takes an entry for its files, not its name for a pattern."""
    if is_address(entry):
        return True
    if Path(entry).exists():
        return escape(entry) == entry
    return not any(Path(path).is_dir() for path in _matches(entry))


def _is_pandas(table: Any) -> bool:
    module = type(table).__module__
    return module.split(".")[0] == "pandas" and hasattr(table, "iloc")
