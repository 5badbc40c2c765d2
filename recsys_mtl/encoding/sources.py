"""Columns as kernels take them: where the values lie, how they are hashed, how a hash becomes a row."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_mtl.encoding import arrow, kernels
from recsys_mtl.errors import EncodingError

Algorithm = Literal["xxh64", "murmur3"]
Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int32]
Fields = npt.NDArray[np.int64]

ALGORITHMS: Final = {"xxh64": kernels.XXH64, "murmur3": kernels.MURMUR3}

_FLOAT_IDS: Final = 2**53
_CELLS_PER_TASK: Final = 131_072
_TASKS_PER_THREAD: Final = 4

_Fill = Callable[[int, int], None]
_Entries = Callable[[pa.Array], Rows | Words]
_Call = tuple[_Fill, int]
_Task = list[tuple[_Fill, int, int]]

# By process as well, because a forked child inherits executors whose threads did not survive.
_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


@dataclass(frozen=True, slots=True)
class Placement:
    """How a value becomes a hash, and a hash a row of its table.

    Parameters
    ----------
    seed
        Seed of the hash, 64 bits.
    algorithm
        ``"xxh64"`` or ``"murmur3"``.
    num_buckets
        Buckets that hashes are spread over; 0 sends all to the unknown row.
    first_bucket
        Row of bucket 0.
    empty_apart
        Whether the empty string has a row of its own instead of a bucket.
    hash_number
        Which of two independent hash functions: 0 takes the upper half of the 64 bits, 1 the sum of
        both halves.
    kept
        If given, only these buckets have rows, the others are unknown; see `learning.BucketMap`.
    slots
        If given, the tokens held there have the rows given there; see `learning.Vocabulary`.
    """

    seed: int
    algorithm: Algorithm = "xxh64"
    num_buckets: int = 0
    first_bucket: int = kernels.NUM_RESERVED
    empty_apart: bool = True
    hash_number: int = 0
    kept: Words | None = None
    slots: Words | None = None

    def fields(self) -> Fields:
        """Return a column's fields, all but where its values lie."""
        fields = np.zeros(kernels.NUM_FIELDS, np.int64)
        fields[kernels.SEED] = np.uint64(self.seed).view(np.int64)
        fields[kernels.ALGORITHM] = ALGORITHMS[self.algorithm]
        fields[kernels.EMPTY_APART] = self.empty_apart
        fields[kernels.NUM_BUCKETS] = self.num_buckets
        fields[kernels.FIRST_BUCKET] = self.first_bucket
        fields[kernels.HASH_NUMBER] = self.hash_number
        if self.kept is not None:
            fields[kernels.KEPT] = self.kept.ctypes.data
        if self.slots is not None:
            fields[kernels.SLOTS] = self.slots.ctypes.data
            fields[kernels.SLOT_MASK] = self.slots.shape[0] - 1
        return fields


@dataclass(slots=True)
class Source:
    """One column, ready for the kernels.

    Parameters
    ----------
    num_rows
        Its length.
    pieces
        The fields of each chunk, and its length.
    owners
        What keeps the addresses in the fields alive.
    """

    num_rows: int
    pieces: list[tuple[Fields, int]] = field(default_factory=list)
    owners: list[object] = field(default_factory=list)


def id_source(column: pa.Array | pa.ChunkedArray, placement: Placement) -> Source:
    """Prepare a column of ids for `table_rows`; raise an `EncodingError` if its type holds no ids."""

    def rows(values: pa.Array) -> Rows:
        return table_rows([id_source(values, placement)], num_threads=1)[:, 0]

    return _source(column, placement, rows)


def number_source(values: npt.NDArray[np.float64], padded_edges: npt.NDArray[np.float64]) -> Source:
    """Prepare numbers for `table_rows`: 3 plus how many edges are at most the number; NaN is null.

    Parameters
    ----------
    values
        Numbers, contiguous.
    padded_edges
        Ascending, padded with infinity to a length of 2**k - 1.
    """
    fields = np.zeros(kernels.NUM_FIELDS, np.int64)
    fields[kernels.KIND] = arrow.NUMBERS
    fields[kernels.VALUES] = values.ctypes.data
    fields[kernels.TABLE] = padded_edges.ctypes.data
    fields[kernels.TABLE_SIZE] = padded_edges.size
    return Source(values.size, [(fields, values.size)], [values, padded_edges])


def table_rows(
    sources: Sequence[Source], *, out: Rows | None = None, num_threads: int | None = None
) -> Rows:
    """Return the table rows of columns of one length, n: shape (n, columns), one pass for all.

    Parameters
    ----------
    sources
        The columns; at least one.
    out
        Written to and returned if given: C-contiguous, of the result's shape.
    num_threads
        By default as many as the process has CPUs.
    """
    if out is None:
        out = np.empty((sources[0].num_rows, len(sources)), np.int32)
    calls: list[_Call] = []
    for columns, begin, end in _segments(sources):
        calls.append((_fill(columns, out[begin:end]), end - begin))
    _run(calls, len(sources), num_threads)
    return out


def column_hashes(
    column: pa.Array | pa.ChunkedArray,
    placement: Placement,
    *,
    as_tokens: bool,
    num_threads: int | None = None,
) -> Words:
    """Return the hashes of a column, null being 0, or its tokens (see `kernels`)."""

    def hashes(values: pa.Array) -> Words:
        return column_hashes(values, placement, as_tokens=as_tokens, num_threads=1)

    source = _source(column, placement, hashes)
    out = np.empty(source.num_rows, np.uint64)
    calls: list[_Call] = []
    done = 0
    for fields, rows in source.pieces:
        target = out[done : done + rows]
        done += rows
        if fields[kernels.KIND] == arrow.NULLS:
            target[:] = 0
            continue

        def fill(begin: int, end: int, fields: Fields = fields, target: Words = target) -> None:
            kernels.hash_rows(fields, begin, as_tokens, target[begin:end])

        calls.append((fill, rows))
    _run(calls, 1, num_threads)
    return out


def place_tokens(tokens: Words, placement: Placement, *, num_threads: int | None = None) -> Rows:
    """Return the table row of each token."""
    out, fields = np.empty(tokens.size, np.int32), placement.fields()

    def fill(begin: int, end: int) -> None:
        kernels.place_rows(fields, tokens[begin:end], out[begin:end])

    _run([(fill, tokens.size)], 1, num_threads)
    return out


def _fill(columns: Fields, target: Rows) -> _Fill:
    return lambda begin, end: kernels.encode_rows(columns, begin, target[begin:end])


def _segments(sources: Sequence[Source]) -> Iterator[tuple[Fields, int, int]]:
    """Cut rows where any column's chunk ends; give the fields of all columns for each segment."""
    ends = [np.cumsum([rows for _, rows in source.pieces]) for source in sources]
    cuts = np.unique(np.concatenate([np.zeros(1, np.int64), *ends]))
    for begin, end in pairwise(cuts.tolist()):
        columns = np.empty((len(sources), kernels.NUM_FIELDS), np.int64)
        for place, (source, borders) in enumerate(zip(sources, ends, strict=True)):
            piece = int(np.searchsorted(borders, begin, side="right"))
            fields, rows = source.pieces[piece]
            columns[place] = fields
            columns[place, kernels.FIRST] += begin - (int(borders[piece]) - rows)
        yield columns, begin, end


def _source(column: pa.Array | pa.ChunkedArray, placement: Placement, entries: _Entries) -> Source:
    """Prepare a column; `entries` gives what the values of a dictionary become."""
    source = Source(len(column), owners=[column, placement])
    tables: dict[tuple[int, ...], Rows | Words] = {}
    for chunk in arrow.chunks_of(column):
        fields = placement.fields()
        if pa.types.is_dictionary(chunk.type) and len(chunk.dictionary) <= len(chunk):
            table = _table_of(chunk.dictionary, entries, tables)
            view = arrow.view_column(chunk.indices)
            fields[[kernels.TABLE, kernels.TABLE_SIZE]] = table.ctypes.data, table.size - 1
            source.owners.append(table)
        else:
            view = _view(chunk)
        fields[: kernels.BUFFERS] = view.layout
        fields[kernels.BUFFERS] = view.buffers.ctypes.data
        source.owners.append(view)
        source.pieces.append((fields, len(chunk)))
    return source


def _view(chunk: pa.Array) -> arrow.ColumnView:
    """View a chunk of plain ids, or of a dictionary longer than the chunk."""
    if pa.types.is_dictionary(chunk.type):
        values, codes = chunk.dictionary, chunk.indices
        if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
            return arrow.view_chosen(values, codes)
        return _view(values.take(codes))
    return arrow.view_column(_integers_of(chunk) if pa.types.is_floating(chunk.type) else chunk)


def _table_of(
    dictionary: pa.Array,
    entries: _Entries,
    tables: dict[tuple[int, ...], Rows | Words],
) -> Rows | Words:
    """Hash a dictionary's values, once for all the chunks that share it."""
    addresses = [buffer.address if buffer else 0 for buffer in dictionary.buffers()]
    key = (dictionary.offset, len(dictionary), *addresses)
    if key not in tables:
        found = entries(dictionary)
        tables[key] = np.concatenate([found, np.zeros(1, found.dtype)])
    return tables[key]


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


def _run(calls: list[_Call], num_columns: int, num_threads: int | None) -> None:
    """Call every function on all its rows, in threads when there are many."""
    if num_threads is None:
        num_threads = _available_cpus()
    rows = sum(count for _, count in calls)
    if num_threads == 1 or rows * num_columns <= _CELLS_PER_TASK:
        for fill, count in calls:
            fill(0, count)
        return
    least = _CELLS_PER_TASK // num_columns + 1
    size = max(rows // (num_threads * _TASKS_PER_THREAD) + 1, least)
    tasks = deque(_tasks(calls, size))
    key = os.getpid(), num_threads
    # Threads start with the first task, so an executor lost to another caller costs nothing.
    pool = _POOLS.get(key) or _POOLS.setdefault(
        key, ThreadPoolExecutor(num_threads - 1, "encoding")
    )
    helpers = [pool.submit(_drain, tasks) for _ in range(num_threads - 1)]
    # The caller works too: a sleeping thread may take as long to wake as a column takes to hash.
    _drain(tasks)
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tasks(calls: list[_Call], size: int) -> Iterator[_Task]:
    """Cut long calls and join short ones into tasks of about `size` rows."""
    task: _Task = []
    rows_in_task = 0
    for fill, rows in calls:
        for begin in range(0, rows, size):
            end = min(begin + size, rows)
            task.append((fill, begin, end))
            rows_in_task += end - begin
            if rows_in_task >= size:
                yield task
                task, rows_in_task = [], 0
    if task:
        yield task


def _drain(tasks: deque[_Task]) -> None:
    """Do the tasks that are left, beside other threads."""
    while True:
        try:
            task = tasks.popleft()
        except IndexError:  # none is left
            return
        for fill, begin, end in task:
            fill(begin, end)
