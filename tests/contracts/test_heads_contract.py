"""The law of all heads; a new file in `network/heads` is picked up by itself."""

import copy
from collections.abc import Sequence

import polars as pl
import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.network.heads import ESCM2, Headed, Heads, HeadsModule, logit_slices
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary, Multiclass, Regression, Task
from recsys_mtl.spec import Spec

WIDTH = 6
KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Heads))
SPECS = [*(Heads.from_dict({"kind": kind}) for kind in KINDS), ESCM2("dr")]
NAMES = [*KINDS, "escm2-dr"]
MIXED = (
    Binary("cvr", label="buy", within="ctr"),  # before the task that it is within
    Binary("ctr", label="click"),
    Multiclass("genre", label="genre", num_classes=3, parents=("rating",)),
    Regression("rating", label="rating", within="ctr"),
)
CHAIN = (
    Binary("ctr", label="click"),
    Binary("cart", label="cart", within="ctr"),
    Binary("cvr", label="buy", within="cart", joint="ctcvr"),
    Binary("buys", label="buy", parents=("ctr",)),
)
BINNED = (
    Binary("ctr", label="click"),
    Regression("rating", label="rating", loss="bins", num_bins=5, bounds=(0, 2), parents=("ctr",)),
    Binary("cvr", label="buy", within="ctr"),
    Binary("like", label="like", parents=("rating",)),
)
MIXES = {"mixed": MIXED, "chain": CHAIN, "bins": BINNED}

heads = pytest.mark.parametrize("spec", SPECS, ids=NAMES)
mixes = pytest.mark.parametrize("tasks", MIXES.values(), ids=MIXES)


def _module(spec: Heads, tasks: Sequence[Task], *, seed: int = 0) -> HeadsModule:
    torch.manual_seed(seed)
    return spec.build(WIDTH, tasks)


def _representations(num_tasks: int, num_rows: int, *, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(num_tasks, num_rows, WIDTH, generator=generator))


def _targets(tasks: Sequence[Task], num_rows: int) -> Targets:
    """Label rows at random, some labels missing, as the encoder does."""
    generator = torch.Generator().manual_seed(2)
    columns = {}
    for task in tasks:
        highest = {"multiclass": 3}.get(task.kind or "", 2)
        values = torch.randint(highest, (num_rows,), generator=generator)
        missing = torch.rand(num_rows, generator=generator) < 0.1
        columns[task.label] = [
            None if lost else int(value) for value, lost in zip(values, missing, strict=True)
        ]
    labels, states, weights = read_labels(pl.DataFrame(columns), tasks)
    states_BT = torch.from_numpy(states)
    return Targets(
        torch.from_numpy(labels),
        torch.from_numpy(weights).where(states_BT == OBSERVED, 0),
        states_BT,
    )


def _loss(module: HeadsModule, headed: Headed, targets: Targets, tasks: Sequence[Task]) -> Tensor:
    """Sum the tasks' losses and the penalty, as training does."""
    total = headed.logits_BZ.new_zeros(())
    for number, part in enumerate(logit_slices(tasks)):
        rows = module.row_losses(number, headed, targets)
        assert module.defines_loss(number) == (rows is not None)
        if rows is None:
            logits = headed.logits_BZ[:, part]
            losses_B = (logits - targets.labels_BT[:, number : number + 1]).square().mean(dim=1)
            weights_B = targets.weights_BT[:, number]
        else:
            losses_B, weights_B = rows.losses_B, rows.weights_B
        assert losses_B.shape == weights_B.shape == (len(headed.logits_BZ),)
        assert (weights_B >= 0).all()
        total = total + (losses_B * weights_B).sum() / weights_B.sum().clamp_min(1e-9)
    penalty = module.penalty(headed, targets)
    return total if penalty is None else total + penalty


def test_the_known_kinds_are_found() -> None:
    assert {"aitm", "dbmtl", "escm2", "esmm", "serial", "towers"} <= set(KINDS)


@heads
def test_json_and_copies_give_the_same_spec_back(spec: Heads) -> None:
    assert Heads.from_json(spec.to_json()) == spec
    assert copy.deepcopy(spec) == spec
    assert clone(spec, safe=False) == spec


@mixes
@pytest.mark.parametrize("num_rows", [0, 1, 7])
@heads
def test_every_number_of_rows_has_finite_logits_loss_and_gradients(
    spec: Heads, num_rows: int, tasks: tuple[Task, ...]
) -> None:
    module = _module(spec, tasks)
    inputs = [x_BH.requires_grad_() for x_BH in _representations(len(tasks), num_rows)]
    headed = module(tuple(inputs))
    assert headed.logits_BZ.shape == (num_rows, sum(task.num_logits for task in tasks))
    assert headed.logits_BZ.isfinite().all()
    loss = _loss(module, headed, _targets(tasks, num_rows), tasks)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    gradients = [x.grad for x in (*inputs, *module.parameters()) if x.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@mixes
@heads
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(
    spec: Heads, tasks: tuple[Task, ...]
) -> None:
    module = _module(spec, tasks)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    targets = _targets(tasks, 64)
    for _ in range(2):
        optimizer.zero_grad()
        _loss(module, module(_representations(len(tasks), 64)), targets, tasks).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@mixes
@heads
def test_float64_gives_float64_close_to_float32(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(spec, tasks)
    inputs, targets = _representations(len(tasks), 7), _targets(tasks, 7)
    single = module(inputs)
    wide = copy.deepcopy(module).double()
    double = wide(tuple(x_BH.double() for x_BH in inputs))
    assert double.logits_BZ.dtype == torch.float64
    torch.testing.assert_close(single.logits_BZ.double(), double.logits_BZ, rtol=0, atol=1e-5)
    narrow_loss = _loss(module, single, targets, tasks)
    wide_loss = _loss(wide, double, targets, tasks)
    assert wide_loss.dtype == torch.float64
    torch.testing.assert_close(narrow_loss.double(), wide_loss, rtol=1e-5, atol=1e-5)


@mixes
@heads
def test_bfloat16_autocast_stays_near_float32(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(spec, tasks)
    inputs, targets = _representations(len(tasks), 64), _targets(tasks, 64)
    exact = _loss(module, module(inputs), targets, tasks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        headed = module(inputs)
        assert headed.logits_BZ.isfinite().all()
        loss = _loss(module, headed, targets, tasks)
    loss.backward()
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@mixes
@heads
def test_rows_do_not_depend_on_their_batch(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(spec, tasks).double().eval()
    inputs = tuple(x_BH.double() for x_BH in _representations(len(tasks), 7))
    whole = module(inputs).logits_BZ
    for row in range(7):
        alone = module(tuple(x_BH[row : row + 1] for x_BH in inputs)).logits_BZ
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-12)


@mixes
@heads
def test_logits_start_where_they_are_set(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(spec, tasks)
    bias_Z = torch.linspace(-3, 2, sum(task.num_logits for task in tasks))
    module.set_bias(bias_Z)
    # zeros in: nothing but the biases comes out
    found = module(tuple(torch.zeros(len(tasks), 2, WIDTH))).logits_BZ
    torch.testing.assert_close(found, bias_Z.expand_as(found), rtol=0, atol=0)


@mixes
@heads
def test_all_that_is_one_tasks_own_is_in_its_tower_and_nowhere_else(
    spec: Heads, tasks: tuple[Task, ...]
) -> None:
    module = _module(spec, tasks)
    assert len(module.towers) == len(tasks)
    own = [id(parameter) for tower in module.towers for parameter in tower.parameters()]
    assert len(own) == len(set(own))
    assert all(list(tower.parameters()) for tower in module.towers)


@mixes
@heads
def test_the_order_of_tasks_moves_logits_and_losses_and_changes_none(
    spec: Heads, tasks: tuple[Task, ...]
) -> None:
    """Towers carried over to another order give each task what it had."""
    order = [2, 3, 0, 1]
    shuffled = [tasks[source] for source in order]
    module, moved = _module(spec, tasks).double(), _module(spec, shuffled, seed=9).double()
    for place, source in enumerate(order):
        moved.towers[place].load_state_dict(module.towers[source].state_dict())
    inputs = tuple(x_BH.double() for x_BH in _representations(4, 16))
    targets = _targets(tasks, 16)
    moved_targets = Targets(
        targets.labels_BT[:, order], targets.weights_BT[:, order], targets.states_BT[:, order]
    )
    before, after = module(inputs), moved(tuple(inputs[source] for source in order))
    parts, moved_parts = logit_slices(tasks), logit_slices(shuffled)
    for place, source in enumerate(order):
        assert torch.equal(
            after.logits_BZ[:, moved_parts[place]], before.logits_BZ[:, parts[source]]
        )
        one = module.row_losses(source, before, targets)
        other = moved.row_losses(place, after, moved_targets)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.losses_B, other.losses_B)
            assert torch.equal(one.weights_B, other.weights_B)
    torch.testing.assert_close(
        _loss(module, before, targets, tasks), _loss(moved, after, moved_targets, shuffled)
    )


@mixes
@heads
def test_the_seed_alone_decides_the_weights(spec: Heads, tasks: tuple[Task, ...]) -> None:
    first, again, other = (_module(spec, tasks, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@mixes
@heads
def test_a_state_dict_carries_the_whole_module(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module, fresh = _module(spec, tasks), _module(spec, tasks, seed=9)
    fresh.load_state_dict(module.state_dict())
    inputs = _representations(len(tasks), 7)
    assert torch.equal(module(inputs).logits_BZ, fresh(inputs).logits_BZ)


@mixes
@heads
def test_dropout_acts_in_training_only(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(Heads.from_dict(spec.to_dict() | {"dropout": 0.5}), tasks)
    inputs = _representations(len(tasks), 7)
    assert not torch.equal(module(inputs).logits_BZ, module(inputs).logits_BZ)
    module.eval()
    assert torch.equal(module(inputs).logits_BZ, module(inputs).logits_BZ)


@mixes
@heads
def test_forward_leaves_nothing_on_the_module(spec: Heads, tasks: tuple[Task, ...]) -> None:
    module = _module(spec, tasks)

    def attributes() -> dict[tuple[str, str], int]:
        return {
            (name, key): id(value)
            for name, part in module.named_modules()
            for key, value in {**vars(part), **part._parameters, **part._buffers}.items()
        }

    before = attributes()
    _loss(module, module(_representations(len(tasks), 7)), _targets(tasks, 7), tasks)
    assert attributes() == before
