"""Columns of ids to bucket numbers that are the same in training, batch scoring and serving.

A value's bucket depends on its bytes, the feature's seed and the number of buckets, and on nothing
else: not on the Arrow layout, the chunking, the dataframe library, threads, process or machine.

References
----------
XXH64: Collet, "xxHash fast digest algorithm",
https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
MurmurHash3_x86_32: Appleby, https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp
Multiply-shift instead of modulo: Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS
29(1), 2019, section 4.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_mtl.encoding import arrow, kernels
from recsys_mtl.encoding.kernels import EMPTY_ROW, NULL_ROW, NUM_RESERVED, UNKNOWN_ROW
from recsys_mtl.errors import EncodingError

__all__ = [
    "EMPTY_ROW",
    "HASH_VERSION",
    "NULL_ROW",
    "NUM_RESERVED",
    "UNKNOWN_ROW",
    "Algorithm",
    "bucket_column",
    "hash_column",
    "murmur3_32",
    "table_seed",
    "xxh64",
]

HASH_VERSION: Final = 1

Algorithm = Literal["xxh64", "murmur3"]

_ALGORITHMS: Final = {"xxh64": kernels.XXH64, "murmur3": kernels.MURMUR3}
_MAX_BUCKETS: Final = 2**32 - 1
_SEED_MASK: Final = 2**64 - 1
_ROWS_PER_TASK: Final = 65_536
_FLOAT_IDS: Final = 2**53

# By process as well, because a forked child inherits executors whose threads did not survive.
_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}

_Fill = Callable[[int, int], None]
_Task = list[tuple[_Fill, int, int]]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Say how values become numbers; 0 buckets stands for plain hashes."""

    seed: np.uint64
    num_buckets: np.uint64
    algorithm: int
    num_threads: int


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
    return int(kernels.xxh64_key(buffer.address, len(data), np.uint64(seed & _SEED_MASK)))


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
    return int(kernels.murmur3_key(buffer.address, len(data), np.uint64(seed & _SEED_MASK)))


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


def bucket_column(
    column: pa.Array | pa.ChunkedArray,
    *,
    seed: int,
    num_buckets: int,
    algorithm: Algorithm = "xxh64",
    num_threads: int | None = None,
) -> npt.NDArray[np.int64]:
    """Map every value of an id column to its row in an embedding table.

    Strings and bytes are hashed as they are; integers of any width, booleans and dates (as days) as
    8 little-endian bytes of int64, so equal ids of different widths share a bucket, and 5 and "5" do
    not. Floats are taken for the integers they hold. A dictionary column gives what its plain form
    gives.

    Parameters
    ----------
    column
        An Arrow column of one of these types, chunked or not.
    seed
        Seed of the hash, see `table_seed`; its low 64 bits are used, 32 for murmur3.
    num_buckets
        How many buckets values are spread over, 1 to 2**32 - 1.
    algorithm
        "xxh64", or "murmur3" for MurmurHash3_x86_32.
    num_threads
        Threads for columns of more than 65 536 rows; by default as many as the process has CPUs.

    Returns
    -------
    npt.NDArray[np.int64]
        One number per value: NULL_ROW for null and NaN, EMPTY_ROW for the empty string, otherwise
        `NUM_RESERVED + bucket` with the bucket in [0, num_buckets).

    Raises
    ------
    EncodingError
        If values of the column's type cannot be ids.
    ValueError
        If an option is out of its range.
    """
    if not 1 <= num_buckets <= _MAX_BUCKETS:
        msg = f"num_buckets must be between 1 and {_MAX_BUCKETS}, got {num_buckets}."
        raise ValueError(msg)
    return _fill_column(column, _recipe(seed, num_buckets, algorithm, num_threads))


def hash_column(
    column: pa.Array | pa.ChunkedArray,
    *,
    seed: int,
    algorithm: Algorithm = "xxh64",
    num_threads: int | None = None,
) -> npt.NDArray[np.uint64]:
    """Hash every value of an id column, for fingerprints and for hashes of one's own.

    Parameters
    ----------
    column, seed, algorithm, num_threads
        As for `bucket_column`.

    Returns
    -------
    npt.NDArray[np.uint64]
        One hash per value, below 2**32 for murmur3. Nulls give 0, and so may a value: mask them by
        the column's validity. The empty string gives the hash of no bytes.

    Raises
    ------
    EncodingError
        If values of the column's type cannot be ids.
    ValueError
        If an option is out of its range.
    """
    return _fill_column(column, _recipe(seed, 0, algorithm, num_threads)).view(np.uint64)


def _recipe(seed: int, num_buckets: int, algorithm: str, num_threads: int | None) -> _Recipe:
    if algorithm not in _ALGORITHMS:
        msg = f"algorithm must be one of {sorted(_ALGORITHMS)}, got {algorithm!r}."
        raise ValueError(msg)
    if num_threads is None:
        num_threads = _available_cpus()
    if num_threads < 1:
        msg = f"num_threads must be at least 1, got {num_threads}."
        raise ValueError(msg)
    low_seed = np.uint64(seed & _SEED_MASK)
    return _Recipe(low_seed, np.uint64(num_buckets), _ALGORITHMS[algorithm], num_threads)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fill_column(column: pa.Array | pa.ChunkedArray, recipe: _Recipe) -> npt.NDArray[np.int64]:
    out = np.empty(len(column), np.int64)
    tables: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}
    jobs: list[tuple[_Fill, int]] = []
    done = 0
    for chunk in arrow.chunks_of(column):
        target = out[done : done + len(chunk)]
        jobs.append((_filler(chunk, target, recipe, tables), len(chunk)))
        done += len(chunk)
    _run(jobs, recipe.num_threads)
    return out


def _filler(
    chunk: pa.Array,
    target: npt.NDArray[np.int64],
    recipe: _Recipe,
    tables: dict[tuple[int, ...], npt.NDArray[np.int64]],
) -> _Fill:
    """Prepare the function that fills rows `begin` to `end` of a chunk's target."""
    if pa.types.is_dictionary(chunk.type):
        values = chunk.dictionary
        if len(values) > len(chunk):
            return _sparse_filler(values, chunk.indices, target, recipe, tables)
        codes = arrow.view_column(chunk.indices)
        return partial(_fill_codes, codes, _table_of(values, recipe, tables), target)
    if pa.types.is_floating(chunk.type):
        chunk = _integers_of(chunk)
    view = arrow.view_column(chunk)
    if view.kind == arrow.NULLS:
        return partial(_fill_nulls, target)
    return partial(_fill_hashes, view, recipe, target)


def _sparse_filler(
    values: pa.Array,
    codes: pa.Array,
    target: npt.NDArray[np.int64],
    recipe: _Recipe,
    tables: dict[tuple[int, ...], npt.NDArray[np.int64]],
) -> _Fill:
    """Prepare for a short slice of a long dictionary, of which only the values used are hashed."""
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        return partial(_fill_hashes, arrow.view_chosen(values, codes), recipe, target)
    return _filler(values.take(codes), target, recipe, tables)


def _table_of(
    dictionary: pa.Array,
    recipe: _Recipe,
    tables: dict[tuple[int, ...], npt.NDArray[np.int64]],
) -> npt.NDArray[np.int64]:
    """Hash a dictionary's values, once for all the chunks that share it."""
    addresses = [buffer.address if buffer else 0 for buffer in dictionary.buffers()]
    key = (dictionary.offset, len(dictionary), *addresses)
    if key not in tables:
        tables[key] = _fill_column(dictionary, recipe)
    return tables[key]


def _fill_hashes(
    view: arrow.ColumnView, recipe: _Recipe, target: npt.NDArray[np.int64], begin: int, end: int
) -> None:
    kernels.hash_rows(
        view.layout,
        view.buffers,
        begin,
        recipe.seed,
        recipe.num_buckets,
        recipe.algorithm,
        target[begin:end],
    )


def _fill_codes(
    view: arrow.ColumnView,
    table: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    begin: int,
    end: int,
) -> None:
    kernels.gather_rows(view.layout, table, begin, target[begin:end])


def _fill_nulls(target: npt.NDArray[np.int64], begin: int, end: int) -> None:
    target[begin:end] = NULL_ROW


def _integers_of(chunk: pa.Array) -> pa.Array:
    """Read ids back from floats, which pandas makes of integers with a missing value."""
    floats = arrow.primitive_values(chunk).astype(np.float64)
    valid = arrow.valid_rows(chunk)
    missing = np.isnan(floats) if valid is None else np.isnan(floats) | ~valid
    floats = np.where(missing, 0.0, floats)
    wrong = (np.abs(floats) >= _FLOAT_IDS) | (np.trunc(floats) != floats)
    if wrong.any():
        msg = (
            "Ids held as floats must be whole numbers below 2**53, "
            f"got {float(floats[wrong][0])!r} in a column of type {chunk.type}. "
            "Cast the column to a string or an integer, before it passes through a float."
        )
        raise EncodingError(msg)
    return pa.array(floats.astype(np.int64), mask=missing)


def _run(jobs: list[tuple[_Fill, int]], num_threads: int) -> None:
    """Call every job on all its rows, in threads when there are many rows."""
    if num_threads == 1 or sum(rows for _, rows in jobs) <= _ROWS_PER_TASK:
        for fill, rows in jobs:
            fill(0, rows)
        return
    key = os.getpid(), num_threads
    # Threads start with the first task, so an executor lost to another caller costs nothing.
    pool = _POOLS.get(key) or _POOLS.setdefault(key, ThreadPoolExecutor(num_threads, "hashing"))
    list(pool.map(_run_task, _tasks(jobs)))


def _tasks(jobs: list[tuple[_Fill, int]]) -> Iterator[_Task]:
    """Cut long jobs and join short ones into tasks of about `_ROWS_PER_TASK` rows."""
    task: _Task = []
    rows_in_task = 0
    for fill, rows in jobs:
        for begin in range(0, rows, _ROWS_PER_TASK):
            end = min(begin + _ROWS_PER_TASK, rows)
            task.append((fill, begin, end))
            rows_in_task += end - begin
            if rows_in_task >= _ROWS_PER_TASK:
                yield task
                task, rows_in_task = [], 0
    if task:
        yield task


def _run_task(task: _Task) -> None:
    for fill, begin, end in task:
        fill(begin, end)
