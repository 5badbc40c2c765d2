from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE, Batch, Block, Part, Ragged
from recsys_mtl.network import Inputs, RowTensors

LISTS = [[7, 8], [], [9], [5, 6, 7]]
CPU = torch.device("cpu")


def _batch(**labels: object) -> Batch:
    """A side table of 4 users that 5 rows point into, and a context of 5 rows."""
    user = Block(
        ids=np.array([[10], [11], [12], [13]]),
        lists=(
            Ragged(
                np.array([value for row in LISTS for value in row]),
                np.array([0, 2, 2, 3, 6]),
                np.arange(6, dtype=np.float32) / 8,
            ),
        ),
        dense=np.zeros((4, 0), dtype=np.float32),
    )
    context = Block(
        ids=np.arange(10).reshape(5, 2), lists=(), dense=np.arange(5, dtype=np.float32)[:, None]
    )
    rows = np.array([2, 0, 3, 1, 0])
    return Batch(5, (Part(user, rows), Part(context)), pl.DataFrame(), **labels)  # type: ignore[arg-type]


def _lists_of(inputs: Inputs) -> list[list[int]]:
    (found,) = inputs.lists
    ends = [*found.offsets_B.tolist(), found.values_M.numel()]
    return [found.values_M[a:b].tolist() for a, b in pairwise(ends)]


@pytest.mark.parametrize("rows", [[], [3], [4, 1, 1, 0], [0, 1, 2, 3, 4]])
def test_rows_come_in_the_order_asked_for(rows: list[int]) -> None:
    inputs = RowTensors(_batch(), CPU).take(torch.tensor(rows, dtype=torch.int64))
    users = [[2, 0, 3, 1, 0][row] for row in rows]
    assert len(inputs) == len(rows)
    assert inputs.ids_BF.tolist() == [
        [10 + user, 2 * row, 2 * row + 1] for user, row in zip(users, rows, strict=True)
    ]
    assert inputs.dense_BN.tolist() == [[row] for row in rows]
    assert _lists_of(inputs) == [LISTS[user] for user in users]
    starts = [0, 2, 2, 3]
    assert inputs.lists[0].weights_M.tolist() == [
        (starts[user] + place) / 8 for user in users for place in range(len(LISTS[user]))
    ]


def test_labels_that_are_not_observed_weigh_nothing() -> None:
    states = np.array([[OBSERVED], [MISSING], [OUT_OF_SPACE], [OBSERVED], [OBSERVED]], np.uint8)
    weights = np.array([[2], [3], [4], [0], [5]], dtype=np.float32)
    labels = np.array([[1], [0], [0], [1], [0]], dtype=np.float32)
    tensors = RowTensors(_batch(labels=labels, states=states, weights=weights), CPU)
    targets = tensors.targets(torch.tensor([4, 2, 1, 0, 3]))
    assert targets.weights_BT.tolist() == [[5], [0], [0], [2], [0]]
    assert targets.labels_BT.tolist() == [[0], [0], [0], [1], [1]]
    assert weights.tolist() == [[2], [3], [4], [0], [5]]


def test_rows_without_labels_have_no_targets() -> None:
    with pytest.raises(ValueError, match="without labels"):
        RowTensors(_batch(), CPU).targets(torch.tensor([0]))


def test_read_only_arrays_are_copied_and_others_shared() -> None:
    batch = _batch()
    frozen = batch.parts[1].block.ids
    frozen.flags.writeable = False
    tensors = RowTensors(batch, CPU)
    batch.parts[1].block.dense[0] = 99
    assert tensors.take(torch.tensor([0])).dense_BN.tolist() == [[99]]
    assert tensors.take(torch.tensor([1])).ids_BF.tolist() == [[10, 2, 3]]
