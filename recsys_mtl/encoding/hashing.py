"""Columns of ids to hashes and table rows that are the same wherever and however they are computed.

A value's hash depends on its bytes and the seed and on nothing else: not on the Arrow layout, the
chunking, the dataframe library, threads, process or machine. `docs/hashing.md` is the definition.

References
----------
XXH64: Collet, "xxHash fast digest algorithm",
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
MurmurHash3_x86_32: Appleby, https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp
Multiply-shift instead of modulo: Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS
29(1), 2019, section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from operator import index
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys_mtl.encoding import digests
from recsys_mtl.encoding.arrow import as_arrow, view_lists
from recsys_mtl.encoding.kernels import EMPTY_ROW, NULL_ROW, NUM_RESERVED, UNKNOWN_ROW
from recsys_mtl.encoding.maps import VocabularyMap
from recsys_mtl.encoding.sources import (
    ALGORITHMS,
    Algorithm,
    Placement,
    Rows,
    Words,
    column_hashes,
    id_source,
    place_tokens,
    table_rows,
)
from recsys_mtl.errors import EncodingError
from recsys_mtl.tables import kind_of

__all__ = [
    "EMPTY_ROW",
    "HASH_VERSION",
    "NULL_ROW",
    "NUM_RESERVED",
    "UNKNOWN_ROW",
    "Algorithm",
    "hash64",
    "hash_column",
    "hash_lists",
    "hash_table",
    "murmur3_32",
    "table_seed",
    "warm",
    "xxh64",
]

HASH_VERSION: Final = 1

_MAX_ROWS: Final = 2**31 - 1
_SEED_MASK: Final = 2**64 - 1


def xxh64(data: bytes, seed: int = 0) -> int:
    """Hash bytes with XXH64.

    Parameters
    ----------
    data
        The bytes, of any length.
    seed
        Any integer; its low 64 bits are used.

    Returns
    -------
    int
        The hash, in [0, 2**64).
    """
    buffer = pa.py_buffer(data)
    return int(digests.xxh64_key(buffer.address, len(data), np.uint64(index(seed) & _SEED_MASK)))


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """Hash bytes with MurmurHash3_x86_32.

    Parameters
    ----------
    data
        The bytes, of any length.
    seed
        Any integer; its low 32 bits are used.

    Returns
    -------
    int
        The hash, in [0, 2**32).
    """
    buffer = pa.py_buffer(data)
    return int(digests.murmur3_key(buffer.address, len(data), np.uint64(index(seed) & _SEED_MASK)))


def table_seed(name: str) -> int:
    """Give the seed of an embedding table, so that equal ids of different tables are unrelated.

    Parameters
    ----------
    name
        The table's name.

    Returns
    -------
    int
        XXH64 of the name in UTF-8, with seed 0.
    """
    return xxh64(name.encode())


def hash64(
    column: Any, *, seed: int, algorithm: Algorithm = "xxh64", num_threads: int | None = None
) -> Words:
    """Hash every value of a column.

    Strings and bytes are hashed as they are; integers of any width, booleans and dates (as days) as
    8 little-endian bytes of int64, so equal ids of different widths have one hash, and 5 and "5" do
    not. Floats are taken for the integers they hold. A dictionary column gives what its plain form
    gives.

    Parameters
    ----------
    column
        A polars or pandas series or an Arrow array, chunked or not, of one of these types.
    seed
        Any integer; its low 64 bits are used, 32 for murmur3. See `table_seed`.
    algorithm
        ``"xxh64"``, or ``"murmur3"`` for MurmurHash3_x86_32.
    num_threads
        Threads for columns of more than 131,072 rows; by default as many as the process has CPUs.

    Returns
    -------
    ndarray of uint64, shape (n,)
        One hash per value, below 2**32 for murmur3. Nulls give 0, and so may a value: mask them by
        the column's validity. The empty string gives the hash of no bytes.

    Raises
    ------
    EncodingError
        If values of the column's type cannot be ids.
    TypeError
        If the column is none of the above.
    ValueError
        If an option is out of its range.

    Examples
    --------
    >>> import polars as pl
    >>> hash64(pl.Series(["ABC", None]), seed=42).tolist()
    [4105715581806190027, 0]
    """
    _check_options(algorithm, num_threads)
    placement = Placement(index(seed) & _SEED_MASK, algorithm)
    return column_hashes(as_arrow(column), placement, as_tokens=False, num_threads=num_threads)


def hash_column(
    column: Any,
    *,
    name: str,
    num_rows: int,
    algorithm: Algorithm = "xxh64",
    num_threads: int | None = None,
) -> Rows:
    """Map every value of a column to a row of a table, without learning anything from data.

    Parameters
    ----------
    column, algorithm, num_threads
        As for `hash64`.
    name
        Name of the feature or table; the hash seed is derived from it.
    num_rows
        Rows of the table, from 2 to 2**31 - 1.

    Returns
    -------
    ndarray of int32, shape (n,)
        0 for null and NaN, else 1 + (upper half of the hash * (num_rows - 1) >> 32), which is in
        1 .. num_rows - 1. The empty string is a value like others.

    Raises
    ------
    EncodingError, TypeError, ValueError
        As for `hash64`.

    Examples
    --------
    >>> import polars as pl
    >>> rows = hash_column(pl.Series([7, None, 7]), name="user_id", num_rows=100)
    >>> int(rows[0]) == int(rows[2]), int(rows[1])
    (True, 0)
    """
    _check_options(algorithm, num_threads)
    source = id_source(as_arrow(column), _hashed_rows(name, num_rows, algorithm))
    return table_rows([source], num_threads=num_threads)[:, 0]


def hash_lists(
    column: Any,
    *,
    name: str,
    num_rows: int,
    algorithm: Algorithm = "xxh64",
    num_threads: int | None = None,
) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Map every item of a list column as `hash_column` does.

    Parameters
    ----------
    column
        A column of type list, large_list or fixed_size_list, as for `hash64`.
    name, num_rows, algorithm, num_threads
        As for `hash_column`.

    Returns
    -------
    rows : ndarray of int32, shape (m,)
        Table rows of the items of all n lists, one list after another.
    offsets : ndarray of int64, shape (n + 1,)
        Where each list's items begin, and the end of the last. A null list has no items.

    Raises
    ------
    EncodingError, TypeError, ValueError
        As for `hash64`.
    """
    _check_options(algorithm, num_threads)
    listed = view_lists(as_arrow(column))
    source = id_source(listed.values, _hashed_rows(name, num_rows, algorithm))
    return table_rows([source], num_threads=num_threads)[:, 0], listed.offsets


def hash_table(
    table: Any,
    *,
    num_rows: int | Mapping[str, int],
    algorithm: Algorithm = "xxh64",
    out: Rows | None = None,
    num_threads: int | None = None,
) -> Rows:
    """Map all columns of a table as `hash_column` does, in one pass over its rows.

    Parameters
    ----------
    table
        A polars or pandas frame, or an Arrow table or record batch. Each column's name gives its
        seed.
    num_rows
        Rows of each column's table: one number for all, or one per column; columns that are not
        named are left out.
    algorithm, num_threads
        As for `hash64`.
    out
        Written to and returned if given: int32, C-contiguous, writable, of the result's shape.

    Returns
    -------
    ndarray of int32, shape (n, columns)
        As `hash_column`, one column each, in the order of `num_rows` or of the table.

    Raises
    ------
    EncodingError, TypeError, ValueError
        As for `hash64`; an `EncodingError` names the column, also where the table lacks it.
    """
    _check_options(algorithm, num_threads)
    found = _column_names(table)
    sizes = num_rows if isinstance(num_rows, Mapping) else dict.fromkeys(found, num_rows)
    if not sizes:
        raise ValueError("The table must have at least one column to hash.")
    counts = Counter(found)
    sources = []
    for name, size in sizes.items():
        if counts[name] != 1:
            raise EncodingError(
                f"The table must have one column {name!r}. Found {counts[name]}; columns: {found}."
            )
        try:
            sources.append(id_source(as_arrow(table[name]), _hashed_rows(name, size, algorithm)))
        except EncodingError as error:
            raise EncodingError(f"Column {name!r}: {error}") from None
    shape = sources[0].num_rows, len(sources)
    # `carray`: contiguous, aligned and writable. Kernels are compiled for such arrays only.
    if out is not None and (out.shape != shape or out.dtype != np.int32 or not out.flags.carray):
        raise ValueError(
            f"out must be a writable, C-contiguous int32 array of shape {shape}. Found {out.dtype}"
            f" of shape {out.shape}{'' if out.flags.writeable else ', read-only'}."
        )
    return table_rows(sources, out=out, num_threads=num_threads)


def warm() -> None:
    """Compile all kernels, or load them from the cache, so that no request has to wait for it.

    Takes about ten seconds the first time on a machine, below one second afterwards; where no cache can
    be written, every process compiles. Loading a model does it.
    """
    placement = Placement(table_seed(""), num_buckets=1)
    column = pa.array(["a"])
    table_rows([id_source(column, placement)])
    tokens = column_hashes(column, placement, as_tokens=True)
    place_tokens(tokens, placement)
    VocabularyMap(1, tokens)
    murmur3_32(b"")


def _hashed_rows(name: str, num_rows: int, algorithm: Algorithm) -> Placement:
    if not 2 <= index(num_rows) <= _MAX_ROWS:
        raise ValueError(f"num_rows must be between 2 and {_MAX_ROWS}, got {num_rows}.")
    return Placement(table_seed(name), algorithm, num_rows - 1, first_bucket=1, empty_apart=False)


def _column_names(table: Any) -> list[Any]:
    if isinstance(table, pa.Table | pa.RecordBatch):
        names = list(table.column_names)
    elif isinstance(table, pl.DataFrame) or (kind_of(table) == "pandas" and table.ndim == 2):
        names = list(table.columns)
    else:
        raise TypeError(
            "A table must be a polars or pandas frame, an Arrow table or record batch. Found"
            f" {type(table).__name__}."
        )
    others = [name for name in names if not isinstance(name, str)]
    if others:
        raise TypeError(f"Names of columns must be strings, which are hashed. Found {others[0]!r}.")
    return names


def _check_options(algorithm: str, num_threads: int | None) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {sorted(ALGORITHMS)}, got {algorithm!r}.")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}.")
