"""Loader: batches of training rows, from memory or from a cache on disk that is larger."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from recsys_mtl.encoding import Batch
from recsys_mtl.network import Inputs, RowTensors, Targets
from recsys_mtl.training.grouping import grouped_batches
from recsys_mtl.training.windows import Window, Windows

_Batches = Generator[tuple[Inputs, Targets], None, None]


@dataclass(frozen=True)
class _Shuffled:
    """Rows on the device, and what their order is drawn with."""

    rows: RowTensors
    generator: torch.Generator

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the numbers of the rows of each batch."""
        if self.rows.groups is not None:
            yield from grouped_batches(self.rows.groups, batch_size, self.generator)
            return
        order = torch.randperm(self.rows.num_rows, generator=self.generator).to(self.rows.device)
        for start in range(0, self.rows.num_rows, batch_size):
            yield order[start : start + batch_size]


def sizes_of(batch_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes of the first epochs; the last is that of all later ones."""
    return (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)


class Loader:
    """Draw the batches of each epoch; the same seed gives the same on every device.

    By default all rows lie on the device and any may meet any in a batch. With `memory_bytes`, blocks
    of neighbours are read from all over the rows into a window, and rows are shuffled within it; a
    thread reads the next window meanwhile. Rows of one group meet only in the blocks of one window.

    Parameters
    ----------
    batch
        Encoded rows. With `memory_bytes` they are best mapped by an `EncodedCache`, and what was
        written to the mapped arrays in this process is lost; side tables stay in memory as a whole.
    device
        Where batches are to lie.
    batch_size
        Rows of a batch, or those of each epoch, the last for all later ones. One batch of an epoch may
        be shorter; with groups, any.
    seed
        Of the order, together with the epoch.
    memory_bytes
        What the rows may take, on a GPU of its memory: beside it, one window may lie in the main memory.
        None: all rows are there as a whole.

    Attributes
    ----------
    num_rows
        Rows of an epoch.
    read_seconds
        How long the consumer has waited for rows in this epoch.

    Raises
    ------
    ValueError
        If the memory is too small for two windows of two batches.
    """

    def __init__(
        self,
        batch: Batch,
        device: torch.device,
        *,
        batch_size: int | Sequence[int],
        seed: int,
        memory_bytes: int | None = None,
    ) -> None:
        self.num_rows = batch.num_rows
        self.read_seconds = 0.0
        self._batch, self._device = batch, device
        self._sizes, self._seed = sizes_of(batch_size), seed
        self._windows: dict[int, Windows] | None = None
        if memory_bytes is not None:
            self._windows = {
                size: Windows(batch, batch_size=size, memory_bytes=memory_bytes)
                for size in self._sizes
            }
        self._resident = RowTensors(batch if self._windows is None else batch.cut([]), device)
        self._running: weakref.ref[_Batches] | None = None

    def batch_size(self, epoch: int) -> int:
        """Return the rows of a batch of an epoch, from 1."""
        return self._sizes[min(epoch, len(self._sizes)) - 1]

    def steps(self, epoch: int) -> int:
        """Return the batches of an epoch; those of grouped rows may be a few more."""
        return math.ceil(self.num_rows / self.batch_size(epoch))

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[tuple[Inputs, Targets]]:
        """Yield the batches of an epoch; a run of an earlier call ends.

        Parameters
        ----------
        epoch
            Its number.
        skip
            Batches at the beginning that are left out, unread where they fill a window.
        """
        self.close()
        self.read_seconds = 0.0
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        running = self._batches(generator, skip, self.batch_size(epoch))
        # A consumer that breaks off drops the last reference, which ends the thread.
        self._running = weakref.ref(running)
        return running

    def nothing(self) -> tuple[Inputs, Targets]:
        """Return a batch of no rows."""
        none = torch.empty(0, dtype=torch.int64, device=self._device)
        return self._resident.take(none), self._resident.targets(none)

    def close(self) -> None:
        """End the batches that are being yielded, and the thread that reads for them."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()

    def _batches(self, generator: torch.Generator, skip: int, batch_size: int) -> _Batches:
        with closing(self._shuffled(generator, skip, batch_size)) as found:
            for shuffled, taken in found:
                for rows_B in islice(shuffled.batches(batch_size), taken, None):
                    yield shuffled.rows.take(rows_B), shuffled.rows.targets(rows_B)
                del shuffled  # the next but one is read into its place

    def _shuffled(
        self, generator: torch.Generator, skip: int, batch_size: int
    ) -> Generator[tuple[_Shuffled, int], None, None]:
        """Yield rows that lie on the device, and how many of their batches are to be left out."""
        if self._windows is None:
            yield _Shuffled(self._resident, generator), skip
            return
        windows = self._windows[batch_size].draw(generator)
        while skip and windows and skip >= (steps := self._num_steps(windows[0], batch_size)):
            skip -= steps
            del windows[0]
        if not windows:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as thread:
            following = thread.submit(self._read, windows[0])
            for window in [*windows[1:], None]:
                started = time.perf_counter()
                shuffled = following.result()
                self.read_seconds += time.perf_counter() - started
                if window is not None:
                    following = thread.submit(self._read, window)
                yield shuffled, skip
                skip = 0

    def _num_steps(self, window: Window, batch_size: int) -> int:
        """Count the batches of a window; for that, groups are read."""
        alone = replace(self._batch, parts=(), labels=None, states=None, weights=None)
        groups = alone.cut(window.ranges).groups
        if groups is None:
            return math.ceil(window.num_rows / batch_size)
        generator = torch.Generator().manual_seed(window.seed)
        found = grouped_batches(torch.from_numpy(groups), batch_size, generator)
        return sum(1 for _ in found)

    def _read(self, window: Window) -> _Shuffled:
        rows = RowTensors(self._batch.cut(window.ranges), self._device, whole=self._resident)
        return _Shuffled(rows, torch.Generator().manual_seed(window.seed))
