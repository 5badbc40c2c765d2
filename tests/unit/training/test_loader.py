"""Every row once an epoch, in an order that the seed gives, whatever lies in memory."""

import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice, pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recsys_mtl.encoding import Batch, Block, Part, Ragged
from recsys_mtl.network import Inputs, RowTensors, Targets
from recsys_mtl.training import loader as loader_file
from recsys_mtl.training.grouping import grouped_batches
from recsys_mtl.training.loader import Loader

CPU = torch.device("cpu")
NUM_ITEMS = 7
MEMORY = 20_000  # far less than 1000 of the rows below take
Batches = Iterable[tuple[Inputs, Targets]]


def _ragged(lists: list[list[int]]) -> Ragged:
    values = np.array([value for row in lists for value in row], np.int32)
    return Ragged(values, np.cumsum([0, *map(len, lists)]), values.astype(np.float32) / 4)


def _listed(number: int) -> list[int]:
    return [number + place for place in range(number % 4)]


def _batch(num_rows: int, *, grouped: bool = False) -> Batch:
    """Rows where everything follows from the row's number, its first id."""
    rows = np.arange(num_rows, dtype=np.int32)
    items = np.arange(NUM_ITEMS, dtype=np.int32)
    item = Block(
        items[:, None] + 500,
        (_ragged([_listed(number) for number in items.tolist()]),),
        items[:, None].astype(np.float32),
    )
    context = Block(
        np.stack([rows, rows * 2], axis=1),
        (_ragged([_listed(number) for number in rows.tolist()]),),
        rows[:, None].astype(np.float32),
    )
    labels = rows[:, None].astype(np.float32)
    return Batch(
        num_rows,
        (Part(context), Part(item, (rows % NUM_ITEMS).astype(np.int64))),
        pl.DataFrame(),
        labels,
        np.zeros((num_rows, 1), np.uint8),
        labels + 1,
        groups=(rows % 97).astype(np.int64) if grouped else None,
    )


def _loader(
    num_rows: int = 1000,
    *,
    batch_size: int | tuple[int, ...] = 8,
    seed: int = 3,
    memory_bytes: int | None = MEMORY,
    grouped: bool = False,
) -> Loader:
    batch = _batch(num_rows, grouped=grouped)
    return Loader(batch, CPU, batch_size=batch_size, seed=seed, memory_bytes=memory_bytes)


def _rows(batches: Batches) -> list[list[int]]:
    return [inputs.ids_BF[:, 0].tolist() for inputs, _ in batches]


def _reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rows")]


@pytest.mark.parametrize("memory_bytes", [None, MEMORY])
def test_all_of_a_row_comes_with_it(memory_bytes: int | None):
    for inputs, targets in _loader(memory_bytes=memory_bytes).batches(1):
        rows = inputs.ids_BF[:, 0].tolist()
        assert inputs.ids_BF.tolist() == [[row, 2 * row, row % 7 + 500] for row in rows]
        assert inputs.dense_BN.tolist() == [[row, row % 7] for row in rows]
        for found, numbers in zip(inputs.lists, (rows, [row % 7 for row in rows]), strict=True):
            ends = [*found.offsets_B.tolist(), found.values_M.numel()]
            values = [found.values_M[start:end].tolist() for start, end in pairwise(ends)]
            assert values == [_listed(number) for number in numbers]
            assert torch.equal(found.weights_M, found.values_M / 4)
        assert targets.labels_BT.tolist() == [[row] for row in rows]
        assert targets.weights_BT.tolist() == [[row + 1] for row in rows]


@given(
    num_rows=st.integers(1, 400),
    batch_size=st.integers(1, 50),
    memory_bytes=st.none() | st.integers(12_000, 60_000),
)
@example(num_rows=400, batch_size=7, memory_bytes=12_000)
@example(num_rows=400, batch_size=400, memory_bytes=60_000)
def test_every_row_comes_once_in_full_batches_but_one(
    num_rows: int, batch_size: int, memory_bytes: int | None
):
    loader = _loader(num_rows, batch_size=batch_size, memory_bytes=memory_bytes)
    batches = _rows(loader.batches(1))
    assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
    assert len(batches) == loader.steps(1) == -(-num_rows // batch_size)
    assert sum(len(batch) != batch_size for batch in batches) == (num_rows % batch_size > 0)
    assert loader.num_rows == num_rows


@pytest.mark.parametrize("memory_bytes", [None, 60_000])
def test_an_epoch_has_batches_of_its_own_size_and_the_last_size_is_that_of_all_later_ones(
    memory_bytes: int | None,
):
    mixed = _loader(100, batch_size=(10, 30), memory_bytes=memory_bytes)
    for epoch, size in ((1, 10), (2, 30), (3, 30)):
        alone = _loader(100, batch_size=size, memory_bytes=memory_bytes)
        assert _rows(mixed.batches(epoch)) == _rows(alone.batches(epoch))
        assert _rows(mixed.batches(epoch, skip=2)) == _rows(alone.batches(epoch))[2:]
        assert (mixed.batch_size(epoch), mixed.steps(epoch)) == (size, -(-100 // size))


@pytest.mark.parametrize("memory_bytes", [None, MEMORY])
def test_no_rows_are_no_batches(memory_bytes: int | None):
    loader = _loader(0, memory_bytes=memory_bytes)
    assert loader.steps(1) == 0
    assert list(loader.batches(1)) == []


def test_rows_in_memory_are_shuffled_as_a_whole():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3 * 1_000_003 + 5))
    batches = _rows(_loader(memory_bytes=None).batches(5))
    assert batches == [rows.tolist() for rows in order.split(8)]


def test_groups_in_memory_are_batched_as_a_whole():
    draw = torch.Generator().manual_seed(3 * 1_000_003 + 5)
    expected = grouped_batches(torch.arange(1000) % 97, 8, draw)
    batches = _rows(_loader(memory_bytes=None, grouped=True).batches(5))
    assert batches == [rows.tolist() for rows in expected]


def test_groups_stay_together_in_their_window():
    """No group has more rows than a batch, so each is in as many batches as in windows."""
    loader = _loader(grouped=True, batch_size=16)
    (cut,) = (loader._windows or {}).values()
    windows = cut.draw(torch.Generator().manual_seed(3 * 1_000_003 + 1))
    assert len(windows) > 3
    spans = [{row for found in window.ranges for row in range(*found)} for window in windows]
    batches = _rows(loader.batches(1))
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    for group in range(97):
        rows = set(range(group, 1000, 97))
        assert sum(not rows.isdisjoint(batch) for batch in batches) == sum(
            not rows.isdisjoint(span) for span in spans
        )


@pytest.mark.parametrize("memory_bytes", [None, MEMORY])
def test_the_order_is_that_of_the_seed_and_the_epoch(memory_bytes: int | None):
    first = _rows(_loader(memory_bytes=memory_bytes).batches(1))
    assert _rows(_loader(memory_bytes=memory_bytes).batches(1)) == first
    assert _rows(_loader(memory_bytes=memory_bytes).batches(2)) != first
    assert _rows(_loader(memory_bytes=memory_bytes, seed=4).batches(1)) != first


def test_the_order_is_the_same_however_long_reading_and_training_take(
    monkeypatch: pytest.MonkeyPatch,
):
    expected = _rows(_loader().batches(1))
    cut = Batch.cut

    def slow(batch: Batch, ranges: list[tuple[int, int]]) -> Batch:
        time.sleep(0.01)
        return cut(batch, ranges)

    monkeypatch.setattr(Batch, "cut", slow)
    waiting = _loader()
    assert _rows(waiting.batches(1)) == expected
    assert waiting.read_seconds > 0.01
    found = []
    for number, (inputs, _) in enumerate(waiting.batches(1)):
        time.sleep(0.01 if number % 10 == 0 else 0)
        found.append(inputs.ids_BF[:, 0].tolist())
    assert found == expected


@pytest.mark.parametrize("memory_bytes", [None, MEMORY])
@pytest.mark.parametrize("grouped", [False, True])
def test_skipped_batches_are_those_that_come_first(memory_bytes: int | None, grouped: bool):
    loader = _loader(memory_bytes=memory_bytes, grouped=grouped)
    whole = _rows(loader.batches(2))
    for skip in [*range(0, len(whole), 7), len(whole) - 1, len(whole), len(whole) + 1]:
        assert _rows(loader.batches(2, skip=skip)) == whole[skip:]


def test_windows_before_the_first_batch_are_not_read(monkeypatch: pytest.MonkeyPatch):
    loader, read = _loader(), []
    inner = Loader._read
    monkeypatch.setattr(
        Loader, "_read", lambda self, window: read.append(window) or inner(self, window)
    )
    whole = _rows(loader.batches(1))
    windows = list(read)
    assert len(windows) > 3
    read.clear()
    skip = -(-windows[0].num_rows // 8) + -(-windows[1].num_rows // 8)
    assert _rows(loader.batches(1, skip=skip)) == whole[skip:]
    assert read == windows[2:]


def test_batches_mix_rows_from_all_over():
    batches = _rows(_loader(20_000, batch_size=8, memory_bytes=200_000).batches(1))
    spreads = [max(batch) - min(batch) for batch in batches]
    assert np.median(spreads) > 12_000
    seen = [row for batch in batches for row in batch]
    assert abs(np.corrcoef(seen, np.arange(20_000))[0, 1]) < 0.3


def test_no_more_than_two_windows_are_held(monkeypatch: pytest.MonkeyPatch):
    held: weakref.WeakSet[RowTensors] = weakref.WeakSet()
    others: list[int] = []

    class Counted(RowTensors):
        def __init__(
            self, batch: Batch, device: torch.device, *, whole: RowTensors | None = None
        ) -> None:
            if whole is not None:
                others.append(len(held))
                held.add(self)
            super().__init__(batch, device, whole=whole)

    monkeypatch.setattr(loader_file, "RowTensors", Counted)
    loader = _loader()
    for _ in loader.batches(1):
        assert len(held) <= 2
    assert len(others) > 3
    assert max(others) == 1
    assert not held


def test_side_tables_are_not_copied_into_windows():
    loader = _loader()
    tables = {part.ids.data_ptr() for part in loader._resident._parts if part.rows is not None}
    (cut,) = (loader._windows or {}).values()
    window = loader._read(cut.draw(torch.Generator())[0])
    assert {part.ids.data_ptr() for part in window.rows._parts if part.rows is not None} == tables


def test_time_spent_on_waiting_starts_anew_with_the_epoch():
    loader = _loader()
    list(loader.batches(1))
    assert loader.read_seconds > 0
    list(_loader(memory_bytes=None).batches(1))
    loader.batches(2)
    assert loader.read_seconds == 0


def test_thread_ends_with_the_epoch():
    list(_loader().batches(1))
    assert _reading_threads() == []


def test_thread_ends_when_the_consumer_breaks_off():
    loader = _loader()
    for _ in loader.batches(1):
        assert _reading_threads()
        break
    assert _reading_threads() == []
    assert len(_rows(loader.batches(1))) == 125


def test_thread_ends_when_the_consumer_raises_or_goes_on_to_another_epoch():
    loader = _loader()

    def consume(batches: Iterator[tuple[Inputs, Targets]]) -> None:
        next(batches)
        raise KeyError("consumer")

    batches = loader.batches(1)
    with pytest.raises(KeyError, match="consumer"), closing(loader):
        consume(batches)
    assert _reading_threads() == []
    with pytest.raises(StopIteration):
        next(batches)
    first = loader.batches(1)
    next(first)
    list(islice(loader.batches(2), 3))
    with pytest.raises(StopIteration):
        next(first)
    assert _reading_threads() == []


def test_error_in_the_thread_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch):
    loader, cuts = _loader(), iter(range(1000))
    cut = Batch.cut

    def fail(batch: Batch, ranges: list[tuple[int, int]]) -> Batch:
        if next(cuts) == 2:
            raise OSError(5, "the disk is gone")
        return cut(batch, ranges)

    monkeypatch.setattr(Batch, "cut", fail)
    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        found += _rows(islice(loader.batches(1), 10**6))
    assert _reading_threads() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a GPU need one")
@pytest.mark.parametrize("memory_bytes", [None, MEMORY])
def test_batches_on_a_gpu_are_those_on_the_cpu(memory_bytes: int | None):
    device = torch.device("cuda")
    batch = _batch(1000)
    loader = Loader(batch, device, batch_size=8, seed=3, memory_bytes=memory_bytes)
    expected = _loader(memory_bytes=memory_bytes).batches(1)
    for (inputs, targets), (inputs_there, targets_there) in zip(
        expected, loader.batches(1), strict=True
    ):
        assert torch.equal(inputs.ids_BF, inputs_there.ids_BF.cpu())
        assert torch.equal(inputs.dense_BN, inputs_there.dense_BN.cpu())
        assert torch.equal(inputs.lists[0].values_M, inputs_there.lists[0].values_M.cpu())
        assert torch.equal(targets.labels_BT, targets_there.labels_BT.cpu())
