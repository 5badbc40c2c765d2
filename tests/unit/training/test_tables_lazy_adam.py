"""Lazy Adam against the Adam of torch: of the whole table, and of each row by itself."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.training import LazyAdam
from recsys_mtl.training import lazy_adam as lazy_adam_file
from recsys_mtl.training.lazy_adam import LazyAdamOptimizer, Moments, _update_cpu, _update_torch

Update = Callable[..., None]
UPDATES = [_update_cpu, _update_torch]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


@pytest.fixture(params=UPDATES, ids=["cpu", "torch"])
def update(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Update]:
    """Run the test once with each of the two kernels."""
    monkeypatch.setattr(lazy_adam_file, "_update_cpu", request.param)
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


def _step(
    optimizer: LazyAdamOptimizer, touched: Touched, gradient: Tensor, factor: float = 1.0
) -> None:
    optimizer.step([touched], [gradient[:, None]], factor=factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.5, 0.99)])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_on_a_table_touched_as_a_whole_it_is_the_adam_of_torch(
    update: Update, dtype: torch.dtype, betas: tuple[float, float], l2: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(12, 4, generator=draw, dtype=dtype)
    table, twin = _table(start, dtype), torch.nn.Parameter(start.clone())
    optimizer = LazyAdam(0.01, beta1=betas[0], beta2=betas[1], l2=l2).build([table])
    reference = torch.optim.Adam([twin], lr=0.01, betas=betas, weight_decay=l2, eps=1e-8)
    for _ in range(20):
        twin.grad = torch.randn(12, 4, generator=draw, dtype=dtype)
        order = torch.randperm(12, generator=draw)
        _step(optimizer, _touched(order), twin.grad[order])
        reference.step()
    torch.testing.assert_close(table.weight_RD.data, twin.data, rtol=0, atol=TOLERANCE[dtype])
    assert table.weight_RD.dtype == optimizer.state()["0.second"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_every_row_takes_the_steps_of_an_adam_of_its_own(
    update: Update, dtype: torch.dtype, l2: float
) -> None:
    """Rows met at different steps, more than once in a batch, pooled, weighted; changing rates."""
    rng = np.random.default_rng(1)
    start = torch.from_numpy(rng.normal(size=(9, 4))).to(dtype)
    table = _table(start, dtype)
    optimizer = LazyAdam(0.02, l2=l2, eps=1e-6).build([table])
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    adams = [torch.optim.Adam([row], lr=0.02, weight_decay=l2, eps=1e-6) for row in rows]
    steps = np.zeros(9)
    for factor in np.linspace(1, 0.3, 15):
        ids = rng.integers(8, size=6)  # row 8 is never met
        slots, factors = rng.integers(5, size=6), rng.uniform(0.5, 2, size=6)
        weights = torch.from_numpy(factors).float()
        gradient = torch.from_numpy(rng.normal(size=(5, 4))).to(dtype)
        _step(optimizer, _touched(ids, weights, slots), gradient, factor)
        for row in set(ids.tolist()):
            met = torch.from_numpy(np.flatnonzero(ids == row))
            rows[row].grad = (weights[met, None].to(dtype) * gradient[slots[met]]).sum(dim=0)
            adams[row].param_groups[0]["lr"] = 0.02 * factor
            adams[row].step()
            steps[row] += 1
    assert len(set(steps.tolist())) > 4
    expected = torch.stack([row.data for row in rows])
    torch.testing.assert_close(table.weight_RD.data, expected, rtol=0, atol=TOLERANCE[dtype])
    assert optimizer.state()["0.steps"].tolist() == steps.tolist()


def test_a_row_first_met_late_takes_a_first_step_of_the_learning_rate(update: Update) -> None:
    """A count of the run's steps would make it 0.1 / sqrt(0.001) = 3.2 times as long."""
    table = _table([[0.0, 0.0], [0.0, 0.0]])
    optimizer = LazyAdam(0.01).build([table])
    for _ in range(5000):
        _step(optimizer, _touched([0]), torch.ones(1, 2, dtype=torch.float64))
    _step(optimizer, _touched([1]), torch.tensor([[3.0, -0.5]], dtype=torch.float64))
    np.testing.assert_allclose(table.weight_RD[1].detach(), [-0.01, 0.01], rtol=1e-6)


def test_the_worked_example(update: Update) -> None:
    """Gradients 1, then 3 on row 1: m 0.1, 0.39; v 0.001, 0.009999."""
    table = _table([[5.0], [5.0]], torch.float32)
    optimizer = LazyAdam(0.1).build([table])
    _step(optimizer, _touched([1]), torch.tensor([[1.0]]))
    assert table.weight_RD[1].item() == pytest.approx(4.9, abs=1e-6)
    _step(optimizer, _touched([1]), torch.tensor([[3.0]]))
    second = 0.1 * (0.39 / 0.19) / math.sqrt(0.009999 / 0.001999)
    assert table.weight_RD[1].item() == pytest.approx(4.9 - second, abs=1e-6)
    state = optimizer.state()
    np.testing.assert_allclose(state["0.first"], [[0], [0.39]], rtol=1e-6)
    np.testing.assert_allclose(state["0.second"], [[0], [0.009999]], rtol=1e-6)
    assert state["0.steps"].tolist() == [0, 2]


def test_twice_the_factor_is_twice_the_step(update: Update) -> None:
    moved = []
    for factor in (0.5, 1.0):
        table = _table(torch.zeros(2, 3))
        gradient = torch.tensor([[1.0, -2.0, 5.0]], dtype=torch.float64)
        _step(LazyAdam().build([table]), _touched([1]), gradient, factor)
        moved.append(table.weight_RD.data)
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-12, atol=0)
    assert moved[0][1].all()


def test_a_gradient_of_zero_moves_no_new_row_but_one_under_way(update: Update) -> None:
    table = _table([[1.0, -2.0], [1.0, -2.0]])
    optimizer = LazyAdam().build([table])
    _step(optimizer, _touched([1]), torch.ones(1, 2, dtype=torch.float64))
    moving = table.weight_RD[1].clone()
    _step(optimizer, _touched([0, 1]), torch.zeros(2, 2, dtype=torch.float64))
    assert table.weight_RD[0].tolist() == [1, -2]
    assert (table.weight_RD[1] < moving).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 30),
    num_ids=st.integers(1, 60),
    dim=st.integers(1, 5),
    weighted=st.booleans(),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.9, 0.0)]),
    l2=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_both_kernels_do_the_same(
    seed: int,
    num_rows: int,
    num_ids: int,
    dim: int,
    weighted: bool,
    betas: tuple[float, float],
    l2: float,
    dtype: torch.dtype,
) -> None:
    rng = np.random.default_rng(seed)
    settings = LazyAdam(0.1, beta1=betas[0], beta2=betas[1], l2=l2, eps=1e-2)
    weight, first = (torch.from_numpy(rng.normal(size=(num_rows, dim))).to(dtype) for _ in range(2))
    second = torch.from_numpy(rng.random((num_rows, dim))).to(dtype)
    steps = torch.from_numpy(rng.integers(5, size=num_rows)).to(torch.int32)
    factors = rng.random(num_ids).astype(np.float32) if weighted else None
    touched = _touched(rng.integers(num_rows, size=num_ids), factors, rng.integers(4, size=num_ids))
    gradient = torch.from_numpy(rng.normal(size=(4, dim))).to(dtype)
    results = []
    for kernel in UPDATES:
        values = weight.clone()
        moments = Moments(first.clone(), second.clone(), steps.clone())
        slots = torch.full((num_rows,), -1)
        kernel(values, moments, slots, touched, gradient, settings, 0.05)
        assert (slots == -1).all()  # the scratch is left as it was found
        results.append((values, *moments))
    for one, other in zip(*results, strict=True):
        bound = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_share_kept_is_below_one(name: str, value: float) -> None:
    with pytest.raises(SchemaError, match=name):
        LazyAdam(**{name: value})
