"""K7 of the science reference: row-wise Adagrad against its formula and against torch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.training import RowWiseAdagrad
from recsys_mtl.training import tables as tables_file
from recsys_mtl.training.tables import RowWiseAdagradOptimizer, _update_cpu, _update_torch

Update = Callable[..., None]
UPDATES = [_update_cpu, _update_torch]


@pytest.fixture(params=UPDATES, ids=["cpu", "torch"])
def update(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Update]:
    """Run the test once with each of the two kernels."""
    monkeypatch.setattr(tables_file, "_update_cpu", request.param)
    return request.param


def _table(weights: Any, dtype: torch.dtype = torch.float64) -> EmbeddingTable:
    values = torch.as_tensor(weights, dtype=dtype).clone()
    table = EmbeddingTable(["t"], [len(values)], [(0, "t")], [], values.shape[1])
    table.weight_RD.data = values
    return table


def _touched(ids: Any, weights: Any = None, slots: Any = None) -> Touched:
    rows_K = torch.as_tensor(ids, dtype=torch.int64)
    slots_K = torch.arange(rows_K.numel()) if slots is None else torch.as_tensor(slots)
    factors_K = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    return Touched(rows_K, slots_K, factors_K)


def _step(optimizer: RowWiseAdagradOptimizer, touched: Touched, gradient: Tensor) -> None:
    optimizer.step([touched], [gradient[:, None]])


def _dense_step(
    weight: np.ndarray, state: np.ndarray, gradient: np.ndarray, settings: RowWiseAdagrad
) -> None:
    """Step every row whose dense gradient is not zero, by the formula, row by row."""
    for row in np.flatnonzero(gradient.any(axis=1)):
        whole = gradient[row] + settings.l2 * weight[row]
        state[row] += np.mean(whole**2)
        weight[row] -= settings.learning_rate * whole / (math.sqrt(state[row]) + settings.eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worked_example(update: Update, dtype: torch.dtype) -> None:
    table = _table([[1, 2], [3, 4], [5, 6]], dtype)
    optimizer = RowWiseAdagrad(0.1, eps=1e-8).build([table])
    gradient = torch.tensor([[1, 1], [2, 0], [1, 3]], dtype=dtype)
    _step(optimizer, _touched([0, 2, 0]), gradient)
    expected = [[0.9367545, 1.8735089], [3, 4], [4.8585786, 6]]
    np.testing.assert_allclose(table.weight_RD.detach(), expected, rtol=0, atol=5e-7)
    np.testing.assert_allclose(optimizer.accumulators[0], [10, 0, 2], rtol=0, atol=1e-6)
    assert table.weight_RD.dtype == optimizer.accumulators[0].dtype == dtype


def test_width_one_is_the_adagrad_of_torch(update: Update) -> None:
    """Same place of eps (outside the root), same first accumulator (0), 20 steps."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(12, 1))
    table = _table(start)
    twin = torch.nn.Parameter(torch.tensor(start))
    optimizer = RowWiseAdagrad(0.3, eps=1e-2).build([table])
    reference = torch.optim.Adagrad([twin], lr=0.3, eps=1e-2, initial_accumulator_value=0)
    for _ in range(20):
        ids = torch.from_numpy(rng.integers(12, size=7))
        gradient = torch.from_numpy(rng.normal(size=(7, 1)))
        _step(optimizer, _touched(ids), gradient)
        twin.grad = torch.zeros(12, 1, dtype=torch.float64).index_add_(0, ids, gradient)
        reference.step()
    np.testing.assert_allclose(table.weight_RD.detach(), twin.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_merged_duplicates_equal_the_dense_gradient_stepped_row_by_row(
    update: Update, l2: float
) -> None:
    rng = np.random.default_rng(1)
    settings = RowWiseAdagrad(0.2, l2=l2, eps=1e-3)
    weight, state = rng.normal(size=(9, 4)), np.zeros(9)
    table = _table(weight)
    optimizer = settings.build([table])
    for _ in range(5):
        ids = rng.integers(6, size=15)  # rows 6 to 8 are never touched
        slots = rng.integers(5, size=15)  # several ids pool into one slot
        factors = rng.uniform(0.5, 2, size=15).astype(np.float32)
        gradient = rng.normal(size=(5, 4))
        _step(optimizer, _touched(ids, factors, slots), torch.from_numpy(gradient))
        dense = np.zeros((9, 4))
        for k in range(15):
            dense[ids[k]] += float(factors[k]) * gradient[slots[k]]
        _dense_step(weight, state, dense, settings)
    np.testing.assert_allclose(table.weight_RD.detach(), weight, rtol=0, atol=1e-12)
    np.testing.assert_allclose(optimizer.accumulators[0], state, rtol=1e-12)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_untouched_rows_keep_every_bit(update: Update, l2: float) -> None:
    start = torch.randn(50, 3)
    table = _table(start, torch.float32)
    optimizer = RowWiseAdagrad(l2=l2).build([table])
    _step(optimizer, _touched([4, 4, 40]), torch.randn(3, 3))
    same = torch.ones(50, dtype=torch.bool)
    same[[4, 40]] = False
    assert torch.equal(table.weight_RD[same], start[same])
    assert (table.weight_RD[~same] != start[~same]).all()
    assert not optimizer.accumulators[0][same].any()


def test_the_order_of_a_batch_is_of_no_account(update: Update) -> None:
    """Within rounding: duplicates are added up in the order in which they come."""
    rng = np.random.default_rng(2)
    start, ids = rng.normal(size=(8, 4)), rng.integers(8, size=40)
    gradient, order = rng.normal(size=(40, 4)), rng.permutation(40)
    tables = []
    for places in (np.arange(40), order):
        table = _table(start)
        _step(
            RowWiseAdagrad().build([table]), _touched(ids[places]), torch.tensor(gradient[places])
        )
        tables.append(table.weight_RD.detach())
    np.testing.assert_allclose(tables[1], tables[0], rtol=0, atol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 30),
    num_ids=st.integers(1, 60),
    dim=st.integers(1, 5),
    weighted=st.booleans(),
    l2=st.sampled_from([0.0, 0.1]),
)
def test_both_kernels_do_the_same(
    seed: int, num_rows: int, num_ids: int, dim: int, weighted: bool, l2: float
) -> None:
    rng = np.random.default_rng(seed)
    settings = RowWiseAdagrad(0.1, l2=l2, eps=1e-2)
    weight = torch.from_numpy(rng.normal(size=(num_rows, dim)))
    state = torch.from_numpy(rng.random(num_rows))
    factors = rng.random(num_ids).astype(np.float32) if weighted else None
    slots = rng.integers(4, size=num_ids)
    touched = _touched(rng.integers(num_rows, size=num_ids), factors, slots)
    gradient = torch.from_numpy(rng.normal(size=(4, dim)))
    results = []
    for kernel in UPDATES:
        copies = weight.clone(), state.clone(), torch.full((num_rows,), -1)
        kernel(*copies, touched, gradient, settings, 0.05)
        assert (copies[2] == -1).all()  # the scratch is left as it was found
        results.append(copies)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-12)


def test_l2_decays_touched_rows_and_no_other(update: Update) -> None:
    table = _table([[2.0, 2.0], [2.0, 2.0]])
    optimizer = RowWiseAdagrad(0.1, l2=0.5, eps=1e-8).build([table])
    _step(optimizer, _touched([1]), torch.zeros(1, 2, dtype=torch.float64))
    # gradient 0.5 * 2 = 1, accumulator 1: a step of 0.1
    np.testing.assert_allclose(table.weight_RD.detach(), [[2, 2], [1.9, 1.9]], rtol=0, atol=1e-8)
    np.testing.assert_allclose(optimizer.accumulators[0], [0, 1], rtol=0, atol=0)


def test_a_gradient_of_zero_changes_nothing(update: Update) -> None:
    table = _table([[1.0, -2.0]])
    _step(RowWiseAdagrad().build([table]), _touched([0]), torch.zeros(1, 2, dtype=torch.float64))
    assert table.weight_RD.tolist() == [[1, -2]]


def test_no_ids_change_nothing(update: Update) -> None:
    table = _table([[1.0, -2.0]])
    _step(RowWiseAdagrad().build([table]), _touched([]), torch.zeros(0, 2, dtype=torch.float64))
    assert table.weight_RD.tolist() == [[1, -2]]


def test_tables_are_stepped_each_with_its_own_gradient(update: Update) -> None:
    tables = [_table([[1.0], [1.0]]), _table([[1.0, 1.0]])]
    optimizer = RowWiseAdagrad(0.1, eps=1e-8).build(tables)
    gradients = [torch.ones(1, 1, 1).double(), -torch.ones(1, 1, 2).double()]
    optimizer.step([_touched([1]), _touched([0])], gradients)
    np.testing.assert_allclose(tables[0].weight_RD.detach(), [[1], [0.9]], atol=1e-8)
    np.testing.assert_allclose(tables[1].weight_RD.detach(), [[1.1, 1.1]], atol=1e-8)


def test_reset_draws_afresh_and_forgets(update: Update) -> None:
    table = _table(torch.ones(500, 4))
    optimizer = RowWiseAdagrad(0.1, eps=1e-8).build([table])
    _step(optimizer, _touched([0, 1]), torch.ones(2, 4, dtype=torch.float64))
    optimizer.reset()
    assert not optimizer.accumulators[0].any()
    assert 0.008 < table.weight_RD.std() < 0.012
    before = table.weight_RD[0].clone()
    _step(optimizer, _touched([0]), torch.full((1, 4), 7.0, dtype=torch.float64))
    torch.testing.assert_close(table.weight_RD[0], before - 0.1)  # the first step is of size lr
