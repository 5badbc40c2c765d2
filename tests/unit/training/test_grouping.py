"""Rows of one group stay together, and nothing else is in order."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from recsys_mtl.training.grouping import grouped_batches, grouped_order


def _groups(num_rows: int = 200, *, num_groups: int = 30, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(num_groups, (num_rows,), generator=draw) * 2**57 - 2**61


def _order(groups: Tensor, seed: int) -> list[int]:
    return grouped_order(groups, torch.Generator().manual_seed(seed)).tolist()


def _batches(groups: Tensor, batch_size: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [rows.tolist() for rows in grouped_batches(groups, batch_size, generator)]


@pytest.mark.parametrize("num_rows", [0, 1, 2, 201])
def test_order_is_a_permutation_with_groups_side_by_side(num_rows: int):
    groups = _groups(num_rows)
    order = _order(groups, 1)
    assert sorted(order) == list(range(num_rows))
    placed = groups[order]
    changes = int((placed[1:] != placed[:-1]).sum())
    assert changes == max(len(set(groups.tolist())) - 1, 0)


def test_same_seed_gives_the_same_order_and_another_seed_another():
    groups = _groups()
    assert _order(groups, 1) == _order(groups, 1)
    assert _order(groups, 1) != _order(groups, 2)


def test_every_order_of_groups_and_of_their_rows_comes_up_as_often():
    groups = torch.tensor([5, -2, 5])
    seen = [tuple(_order(groups, seed)) for seed in range(400)]
    counts = {order: seen.count(order) for order in set(seen)}
    assert set(counts) == {(0, 2, 1), (2, 0, 1), (1, 0, 2), (1, 2, 0)}
    assert all(60 < count < 140 for count in counts.values())  # 100 expected, deviation 8.7


@pytest.mark.parametrize("batch_size", [12, 20, 64, 200, 1000])
def test_batches_hold_whole_groups_and_at_most_the_rows_asked_for(batch_size: int):
    groups = _groups()
    assert groups.unique(return_counts=True)[1].max() <= 12
    batches = _batches(groups, batch_size)
    assert sorted(row for rows in batches for row in rows) == list(range(200))
    assert all(0 < len(rows) <= batch_size for rows in batches)
    held = [set(groups[rows].tolist()) for rows in batches]
    assert sum(map(len, held)) == len(set.union(*held))


def test_no_batch_has_room_for_the_group_after_it():
    groups = _groups()
    batches = _batches(groups, 20)
    for rows, after in pairwise(batches):
        first = int((groups == groups[after[0]]).sum())
        assert len(rows) + first > 20


def test_group_larger_than_a_batch_is_cut_and_its_end_shares_one():
    groups = torch.tensor([1] * 25 + [2, 3, 3])
    for seed in range(10):
        batches = _batches(groups, 10, seed)
        assert sorted(row for rows in batches for row in rows) == list(range(28))
        assert all(len(rows) <= 10 for rows in batches)
        holding = [rows for rows in batches if 1 in groups[rows]]
        assert [int((groups[rows] == 1).sum()) for rows in holding] == [10, 10, 5]


def test_batches_of_one_row_are_the_rows():
    assert sorted(_batches(_groups(), 1)) == [[row] for row in range(200)]


def test_no_rows_give_no_batch():
    assert _batches(_groups(0), 10) == []
