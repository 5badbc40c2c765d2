"""Windows hold every block once, from all over the rows, and two of them fit into the memory."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import Batch, Block, Part, Ragged
from recsys_mtl.training.windows import Window, Windows

ROW_BYTES = 4 + 8  # one id, and the row's number in the order


def _batch(num_rows: int) -> Batch:
    ids = np.arange(num_rows, dtype=np.int32)[:, None]
    block = Block(ids, (), np.zeros((num_rows, 0), np.float32))
    return Batch(num_rows, (Part(block),), pl.DataFrame())


def _listed(lengths: list[int]) -> Batch:
    """Rows that have a list of these lengths, of 8 bytes each, and 20 bytes beside it."""
    values, offsets = np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths])
    block = Block(
        np.zeros((len(lengths), 1), np.int32),
        (Ragged(values, offsets, values.astype(np.float32)),),
        np.zeros((len(lengths), 0), np.float32),
    )
    return Batch(len(lengths), (Part(block),), pl.DataFrame())


def _draw(windows: Windows, seed: int = 0) -> list[Window]:
    return windows.draw(torch.Generator().manual_seed(seed))


def _bytes(batch: Batch, window: Window) -> int:
    (part,) = batch.cut(window.ranges).parts
    arrays = [part.block.ids, part.block.dense]
    for one in part.block.lists:
        arrays += [one.values, one.offsets, one.weights]
    return sum(array.nbytes for array in arrays) + 8 * window.num_rows


@pytest.mark.parametrize("num_rows", [0, 1, 9, 10, 11, 999, 1000, 1001])
@pytest.mark.parametrize("memory_rows", [40, 50, 700, 5000])
def test_every_row_is_in_one_window_and_blocks_are_whole_batches(num_rows: int, memory_rows: int):
    windows = Windows(_batch(num_rows), batch_size=10, memory_bytes=memory_rows * ROW_BYTES)
    drawn = _draw(windows)
    ranges = [found for window in drawn for found in window.ranges]
    assert sorted(row for found in ranges for row in range(*found)) == list(range(num_rows))
    assert all(start % 10 == 0 for start, _ in ranges)
    assert all(stop % 10 == 0 or stop == num_rows for _, stop in ranges)
    assert all(window.num_rows <= memory_rows // 2 for window in drawn)
    in_whole_batches = memory_rows // 2 // 10 * 10
    assert len(drawn) <= 1.1 * -(-num_rows // in_whole_batches)


def test_two_windows_of_uneven_rows_fit_into_the_memory():
    lengths = np.random.default_rng(0).pareto(1.0, 3000).clip(0, 300).astype(int)
    batch = _listed(lengths.tolist())
    memory_bytes = 24_000
    for seed in range(5):
        drawn = _draw(Windows(batch, batch_size=4, memory_bytes=memory_bytes), seed)
        sizes = [_bytes(batch, window) for window in drawn]
        assert max(sizes) <= memory_bytes // 2
        assert sum(window.num_rows for window in drawn) == 3000
        assert len(drawn) < 1.5 * sum(sizes) / (memory_bytes // 2)


def test_windows_mix_blocks_from_all_over_the_rows():
    drawn = _draw(Windows(_batch(100_000), batch_size=10, memory_bytes=10_000 * ROW_BYTES))
    assert 20 <= len(drawn) <= 21
    for window in drawn:
        assert len(window.ranges) >= 16
        assert window.ranges[0][0] < 30_000
        assert window.ranges[-1][1] > 70_000


def test_windows_are_drawn_by_the_seed():
    windows = Windows(_batch(1000), batch_size=10, memory_bytes=200 * ROW_BYTES)
    assert _draw(windows, 1) == _draw(windows, 1)
    assert _draw(windows, 1) != _draw(windows, 2)
    assert len({window.seed for window in _draw(windows, 1)}) == 10


def test_too_little_memory_is_refused_with_the_least_that_does():
    batch = _listed([0, 0, 1, 1, 9, 9, 0, 0, 5, 5, 2])
    # Two rows with 9 numbers each, two with 5, and an offset more for either.
    least = 2 * (2 * (20 + 9 * 8) + 8 + 2 * (20 + 5 * 8) + 8)
    with pytest.raises(ValueError, match=f"memory_bytes must be at least {least:,}: .* 2 rows"):
        Windows(batch, batch_size=2, memory_bytes=least - 2)
    drawn = _draw(Windows(batch, batch_size=2, memory_bytes=least))
    assert sum(window.num_rows for window in drawn) == 11
    for one, other in pairwise(drawn):
        assert _bytes(batch, one) + _bytes(batch, other) <= least


def test_one_long_list_makes_blocks_smaller_not_the_memory_too_small():
    lengths = [1] * 999 + [300]
    windows = Windows(_listed(lengths), batch_size=1, memory_bytes=6000)
    assert sum(window.num_rows for window in _draw(windows)) == 1000
