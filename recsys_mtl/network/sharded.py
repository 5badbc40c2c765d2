"""Rows of a table dealt out over the processes of a training run, and their ways between them.

Row r of a matrix belongs to process ``r % world``, as its row ``r // world``. A batch asks each owner
for the rows it needs, each once, and later sends their gradients back the same way. All processes do
so together: what is said here to be collective must be called by each of them, equally often and in
the same order, with an empty batch if need be.

Shape letters: R table rows, D embedding dim, K lookups of a batch, U table rows of a batch, each once,
G own rows that batches of all processes ask for, X rows of one process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

GATHERED_ROWS = 1 << 18
"""Rows of each process that are sent at a time when a whole table is put together."""


@dataclass(frozen=True)
class Route:
    """The way between the rows a batch needs and the processes that own them.

    Parameters
    ----------
    places_K
        Where the row of each lookup is among those asked for.
    asked, given
        How many rows this process asks of each process, and each of this one.
    rows_G
        Own rows that are given, by process.
    """

    places_K: Tensor
    asked: list[int]
    given: list[int]
    rows_G: Tensor

    def fetch(self, weight_RD: Tensor) -> Tensor:
        """Return the rows asked for, (U, D), from their owners' weights; collective."""
        return _exchange(weight_RD[self.rows_G], self.given, self.asked)

    def send(self, gradient_UD: Tensor) -> Tensor:
        """Return the gradients (G, D) of own rows for those of the rows asked for; collective."""
        return _exchange(gradient_UD, self.asked, self.given)


@dataclass(frozen=True)
class Shard:
    """Which rows of a table a process holds: with one process, all.

    Parameters
    ----------
    rank, world
        Number of the process, and of all; they are those of torch's default process group.
    """

    rank: int = 0
    world: int = 1

    def places(self, start: int, stop: int) -> slice:
        """Return where the rows from `start` to `stop` that this process holds lie among its own."""
        return slice(self._held_before(start), self._held_before(stop))

    def size(self, num_rows: int) -> int:
        """Return how many of a table's rows this process holds."""
        return self._held_before(num_rows)

    def _held_before(self, row: int) -> int:
        return (row - self.rank + self.world - 1) // self.world

    def own(self, drawn_XD: Tensor, start: int) -> Tensor:
        """Return the rows of this process among consecutive ones, of which the first is `start`."""
        return drawn_XD[(self.rank - start) % self.world :: self.world]

    def route(self, rows_K: Tensor, num_rows: int) -> Route:
        """Tell the owners which rows of a table this process needs; collective.

        Parameters
        ----------
        rows_K
            Rows of the whole table, any number of times each.
        num_rows
            Height of the whole table.
        """
        height = -(-num_rows // self.world)
        keys_K = rows_K % self.world * height + rows_K // self.world
        keys_U, places_K = torch.unique(keys_K, return_inverse=True)
        owners_U = keys_U // height
        asked = torch.bincount(owners_U, minlength=self.world)
        given = torch.empty_like(asked)
        dist.all_to_all_single(given, asked)
        sent, received = torch.stack([asked, given]).tolist()
        rows_G = _exchange(keys_U - owners_U * height, sent, received)
        return Route(places_K, sent, received, rows_G)

    def mean(self, rows_XD: Tensor) -> Tensor:
        """Return the mean (D,) of the rows of all processes, zeros where there are none; collective."""
        if self.world == 1:
            return rows_XD.mean(dim=0) if len(rows_XD) else rows_XD.new_zeros(rows_XD.shape[1])
        sums = rows_XD.sum(dim=0, dtype=torch.float64)
        sums = torch.cat([sums, sums.new_tensor([len(rows_XD)])])
        dist.all_reduce(sums)
        return (sums[:-1] / sums[-1].clamp(min=1)).to(rows_XD.dtype)

    def most(self, count: int, device: torch.device) -> int:
        """Return the largest count of all processes; collective."""
        if self.world == 1:
            return count
        found = torch.tensor(count, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(
        self, own_X: Tensor, num_rows: int, *, device: torch.device | None = None
    ) -> Tensor | None:
        """Put together what processes hold, piece by piece; collective.

        Parameters
        ----------
        own_X
            Weights, or another tensor with a row for each row that this process holds.
        num_rows
            Height of the whole table.
        device
            From where pieces are sent; by default where `own_X` is.

        Returns
        -------
        whole
            On the CPU of process 0, in the order of the whole table; None on others. With one process
            it may share memory with `own_X`.
        """
        if self.world == 1:
            return own_X.detach().cpu()
        whole = own_X.new_empty(num_rows, *own_X.shape[1:], device="cpu") if not self.rank else None
        height = -(-num_rows // self.world)
        for start in range(0, height, GATHERED_ROWS):
            stop = min(start + GATHERED_ROWS, height)
            held = own_X[start:stop].detach().to(device or own_X.device)
            piece = held.new_zeros(stop - start, *held.shape[1:])
            piece[: len(held)] = held  # the last row may be another process's alone
            pieces = None if whole is None else [torch.empty_like(piece) for _ in range(self.world)]
            dist.gather(piece, pieces)
            if whole is not None and pieces is not None:
                for rank, found in enumerate(pieces):
                    rows = whole[start * self.world + rank : stop * self.world : self.world]
                    rows.copy_(found[: len(rows)])
        return whole


WHOLE = Shard()
"""All rows in one process."""


def _exchange(parts: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send runs of rows to the processes, one to each, and return what they sent, by process."""
    found = parts.new_empty(sum(received), *parts.shape[1:])
    dist.all_to_all_single(found, parts.contiguous(), received, sent)
    return found
