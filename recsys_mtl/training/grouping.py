"""Row orders that keep the rows of one user or request together, for ranking losses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def grouped_order(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Return the row numbers (n,) with rows of one group side by side, else in random order.

    Parameters
    ----------
    groups
        Each row's group, shape (n,).
    generator
        On the CPU: the same seed gives the same order on every device.
    """
    known, numbers = torch.unique(groups, return_inverse=True)
    rows = torch.randperm(groups.numel(), generator=generator).to(groups.device)
    turns = torch.randperm(known.numel(), generator=generator).to(groups.device)
    return rows[turns[numbers[rows]].argsort(stable=True)]


def grouped_batches(
    groups: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the row numbers of all rows in batches that hold whole groups, in random order.

    Parameters
    ----------
    groups, generator
        As in `grouped_order`.
    batch_size
        Most rows of a batch, at least 1. A batch ends before the group that would not fit. A group
        with more rows is cut at `batch_size`, its end shares a batch with the next groups, and
        each part is compared within itself.
    """
    order = grouped_order(groups, generator)
    sorted_groups = groups[order]
    changes = torch.nonzero(sorted_groups[1:] != sorted_groups[:-1])[:, 0] + 1
    ends = np.append(changes.cpu().numpy(), order.numel())
    start = 0
    while start < order.numel():
        fitting = int(np.searchsorted(ends, start + batch_size, side="right"))
        last = int(ends[fitting - 1]) if fitting else 0
        stop = last if last > start else start + batch_size
        yield order[start:stop]
        start = stop
