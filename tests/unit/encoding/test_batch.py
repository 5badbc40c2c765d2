"""Rows are put together, taken and cut as lists of rows are."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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


def rows_in(ranges: list[tuple[int, int]]):
    return [row for start, stop in ranges for row in range(start, stop)]


def whole_batch():
    """Rows of five contexts, each of one of three users, and all there is to know of them."""
    numbers = np.arange(5)
    users = Part(block(50, LISTS[:3]), np.array([2, 0, 2, 1, 0]))
    labels = np.stack([numbers, -numbers], axis=1).astype(np.float32)
    keys = pl.DataFrame({"user": numbers})
    return Batch(
        5,
        (users, Part(block(0, LISTS))),
        keys,
        labels,
        (labels % 3).astype(np.uint8),
        labels / 4,
        absent={"user": 2},
        groups=numbers * 1000,
    )


RANGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted).map(tuple))


@given(ranges=RANGES)
@example(ranges=[])
@example(ranges=[(3, 5), (0, 0), (1, 2), (1, 2)])
def test_rows_cut_are_the_rows_of_the_ranges(ranges: list[tuple[int, int]]):
    whole, rows = whole_batch(), rows_in(ranges)
    cut = whole.cut(ranges)
    users, context = cut.parts
    assert cut.num_rows == len(rows)
    assert users.block is whole.parts[0].block
    assert users.rows.tolist() == [[2, 0, 2, 1, 0][row] for row in rows]
    assert context.rows is None
    assert context.block.ids.tolist() == [[row, row + 100] for row in rows]
    assert context.block.dense.tolist() == [[row] for row in rows]
    assert rows_of(context.block.lists[0]) == [LISTS[row] for row in rows]
    assert rows_of(context.block.lists[1]) == [LISTS[::-1][row] for row in rows]
    assert cut.labels.tolist() == [[row, -row] for row in rows]
    assert cut.states.tolist() == [[row % 3, -row % 3] for row in rows]
    assert cut.weights.tolist() == [[row / 4, -row / 4] for row in rows]
    assert cut.groups.tolist() == [1000 * row for row in rows]


def test_cut_arrays_have_the_types_of_the_whole_and_a_memory_of_their_own():
    whole = whole_batch()
    cut = whole.cut([(0, 5)])
    for found, before in zip(arrays_of(cut), arrays_of(whole), strict=True):
        assert found.dtype == before.dtype
        assert found.shape == before.shape
        assert not np.shares_memory(found, before)


def test_what_is_missing_is_missing_in_the_cut():
    bare = Batch(5, (Part(block(0, LISTS)),), pl.DataFrame()).cut([(1, 3)])
    assert bare.labels is bare.states is bare.weights is bare.groups is None


def arrays_of(batch: Batch):
    """Return all arrays that have a row of their own for each of the batch's."""
    users, context = batch.parts
    lists = [part for one in context.block.lists for part in (one.values, one.offsets, one.weights)]
    targets = [batch.labels, batch.states, batch.weights, batch.groups]
    return [users.rows, context.block.ids, context.block.dense, *lists, *targets]


@given(cuts=st.lists(st.integers(0, 5), min_size=1).map(sorted))
@example(cuts=[0, 5])
@example(cuts=[0, 1, 2, 3, 4, 5])
def test_sizes_are_the_bytes_of_what_is_cut(cuts: list[int]):
    whole = whole_batch()
    sizes = whole.sizes(np.array(cuts))
    assert sizes.tolist() == [
        sum(array.nbytes for array in arrays_of(whole.cut([between]))) for between in pairwise(cuts)
    ]
    together = sum(array.nbytes for array in arrays_of(whole.cut(list(pairwise(cuts)))))
    assert together <= sizes.sum() or len(cuts) == 1


def test_sizes_of_more_blocks_than_are_looked_up_at_once():
    lengths = np.arange(1000) % 7
    lists = ragged([[1] * length for length in lengths])
    none = np.zeros((1000, 0))
    sizes = Batch(1000, (Part(Block(none, (lists,), none)),), pl.DataFrame()).sizes(np.arange(1001))
    assert sizes.tolist() == [(8 + 4) * length + 2 * 8 for length in lengths]
