"""What the history says of gates, experts and gradients, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from recsys_mtl.encoding import Batch
from recsys_mtl.network import PLE, MultiTaskModel, Roster, Shared
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
    assert found["gate_mean_entropy.1.a"] == found["gate_mean_entropy.1.b"] == pytest.approx(1)
    assert (found["gate_max_share.1.a"], found["gate_max_share.1.b"]) == (1, 0.5)


def test_the_mean_gate_is_that_of_all_looks_before_its_entropy_is_taken() -> None:
    observer = Observer(["a"], 1)
    for gate in ([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [[0.0, 0.1, 0.9]]):
        assert observer.is_due()
        shared = Shared((ONES,), ((torch.tensor(gate),),))
        observer.see(shared, torch.ones(1), torch.ones(1, 1))
    found = observer.record()
    mean = [(0.6 + 0.0) / 2, (0.35 + 0.1) / 2, (0.05 + 0.9) / 2]
    assert found["gate.1.a"] == pytest.approx(mean)
    assert found["gate_mean_entropy.1.a"] == pytest.approx(entropy(mean, base=3))
    assert found["gate_max_share.1.a"] == pytest.approx(((0.7 + 0.5) / 2 + 0.9) / 2)


def test_a_gate_over_one_expert_has_no_entropy() -> None:
    observer = Observer(["a", "b"], 1)
    gate = torch.ones(3, 1)
    _see(observer, Shared((ONES, ONES), ((gate, gate),)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert (found["gate_entropy.1.a"], found["gate_mean_entropy.1.a"]) == (0, 0)
    assert found["gate_max_share.1.a"] == 1


def test_load_and_dead_experts_are_told_where_every_gate_reads_all_experts() -> None:
    gates = torch.tensor([[0.995, 0.005, 0.0]]), torch.tensor([[0.5, 0.005, 0.495]])
    experts = tuple(torch.ones(1, 4) for _ in range(3))
    observer = Observer(["a", "b"], 1)
    _see(observer, Shared((ONES, ONES), (gates,), (experts,)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert found["expert_load.1"] == pytest.approx([0.7475, 0.005, 0.2475])
    assert found["dead_experts.1"] == 1  # the third is dead for task a only
    assert found["experts.1"] == ["1", "2", "3"]
    apart = jensenshannon(gates[0][0], gates[1][0], base=2)
    assert found["gate_distance.1.a.b"] == pytest.approx(apart, rel=1e-5)


OWN_AND_SHARED = Roster(("a 1", "a 2", "b 1", "shared 1"), ((0, 1, 3), (2, 3), (0, 1, 2, 3)))


def _subsets(roster: Roster) -> Shared:
    """Each task's gate mixes its own experts and a shared one; a third gate mixes all."""
    gates = (
        torch.tensor([[0.004, 0.5, 0.496], [0.002, 0.9, 0.098]]),
        torch.tensor([[0.001, 0.999], [0.003, 0.997]]),
        torch.tensor([[0.005, 0.0, 0.2, 0.795], [0.005, 0.1, 0.4, 0.495]]),
    )
    experts = tuple(torch.ones(2, 4) for _ in range(4))
    return Shared((ONES, ONES), (gates,), (experts,), rosters=(roster,))


def test_an_experts_load_is_read_from_the_columns_of_the_gates_that_mix_it() -> None:
    observer = Observer(["a", "b"], 1)
    _see(observer, _subsets(OWN_AND_SHARED), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    a, b = [0.003, 0.7, 0.0, 0.297], [0.0, 0.0, 0.002, 0.998]
    between = [0.005, 0.05, 0.3, 0.645]
    loads = [sum(column) / 3 for column in zip(a, b, between, strict=True)]
    assert found["experts.1"] == ["a 1", "a 2", "b 1", "shared 1"]
    assert found["expert_load.1"] == pytest.approx(loads)
    assert sum(found["expert_load.1"]) == pytest.approx(1)
    assert found["dead_experts.1"] == 1  # b's own is dead for b, but not for the gate over all
    assert found["gate_distance.1.a.b"] == pytest.approx(jensenshannon(a, b, base=2))


def test_tasks_without_a_common_expert_are_one_apart_and_equal_gates_zero() -> None:
    half = torch.full((1, 2), 0.5)
    experts = tuple(torch.ones(1, 4) for _ in range(4))
    for reads, apart in ((((0, 1), (2, 3)), 1.0), (((0, 1), (0, 1)), 0.0)):
        observer = Observer(["a", "b"], 1)
        roster = Roster(("1", "2", "3", "4"), reads)
        shared = Shared((ONES, ONES), ((half, half),), (experts,), rosters=(roster,))
        _see(observer, shared, [[1.0, 0.0], [0.0, 1.0]])
        assert observer.record()["gate_distance.1.a.b"] == apart


def test_an_expert_read_past_the_gates_is_never_dead() -> None:
    observer = Observer(["a", "b"], 1)
    roster = Roster(OWN_AND_SHARED.names, OWN_AND_SHARED.reads, bypassing=(0, 1, 2))
    _see(observer, _subsets(roster), [[1.0, 0.0], [0.0, 1.0]])
    assert observer.record()["dead_experts.1"] == 0


def test_no_load_is_told_where_columns_of_gates_are_not_known() -> None:
    gates = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]])
    experts = tuple(torch.ones(1, 4) for _ in range(3))
    observer = Observer(["a", "b"], 1)
    _see(observer, Shared((ONES, ONES), (gates,), (experts,)), [[1.0, 0.0], [0.0, 1.0]])
    found = observer.record()
    assert found["dead_units.1"] == [0, 0, 0]
    assert not any(name.startswith(("expert_load", "dead_experts", "experts")) for name in found)


def test_what_was_seen_before_a_break_is_told_after_it() -> None:
    seen, fresh = Observer(["a", "b"], 1), Observer(["a", "b"], 1)
    _see(seen, _subsets(OWN_AND_SHARED), [[4.0, 3.0], [3.0, 9.0]])
    counts, tensors = seen.state()
    fresh.load_state(json.loads(json.dumps(counts)), tensors)
    assert fresh.record() == seen.record() != {}


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
        "expert_norm.1": [pytest.approx(((1.0 + 2.0) / 2 + 3.0) / 2)],
    }


def test_looks_stand_in_the_middle_of_gaps() -> None:
    observer = Observer(["a", "b"], 3)
    observer.start_epoch(100)
    assert [observer.is_due() for _ in range(7)] == [False, True, False, False, True, False, False]
    observer.start_epoch(100, taken=1)  # an epoch that goes on after a break
    assert [observer.is_due() for _ in range(3)] == [True, False, False]
    never = Observer(["a"], 0)
    never.start_epoch(8)
    assert not any(never.is_due() for _ in range(5))
    assert never.record() == {}


@pytest.mark.parametrize(
    ("num_steps", "looks"), [(1, 1), (3, 1), (15, 1), (32, 2), (64, 4), (200, 4), (1000, 10)]
)
def test_an_epoch_has_a_look_and_four_where_they_cost_little(num_steps: int, looks: int) -> None:
    observer = Observer(["a"], 100)
    observer.start_epoch(num_steps)
    assert sum(observer.is_due() for _ in range(num_steps)) == looks


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
    names = ["ctr #1", "rating #1", "genre #1", "shared #1", "shared #2"]
    for level in (1, 2):
        assert history[f"experts.{level}"].to_list() == [names, names]
        loads = history[f"expert_load.{level}"].to_list()
        assert [sum(epoch) for epoch in loads] == pytest.approx([1, 1])
        assert history[f"dead_experts.{level}"].is_between(0, 5).all()
        assert history[f"gate_distance.{level}.ctr.rating"].is_between(0, 1, closed="none").all()
        assert (history[f"expert_norm.{level}"].list.min() > 0).all()
    own, *_ = history["expert_load.2"].to_list()[0]  # no other gate of the last level mixes it
    assert own == pytest.approx(history["gate.2.ctr"].to_list()[0][0] / 3)


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
