"""What holds for every optimizer of tables: state, resume, reset, duplicates, choice by kind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.training import (
    LazyAdam,
    RowWiseAdagrad,
    TableOptimizer,
    TableStepper,
    TrainConfig,
)

SPECS = [RowWiseAdagrad(), RowWiseAdagrad(l2=0.1), LazyAdam(), LazyAdam(l2=0.1)]
every_optimizer = pytest.mark.parametrize("spec", SPECS, ids=repr)


def _tables() -> list[EmbeddingTable]:
    """Draw a table of 40 rows of width 3 and one of 9 rows of width 2."""
    return [
        EmbeddingTable(["t"], [num_rows], [(0, "t")], [], dim)
        for num_rows, dim in ((40, 3), (9, 2))
    ]


def _touched(ids: Any) -> Touched:
    rows_K = torch.as_tensor(ids)
    return Touched(rows_K, torch.arange(rows_K.numel()), None)


def _run(stepper: TableStepper, *, seed: int, steps: int = 4) -> None:
    """Step on random rows below 30 of the first table and below 6 of the second."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        touched = [_touched(torch.randint(top, (20,), generator=draw)) for top in (30, 6)]
        gradients = [torch.randn(20, table.dim, generator=draw) for table in stepper.tables]
        stepper.step(touched, gradients, factor=0.5)


def _snapshot(stepper: TableStepper) -> dict[str, Tensor]:
    weights = {f"w{i}": table.weight_RD for i, table in enumerate(stepper.tables)}
    return {name: tensor.detach().clone() for name, tensor in (weights | stepper.state()).items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_the_state_is_named_by_number_of_table_and_name() -> None:
    shapes = {
        type(spec): {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in spec.build(_tables()).state().items()
        }
        for spec in SPECS
    }
    assert shapes[RowWiseAdagrad] == {
        "0.accumulator": ((40,), torch.float32),
        "1.accumulator": ((9,), torch.float32),
    }
    assert shapes[LazyAdam] == {
        "0.first": ((40, 3), torch.float32),
        "0.second": ((40, 3), torch.float32),
        "0.steps": ((40,), torch.int32),
        "1.first": ((9, 2), torch.float32),
        "1.second": ((9, 2), torch.float32),
        "1.steps": ((9,), torch.int32),
    }


@every_optimizer
def test_a_state_taken_before_a_step_shows_the_step(spec: TableOptimizer) -> None:
    stepper = spec.build(_tables())
    state = stepper.state()
    assert not any(tensor.any() for tensor in state.values())
    _run(stepper, seed=0)
    assert all(tensor.any() for tensor in state.values())
    assert _same(state, stepper.state())


@every_optimizer
def test_weights_and_state_continue_a_run_to_the_bit(spec: TableOptimizer) -> None:
    through = spec.build(_tables())
    _run(through, seed=1)
    kept = _snapshot(through)
    resumed = spec.build(_tables())
    _run(resumed, seed=7)  # a state of its own, which must go
    for number, table in enumerate(resumed.tables):
        table.weight_RD.data.copy_(kept[f"w{number}"])
    resumed.load_state(kept)
    assert _same(_snapshot(resumed), kept)
    for stepper in (through, resumed):
        _run(stepper, seed=2)
    assert _same(_snapshot(resumed), _snapshot(through))
    assert not _same(_snapshot(through), kept)


@every_optimizer
def test_a_reset_optimizer_steps_as_a_new_one(spec: TableOptimizer) -> None:
    stepper = spec.build(_tables())
    start = _snapshot(stepper)
    _run(stepper, seed=3)
    stepper.reset()
    assert not any(tensor.any() for tensor in stepper.state().values())
    assert not stepper.trained(0).any()
    drawn = _snapshot(stepper)
    assert not torch.equal(drawn["w0"], start["w0"])
    new = spec.build(_tables())
    for number, table in enumerate(new.tables):
        table.weight_RD.data.copy_(drawn[f"w{number}"])
    for one in (stepper, new):
        _run(one, seed=4)
    assert _same(_snapshot(stepper), _snapshot(new))


@every_optimizer
def test_untouched_rows_and_their_state_keep_every_bit(spec: TableOptimizer) -> None:
    stepper = spec.build(_tables())
    _run(stepper, seed=5)
    before = _snapshot(stepper)
    stepper.step([_touched([4, 29, 4]), _touched([2])], [torch.randn(3, 3), torch.randn(1, 2)])
    after = _snapshot(stepper)
    for name, hit in (("0", [4, 29]), ("1", [2])):
        for key in [f"w{name}", *(key for key in before if key.startswith(f"{name}."))]:
            changed = (after[key] != before[key]).reshape(len(before[key]), -1).any(dim=1)
            assert changed.nonzero().flatten().tolist() == hit, key


@every_optimizer
def test_a_table_that_no_row_of_a_batch_looks_up_is_left_alone(spec: TableOptimizer) -> None:
    stepper = spec.build(_tables())
    before = _snapshot(stepper)
    stepper.step([_touched([3]), _touched([])], [torch.ones(1, 3), torch.zeros(0, 2)])
    after = _snapshot(stepper)
    assert not torch.equal(after["w0"], before["w0"])
    assert all(
        torch.equal(after[key], before[key]) for key in before if key in "w1" or key[0] == "1"
    )


@every_optimizer
def test_duplicates_are_one_step_with_the_summed_gradient(spec: TableOptimizer) -> None:
    tables = _tables()
    once, twice = spec.build(tables), spec.build(_tables())
    for own, other in zip(tables, twice.tables, strict=True):
        other.weight_RD.data.copy_(own.weight_RD)
    nothing = _touched([]), torch.zeros(0, 2)
    gradient = torch.tensor([[1.0, 2.0, -4.0], [0.5, -1.0, 8.0], [0.25, 4.0, 2.0]])
    once.step(
        [_touched([5, 6]), nothing[0]],
        [torch.stack([gradient[[0, 2]].sum(0), gradient[1]]), nothing[1]],
    )
    twice.step([_touched([5, 6, 5]), nothing[0]], [gradient, nothing[1]])
    assert _same(_snapshot(once), _snapshot(twice))


@pytest.mark.parametrize("spec", [RowWiseAdagrad(), LazyAdam()], ids=repr)
def test_trained_rows_are_those_that_had_a_gradient(spec: TableOptimizer) -> None:
    stepper = spec.build(_tables())
    gradient = torch.tensor([[0.0, 0.0, 1e-6], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])
    stepper.step([_touched([7, 8, 9]), _touched([])], [gradient, torch.zeros(0, 2)])
    stepper.step([_touched([7, 8, 7]), _touched([])], [gradient * 0, torch.zeros(0, 2)])
    trained_R = stepper.trained(0)
    assert trained_R.dtype == torch.bool
    assert trained_R.shape == (40,)
    assert trained_R.nonzero().flatten().tolist() == [7, 9]
    assert not stepper.trained(1).any()


@every_optimizer
def test_json_gives_the_same_optimizer_back(spec: TableOptimizer) -> None:
    assert TableOptimizer.from_json(spec.to_json()) == spec
    config = TrainConfig(table_optimizer=spec)
    assert TrainConfig.from_json(config.to_json()) == config


def test_a_file_chooses_by_kind() -> None:
    chosen = {"kind": "lazy_adam", "learning_rate": 0.01, "beta2": 0.99}
    config = TrainConfig.from_dict({"table_optimizer": chosen})
    assert config.table_optimizer == LazyAdam(0.01, beta2=0.99)
    assert TrainConfig().table_optimizer == RowWiseAdagrad()
    with pytest.raises(SchemaError, match=r"one of \['lazy_adam', 'row_wise_adagrad'\].*'adam'"):
        TrainConfig.from_dict({"table_optimizer": {"kind": "adam"}})
