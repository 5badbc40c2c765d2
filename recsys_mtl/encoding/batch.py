"""Batch: encoded rows as numpy arrays. No torch here: request paths and data workers use it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.mapped import release

IntArray = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

OBSERVED = 0
"""Label state: the label is there."""
MISSING = 1
"""Label state: the label is null."""
OUT_OF_SPACE = 2
"""Label state: the row is not in the task's space, whatever the label says."""

Ranges = Sequence[tuple[int, int]]
"""Rows from the first number up to the second, which is not among them; several such."""

_LOOKED_UP_AT_ONCE = 256


@dataclass(frozen=True)
class Ragged:
    """Several ids per row.

    Parameters
    ----------
    values
        Table rows of all ids, shape (m,).
    offsets
        Where each row's ids begin, and the end of the last: shape (n + 1,), from 0 to m.
    weights
        What each id's vector is multiplied with when the row is pooled, shape (m,). Mean pooling is
        in here already: 1 / count.
    """

    values: RowArray
    offsets: IntArray
    weights: FloatArray

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """Put the rows of several one after another."""
        starts = np.cumsum([0, *(part.values.size for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return Ragged(
            np.concatenate([part.values for part in parts]),
            np.concatenate([*offsets, starts[-1:]]),
            np.concatenate([part.weights for part in parts]),
        )

    def take(self, rows: IntArray) -> Ragged:
        """Return the rows of these numbers, in that order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[places], offsets, self.weights[places])

    def cut(self, ranges: Ranges) -> Ragged:
        """Copy the rows of these ranges, one range after another; see `Batch.cut`."""
        offsets = np.zeros(_num_rows(ranges) + 1, np.int64)
        spans, row, place = [], 0, 0
        for start, stop in ranges:
            found = self.offsets[start : stop + 1]
            first, last = int(found[0]), int(found[-1])
            np.add(found, place - first, out=offsets[row : row + found.size])
            release(found)
            spans.append((first, last))
            row, place = row + stop - start, place + last - first
        return Ragged(_cut(self.values, spans), offsets, _cut(self.weights, spans))

    def sizes(self, cuts: IntArray) -> IntArray:
        """Return the bytes of the rows between each two `cuts`; see `Batch.sizes`."""
        places = []
        for start in range(0, cuts.size, _LOOKED_UP_AT_ONCE):
            places.append(self.offsets[cuts[start : start + _LOOKED_UP_AT_ONCE]])
            release(self.offsets)
        each = self.values.itemsize + self.weights.itemsize
        return _gaps(np.concatenate(places)) * each + (_gaps(cuts) + 1) * self.offsets.itemsize


@dataclass(frozen=True)
class Block:
    """Encoded features of n users, items or impressions.

    Parameters
    ----------
    ids
        Table rows of the features with one id, shape (n, number of them).
    lists
        Features with several ids.
    dense
        Numbers, shape (n, width).
    """

    ids: RowArray
    lists: tuple[Ragged, ...]
    dense: FloatArray

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @staticmethod
    def concat(parts: Sequence[Block]) -> Block:
        """Put the rows of several blocks of one layout one after another."""
        columns = zip(*(part.lists for part in parts), strict=True)
        return Block(
            np.concatenate([part.ids for part in parts]),
            tuple(Ragged.concat(column) for column in columns),
            np.concatenate([part.dense for part in parts]),
        )

    def take(self, rows: IntArray) -> Block:
        """Return the rows of these numbers, in that order."""
        lists = tuple(one.take(rows) for one in self.lists)
        return Block(self.ids[rows], lists, self.dense[rows])

    def cut(self, ranges: Ranges) -> Block:
        """Copy the rows of these ranges, one range after another; see `Batch.cut`."""
        lists = tuple(one.cut(ranges) for one in self.lists)
        return Block(_cut(self.ids, ranges), lists, _cut(self.dense, ranges))

    def sizes(self, cuts: IntArray) -> IntArray:
        """Return the bytes of the rows between each two `cuts`; see `Batch.sizes`."""
        each = _row_bytes(self.ids) + _row_bytes(self.dense)
        return sum((one.sizes(cuts) for one in self.lists), _gaps(cuts) * each)


@dataclass(frozen=True)
class Part:
    """One side of the rows: its block and, for a side table, each row's place in it.

    Parameters
    ----------
    block
        The encoded features.
    rows
        Row of `block` for each interaction, shape (n,); None where the block has one row for each.
    """

    block: Block
    rows: IntArray | None = None

    def cut(self, ranges: Ranges) -> Part:
        """Copy the rows of these ranges; a side table stays the same object."""
        if self.rows is None:
            return Part(self.block.cut(ranges))
        return Part(self.block, _cut(self.rows, ranges))

    def sizes(self, cuts: IntArray) -> IntArray:
        """Return the bytes of the rows between each two `cuts`, without those of a side table."""
        if self.rows is None:
            return self.block.sizes(cuts)
        return _gaps(cuts) * _row_bytes(self.rows)


def absent_notes(absent: Mapping[str, int]) -> list[str]:
    """Say in words how many rows have a user or an item that its side table lacks."""
    return [
        f"{count:,} rows have a {side} that the {side}s table lacks: its features count as null"
        for side, count in absent.items()
        if count
    ]


@dataclass(frozen=True)
class Batch:
    """Encoded interactions, with labels where asked for.

    Parameters
    ----------
    num_rows
        Interactions, n.
    parts
        The user's, the item's and the context's features, those that the schema has.
    keys
        The id columns, as they came.
    labels
        Shape (n, number of tasks); 0 where not observed.
    states
        `OBSERVED`, `MISSING` or `OUT_OF_SPACE` for each label, shape as labels.
    weights
        Sample weights, shape as labels.
    absent
        Rows whose user or item its side table lacks, by side.
    groups
        A number for each row, alike for rows of one user or request, shape (n,): by these, ranking
        losses compare rows. Read with the labels, if a task has such a loss.
    """

    num_rows: int
    parts: tuple[Part, ...]
    keys: pl.DataFrame
    labels: FloatArray | None = None
    states: npt.NDArray[np.uint8] | None = None
    weights: FloatArray | None = None
    absent: dict[str, int] = field(default_factory=dict)
    groups: IntArray | None = None

    def flat(self) -> Batch:
        """Return the same rows with every part widened to one row per interaction."""
        parts = [
            part if part.rows is None else Part(part.block.take(part.rows)) for part in self.parts
        ]
        return replace(self, parts=tuple(parts))

    def arrays(self) -> list[npt.NDArray[Any]]:
        """List the arrays: labels, and features of all parts."""
        found: list[npt.NDArray[Any] | None]
        found = [self.labels, self.states, self.weights, self.groups]
        for part in self.parts:
            found += [part.rows, part.block.ids, part.block.dense]
            for one in part.block.lists:
                found += [one.values, one.offsets, one.weights]
        return [array for array in found if array is not None]

    def release(self) -> None:
        """Hold no page of arrays that are mapped from an `EncodedCache`; the next use reads them."""
        for array in self.arrays():
            release(array)

    def cut(self, ranges: Ranges) -> Batch:
        """Copy what training reads of the rows in these ranges, one range after another.

        Side tables stay the same objects; keys and counts of absent rows stay behind. Of arrays that
        are mapped from an `EncodedCache` no page is held afterwards, and what was written to these
        rows in this process is lost.

        Parameters
        ----------
        ranges
            First row and the one after the last, of each range.
        """
        labels, states, weights, groups = (
            None if array is None else _cut(array, ranges) for array in self._by_row()
        )
        parts = tuple(part.cut(ranges) for part in self.parts)
        rows = _num_rows(ranges)
        return Batch(rows, parts, pl.DataFrame(), labels, states, weights, groups=groups)

    def sizes(self, cuts: IntArray) -> IntArray:
        """Return the bytes that `cut` would take for the rows between each two cuts.

        Parameters
        ----------
        cuts
            Row numbers in ascending order, shape (k + 1,).

        Returns
        -------
        sizes
            Shape (k,). The rows of several ranges cut together take no more than the sum.
        """
        each = sum(_row_bytes(array) for array in self._by_row() if array is not None)
        return sum((part.sizes(cuts) for part in self.parts), _gaps(cuts) * each)

    def _by_row(self) -> tuple[npt.NDArray[Any] | None, ...]:
        return self.labels, self.states, self.weights, self.groups


def _num_rows(ranges: Ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def _gaps(numbers: IntArray) -> IntArray:
    return numbers[1:] - numbers[:-1]


def _row_bytes(array: npt.NDArray[Any]) -> int:
    return array.itemsize * math.prod(array.shape[1:])


def _cut(array: npt.NDArray[Any], ranges: Ranges) -> npt.NDArray[Any]:
    copied = np.empty((_num_rows(ranges), *array.shape[1:]), array.dtype)
    row = 0
    for start, stop in ranges:
        found = array[start:stop]
        copied[row : row + len(found)] = found
        release(found)
        row += len(found)
    return copied
