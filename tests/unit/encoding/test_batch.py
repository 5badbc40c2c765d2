"""Blocks are put together and taken apart as lists of rows are."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from recsys_mtl.encoding import Batch, Block, Part, Ragged

LISTS = [[5, 6], [], [7], [], [8, 9, 9]]


def ragged(rows: list[list[int]]):
    values = np.array([value for row in rows for value in row], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(values, offsets, values.astype(np.float32) / 10)


def rows_of(lists: Ragged):
    cuts = list(pairwise(lists.offsets.tolist()))
    np.testing.assert_array_equal(lists.weights, lists.values.astype(np.float32) / 10)
    return [lists.values[start:end].tolist() for start, end in cuts]


def block(first: int, rows: list[list[int]]):
    numbers = np.arange(first, first + len(rows))
    ids = np.stack([numbers, numbers + 100], axis=1)
    return Block(ids, (ragged(rows), ragged(rows[::-1])), numbers[:, None].astype(np.float32))


@pytest.mark.parametrize("rows", [[], [0], [4, 4, 0, 1, 2], [3, 1], [4, 3, 2, 1, 0]])
def test_rows_taken_are_the_lists_taken(rows: list[int]):
    taken = ragged(LISTS).take(np.array(rows, dtype=np.int64))
    assert rows_of(taken) == [LISTS[row] for row in rows]
    assert taken.offsets.dtype == taken.values.dtype == np.int64


def test_taking_from_a_block_takes_every_column():
    taken = block(0, LISTS).take(np.array([4, 0, 4]))
    assert len(taken) == 3
    assert taken.ids.tolist() == [[4, 104], [0, 100], [4, 104]]
    assert taken.dense.tolist() == [[4], [0], [4]]
    assert rows_of(taken.lists[0]) == [LISTS[4], LISTS[0], LISTS[4]]
    assert rows_of(taken.lists[1]) == [LISTS[0], LISTS[4], LISTS[0]]


@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 0, 1, 5, 5]])
def test_concat_of_pieces_is_the_whole(cuts: list[int]):
    whole = block(0, LISTS)
    pieces = [whole.take(np.arange(start, end)) for start, end in pairwise(cuts)]
    joined = Block.concat(pieces)
    assert joined.ids.tolist() == whole.ids.tolist()
    assert joined.dense.tolist() == whole.dense.tolist()
    for one, other in zip(joined.lists, whole.lists, strict=True):
        assert rows_of(one) == rows_of(other)
        assert one.offsets.dtype == np.int64


def test_flat_rows_keep_their_groups():
    groups = np.array([7, -1, 7])
    part = Part(block(0, LISTS), np.array([4, 0, 4]))
    flat = Batch(3, (part,), pl.DataFrame(), groups=groups).flat()
    assert flat.groups is groups
    assert flat.parts[0].block.ids[:, 0].tolist() == [4, 0, 4]
