"""What the history says of gates, experts and gradients, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from recsys_mtl.encoding import Batch
from recsys_mtl.network import PLE, MultiTaskModel, Shared
from recsys_mtl.schema import Schema
from recsys_mtl.training import SGD, TrainConfig, Trainer
from recsys_mtl.training.observe import Observer

ONES = torch.ones(2)
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]


def _see(observer: Observer, shared: Shared, gramian: list[list[float]]) -> None:
    assert observer.is_due()
    observer.see(shared, torch.tensor([0.5, 1.5]), torch.tensor(gramian))


def test_cosines_conflicts_and_weights_are_means_over_the_looks() -> None:
    observer = Observer(["a", "b"], 1)
    _see(observer, Shared((ONES, ONES)), [[4.0, 3.0], [3.0, 9.0]])
    _see(observer, Shared((ONES, ONES)), [[1.0, -0.2], [-0.2, 1.0]])
    assert observer.record() == {
        "looks": 2,
        "task_weight.a": 0.5,
        "task_weight.b": 1.5,
        "gradient_cosine.a.b": pytest.approx((0.5 - 0.2) / 2),
        "gradient_conflict.a.b": 0.5,
    }


def test_gates_are_told_by_mean_share_and_entropy() -> None:
    sharp = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    even = torch.full((2, 2), 0.5)
    observer = Observer(["a", "b"], 1)
    _see(observer, Shared((ONES, ONES), ((sharp, even),)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert found["gate.1.a"] == found["gate.1.b"] == [0.5, 0.5]
    assert found["gate_entropy.1.a"] == 0  # each row has one expert, though the mean is even
    assert found["gate_entropy.1.b"] == pytest.approx(1)


def test_load_and_dead_experts_are_told_where_every_gate_reads_all_experts() -> None:
    gates = torch.tensor([[0.995, 0.005, 0.0]]), torch.tensor([[0.5, 0.005, 0.495]])
    experts = tuple(torch.ones(1, 4) for _ in range(3))
    observer = Observer(["a", "b"], 1)
    _see(observer, Shared((ONES, ONES), (gates,), (experts,)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert found["expert_load.1"] == pytest.approx([0.7475, 0.005, 0.2475])
    assert found["dead_experts.1"] == 1  # the third is dead for task a only


def test_a_unit_is_dead_when_it_is_zero_in_all_rows_of_all_looks() -> None:
    first = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    second = torch.tensor([[0.0, 0.0, 3.0, 0.0]])
    observer = Observer(["a", "b"], 1)
    for expert in (first, second):
        _see(observer, Shared((ONES, ONES), (), ((expert,),)), [[1.0, 0.0], [0.0, 1.0]])
    assert observer.record() == {
        "looks": 2,
        "task_weight.a": 0.5,
        "task_weight.b": 1.5,
        "gradient_cosine.a.b": 0.0,
        "gradient_conflict.a.b": 0.0,
        "dead_units.1": [0.25],
    }


def test_looks_stand_in_the_middle_of_gaps_and_are_four_at_least() -> None:
    observer = Observer(["a", "b"], 3)
    observer.start_epoch(100)
    assert [observer.is_due() for _ in range(7)] == [False, True, False, False, True, False, False]
    rare = Observer(["a"], 100)
    rare.start_epoch(8)
    assert [rare.is_due() for _ in range(8)] == [False, True] * 4
    rare.start_epoch(3)
    assert all(rare.is_due() for _ in range(3))
    rare.start_epoch(8, taken=1)  # an epoch that goes on after a break
    assert [rare.is_due() for _ in range(3)] == [True, False, True]
    never = Observer(["a"], 0)
    never.start_epoch(8)
    assert not any(never.is_due() for _ in range(5))
    assert never.record() == {}


def test_a_task_may_be_named_like_the_shared_gate() -> None:
    even, sharp = torch.full((2, 2), 0.5), torch.eye(2)
    observer = Observer(["shared", "b"], 1)
    gates = (sharp, sharp, even)
    _see(observer, Shared((ONES, ONES), (gates,)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert (found["gate_entropy.1.shared"], found["gate_entropy_shared.1"]) == (0, pytest.approx(1))


def test_the_history_of_a_run_tells_them_by_task_and_level(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    sharing = PLE(2, num_shared_experts=2, num_task_experts=1, expert_dims=(4,))
    config = TrainConfig(batch_size=20, max_epochs=2, observe_every=2)
    trainer = Trainer(make_model(sharing=sharing), schema, config, seed=0, progress=False)
    history = trainer.fit(make_batch(100)).history
    for task in ("ctr", "rating", "genre"):
        for level in (1, 2):
            shares = history[f"gate.{level}.{task}"].to_list()
            assert [sum(epoch) for epoch in shares] == pytest.approx([1, 1])
            assert [len(epoch) for epoch in shares] == [3, 3]
            assert history[f"gate_entropy.{level}.{task}"].is_between(0, 1).all()
        assert history[f"task_weight.{task}"].to_list() == [1, 1]
    assert [len(epoch) for epoch in history["gate_shared.1"].to_list()] == [5, 5]
    assert "gate_shared.2" not in history.columns  # the last level has none
    assert history["gradient_cosine.ctr.rating"].is_between(-1, 1).all()
    assert not history["gradient_cosine.ctr.rating"].is_in([0.0]).any()
    assert [len(epoch) for epoch in history["dead_units.1"].to_list()] == [5, 5]


def test_looking_changes_no_weight(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    weights = []
    for every in (0, 1):
        model = make_model(dropout=0.3)
        config = TrainConfig(batch_size=20, max_epochs=1, observe_every=every, optimizer=SGD(0.1))
        torch.manual_seed(0)
        Trainer(model, schema, config, seed=0, progress=False).fit(make_batch(100))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_equal_gradients_have_cosine_one_and_opposite_ones_minus_one() -> None:
    observer = Observer(["a", "b", "c"], 1)
    assert observer.is_due()
    gradient = torch.tensor([3.0, -4.0])
    rows = torch.stack([gradient, gradient, -2 * gradient])
    observer.see(Shared((ONES,) * 3), torch.ones(3), rows @ rows.T)
    found = observer.record()
    assert found["gradient_cosine.a.b"] == pytest.approx(1)
    assert found["gradient_cosine.a.c"] == pytest.approx(-1)
    assert (found["gradient_conflict.a.b"], found["gradient_conflict.a.c"]) == (0, 1)
    assert math.isclose(found["gradient_cosine.b.c"], -1, rel_tol=1e-6)
