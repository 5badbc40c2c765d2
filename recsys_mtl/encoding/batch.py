"""Batch: encoded rows as numpy arrays. No torch here: request paths and data workers use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

IntArray = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

OBSERVED = 0
"""Label state: the label is there."""
MISSING = 1
"""Label state: the label is null."""
OUT_OF_SPACE = 2
"""Label state: the row is not in the task's space, whatever the label says."""


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
