"""Chunk: some of the interactions, encoded, beside whole side tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recsys_mtl.encoding.batch import Batch, Block, IntArray, Part


@dataclass(frozen=True)
class WholePart:
    """One side of a chunk beside the whole of its side table, if it has one.

    Parameters
    ----------
    block
        The encoded features; those of a side table are one object in all chunks.
    rows
        As in `Part`, but a row may also be one of `extra`, which are numbered on after the block's.
    extra
        Features of the keys that the side table lacks, if there are any.
    """

    block: Block
    rows: IntArray | None = None
    extra: Block | None = None

    def narrow(self) -> Part:
        """Return one block; with extra rows only those in use: a chunk must not cost the table."""
        if self.rows is None or self.extra is None:
            return Part(self.block, self.rows)
        places, lost = self.rows.copy(), self.rows >= len(self.block)
        used, places[~lost] = np.unique(places[~lost], return_inverse=True)
        places[lost] += used.size - len(self.block)
        return Part(Block.concat([self.block.take(used), self.extra]), places)


@dataclass(frozen=True)
class Chunk:
    """Encoded interactions whose side tables are whole, for a writer that keeps each table once.

    Parameters
    ----------
    parts
        As in `Batch`, before they are narrowed.
    rest
        All else of the batch; it has no parts.
    """

    parts: tuple[WholePart, ...]
    rest: Batch

    def batch(self) -> Batch:
        """Return the batch."""
        return replace(self.rest, parts=tuple(part.narrow() for part in self.parts))
