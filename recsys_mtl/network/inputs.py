"""Encoded rows as tensors on a device, and slices of them as network inputs.

Shape letters: B rows, F features with one id, N dense numbers, M ids of a list feature in all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys_mtl.encoding import OBSERVED, Batch, Block


@dataclass(frozen=True)
class ListInput:
    """Ids of one list feature: `values_M`, where each row's begin, and each id's pooling weight."""

    values_M: Tensor
    offsets_B: Tensor
    weights_M: Tensor

    @property
    def lengths_B(self) -> Tensor:
        """Ids of each row."""
        ends_B = torch.cat([self.offsets_B[1:], self.offsets_B.new_tensor([self.values_M.numel()])])
        return (ends_B - self.offsets_B)[: self.offsets_B.numel()]


@dataclass(frozen=True)
class Inputs:
    """What the network reads for B rows; ids are rows of each feature's own table."""

    ids_BF: Tensor
    lists: tuple[ListInput, ...]
    dense_BN: Tensor

    def __len__(self) -> int:
        return int(self.ids_BF.shape[0])


@dataclass(frozen=True)
class Targets:
    """Labels of B rows.

    Parameters
    ----------
    labels_BT
        Values; 0 where not observed.
    weights_BT
        Sample weights; 0 where the label is not observed.
    states_BT
        `OBSERVED`, `MISSING` or `OUT_OF_SPACE`.
    groups_B
        The user or request of each row, as a number, for losses that compare rows; None without such.
    """

    labels_BT: Tensor
    weights_BT: Tensor
    states_BT: Tensor
    groups_B: Tensor | None = None


@dataclass(frozen=True)
class _Lists:
    values: Tensor
    offsets: Tensor
    weights: Tensor

    def take(self, rows_B: Tensor) -> ListInput:
        starts_B = self.offsets[rows_B]
        lengths_B = self.offsets[rows_B + 1] - starts_B
        ends_B = lengths_B.cumsum(0)
        offsets_B = ends_B - lengths_B
        shift_M = torch.repeat_interleave(starts_B - offsets_B, lengths_B)
        source_M = torch.arange(shift_M.numel(), device=shift_M.device) + shift_M
        return ListInput(self.values[source_M], offsets_B, self.weights[source_M])


class _PartTensors:
    """One side's block and each row's place in it."""

    def __init__(
        self, block: Block, rows: npt.NDArray[np.int64] | None, device: torch.device
    ) -> None:
        self.ids = _tensor(block.ids, device)
        self.dense = _tensor(block.dense, device)
        self.lists = [
            _Lists(*(_tensor(array, device) for array in (part.values, part.offsets, part.weights)))
            for part in block.lists
        ]
        self.rows = None if rows is None else _tensor(rows, device)

    def places(self, rows_B: Tensor) -> Tensor:
        return rows_B if self.rows is None else self.rows[rows_B]


class RowTensors:
    """A `Batch` on a device; training and scoring take rows from it by number.

    Parameters
    ----------
    batch
        Encoded rows; on the CPU their arrays are shared, not copied.
    device
        Where the tensors are to lie.
    """

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.device = device
        self.num_rows = batch.num_rows
        self._parts = [_PartTensors(part.block, part.rows, device) for part in batch.parts]
        self.groups = None if batch.groups is None else _tensor(batch.groups, device)
        self._targets: tuple[Tensor, Tensor, Tensor] | None = None
        if batch.labels is not None and batch.states is not None and batch.weights is not None:
            labels, states, weights = (
                _tensor(array, device) for array in (batch.labels, batch.states, batch.weights)
            )
            self._targets = labels, states, weights

    def take(self, rows_B: Tensor) -> Inputs:
        """Return the inputs of the rows numbered `rows_B`, in that order."""
        ids, dense, lists = [], [], []
        for part in self._parts:
            places_B = part.places(rows_B)
            ids.append(part.ids.index_select(0, places_B))
            dense.append(part.dense.index_select(0, places_B))
            lists += [one.take(places_B) for one in part.lists]
        return Inputs(torch.cat(ids, dim=1), tuple(lists), torch.cat(dense, dim=1))

    def targets(self, rows_B: Tensor) -> Targets:
        """Return the labels of the rows numbered `rows_B`."""
        if self._targets is None:
            raise ValueError("The rows were encoded without labels.")
        labels_BT, states_BT, weights_BT = (found[rows_B] for found in self._targets)
        groups_B = None if self.groups is None else self.groups[rows_B]
        weights_BT = weights_BT.where(states_BT == OBSERVED, 0)
        return Targets(labels_BT, weights_BT, states_BT, groups_B)


def _tensor(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    if not array.flags.writeable:
        array = array.copy()  # torch warns about read-only memory, rightly
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
