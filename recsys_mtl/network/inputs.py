"""Encoded rows as tensors on a device, and slices of them as network inputs.

Shape letters: B rows, F features with one id, N dense numbers, M ids of a list feature in all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys_mtl.encoding import OBSERVED, Batch, Part


@dataclass(frozen=True)
class ListInput:
    """Ids of one list feature: `values_M`, where each row's begin, and each id's pooling weight."""

    values_M: Tensor
    offsets_B: Tensor
    weights_M: Tensor

    @property
    def lengths_B(self) -> Tensor:
        """Ids of each row."""
        last = self.offsets_B.new_full((1,), self.values_M.numel())
        ends_B = torch.cat([self.offsets_B[1:], last])
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


_Copy = Callable[[npt.NDArray[np.generic]], Tensor]


@dataclass(frozen=True)
class _PartTensors:
    """One side's block and each row's place in it."""

    ids: Tensor
    dense: Tensor
    lists: tuple[_Lists, ...]
    rows: Tensor | None

    @staticmethod
    def of(part: Part, copy: _Copy) -> _PartTensors:
        block = part.block
        lists = tuple(
            _Lists(copy(one.values), copy(one.offsets), copy(one.weights)) for one in block.lists
        )
        rows = None if part.rows is None else copy(part.rows)
        return _PartTensors(copy(block.ids), copy(block.dense), lists, rows)

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
    whole
        For a batch that `Batch.cut` made: tensors of any rows of the batch it was cut from. Their side
        tables are used again. To a GPU all else is copied from pinned memory, without waiting: what is
        queued on the same stream afterwards finds it there.
    """

    def __init__(
        self, batch: Batch, device: torch.device, *, whole: RowTensors | None = None
    ) -> None:
        self.device = device
        self.num_rows = batch.num_rows
        pinned = whole is not None and device.type == "cuda"
        copy = partial(_tensor, device=device, pinned=pinned)
        self._parts: list[_PartTensors] = [
            _PartTensors.of(part, copy)
            if whole is None or part.rows is None
            else replace(whole._parts[number], rows=copy(part.rows))
            for number, part in enumerate(batch.parts)
        ]
        self.groups = None if batch.groups is None else copy(batch.groups)
        self._targets: tuple[Tensor, Tensor, Tensor] | None = None
        if batch.labels is not None and batch.states is not None and batch.weights is not None:
            self._targets = copy(batch.labels), copy(batch.states), copy(batch.weights)

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


def _tensor(array: npt.NDArray[np.generic], device: torch.device, *, pinned: bool) -> Tensor:
    if not array.flags.writeable:
        array = array.copy()  # torch warns about read-only memory, rightly
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)
