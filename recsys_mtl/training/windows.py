"""Windows: what of rows larger than memory lies in memory at a time, drawn anew for every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys_mtl.encoding import Batch

_BLOCKS_PER_WINDOW = 32
_ORDER_BYTES = 8  # of each row's number in the order of its window

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Blocks of rows that are read together.

    Parameters
    ----------
    ranges
        First row of each block, and the one after its last.
    seed
        Of the order of its rows.
    """

    ranges: tuple[tuple[int, int], ...]
    seed: int

    @property
    def num_rows(self) -> int:
        """Rows of all its blocks."""
        return sum(stop - start for start, stop in self.ranges)


class Windows:
    """Cut rows into blocks of whole batches, and draw an epoch's windows from them.

    A window takes half of the memory, so that the next can be read meanwhile. It holds about 32 blocks
    from all over the rows, fewer where a block would be less than a batch.

    Parameters
    ----------
    batch
        Encoded rows. Side tables are not counted: they stay in memory as a whole.
    batch_size
        Rows of a batch; only the last block of all has another than a multiple of it.
    memory_bytes
        What two windows may take.

    Raises
    ------
    ValueError
        If not even two blocks of one batch each fit into half of the memory.
    """

    def __init__(self, batch: Batch, *, batch_size: int, memory_bytes: int) -> None:
        self._window_bytes = memory_bytes // 2
        cuts = _cuts(batch.num_rows, batch_size)
        if batch.num_rows > batch_size:
            mean = max(1, int(_sizes(batch, cuts[[0, -1]])[0]) // batch.num_rows)
            rows = self._window_bytes // mean // _BLOCKS_PER_WINDOW
            cuts = _cuts(batch.num_rows, max(1, rows // batch_size) * batch_size)
        self._sizes = _sizes(batch, cuts)
        if _largest_two(self._sizes) > self._window_bytes:
            cuts = _cuts(batch.num_rows, batch_size)
            self._sizes = _sizes(batch, cuts)
        if (needed := least_memory(batch, batch_size)) > 2 * self._window_bytes:
            raise ValueError(
                f"memory_bytes must be at least {needed:,}: for two windows of two batches of"
                f" {batch_size:,} rows. Found {memory_bytes:,}."
            )
        self._blocks = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))

    def draw(self, generator: torch.Generator) -> list[Window]:
        """Return the windows of an epoch: every block is in one of them."""
        order = torch.randperm(len(self._blocks), generator=generator).numpy()
        pieces = self._pack(order)
        seeds = torch.randint(2**62, (len(pieces),), generator=generator).tolist()
        return [
            Window(tuple(self._blocks[block] for block in sorted(piece)), seed)
            for piece, seed in zip(pieces, seeds, strict=True)
        ]

    def _pack(self, order: IntArray) -> list[list[int]]:
        """Cut an order of blocks into windows of about one size, as few as fit."""
        sizes = self._sizes[order]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if ends.size else 0
        count = max(1, -(-total // self._window_bytes))
        while True:
            windows = (ends - sizes) * count // max(total, 1)
            if np.bincount(windows, sizes, count).max() <= self._window_bytes:
                break
            count += 1
        changes = np.flatnonzero(np.diff(windows)) + 1
        return [piece.tolist() for piece in np.split(order, changes) if piece.size]


def least_memory(batch: Batch, batch_size: int) -> int:
    """Return the bytes that two windows of two batches each take, the least that `Windows` needs."""
    return 2 * _largest_two(_sizes(batch, _cuts(batch.num_rows, batch_size)))


def _cuts(num_rows: int, block_rows: int) -> IntArray:
    return np.append(np.arange(0, num_rows, block_rows), num_rows)


def _sizes(batch: Batch, cuts: IntArray) -> IntArray:
    order_bytes: IntArray = np.diff(cuts) * _ORDER_BYTES
    return batch.sizes(cuts) + order_bytes


def _largest_two(sizes: IntArray) -> int:
    return int(np.sort(sizes)[-2:].sum())
