"""A step: what is added up over batches, and what runs on another device."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from recsys_mtl.encoding import Batch, Encoder
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    ESCM2,
    ESMM,
    PLE,
    Heads,
    Inputs,
    MMoE,
    MultiTaskModel,
    RowTensors,
    Towers,
)
from recsys_mtl.schema import Binary, Categorical, Multiclass, Schema
from recsys_mtl.training import SGD, RowWiseAdagrad, TrainConfig, Trainer, Uncertainty

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]
CPU = torch.device("cpu")


def _trainer(model: MultiTaskModel, schema: Schema, **settings: Any) -> Trainer:
    config = TrainConfig(**{"observe_every": 0} | settings)
    return Trainer(model.train(), schema, config, seed=0, progress=False)


@pytest.mark.parametrize("cuts", [(0, 60), (0, 20, 40, 60), (0, 1, 59, 60)])
def test_batches_of_one_step_count_as_one_batch(
    cuts: tuple[int, ...], schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """Ratings are observed in half of the rows, unevenly: each observed row counts alike."""
    batch = make_batch(60)
    plain = {"optimizer": SGD(0.5), "table_optimizer": RowWiseAdagrad(0.1)}
    found = []
    for edges in ((0, 60), cuts):
        model = make_model().double()
        model.learn_outputs(batch)
        rows = RowTensors(batch, CPU)
        trainer = _trainer(model, schema, **plain)
        spans = [torch.arange(a, b) for a, b in itertools.pairwise(edges)]
        losses = trainer.stepper.take([(rows.take(one), rows.targets(one)) for one in spans])
        found.append((losses, model.state_dict()))
    (one, weights), (other, others) = found
    torch.testing.assert_close(other.means_T, one.means_T, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.totals_T, one.totals_T)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("heads", [ESMM(), ESCM2(), Towers()])
def test_losses_count_by_what_they_are_divided_by(heads: Heads) -> None:
    """No clicks in the first half, and classes of unlike weights: halves differ in all that counts."""
    tasks = (
        Binary("ctr", label="click"),
        Binary("cvr", label="buy", within="ctr"),
        Multiclass("kind", label="kind", num_classes=3, class_weights=(1.0, 5.0, 20.0)),
    )
    click = [0] * 8 + [1, 0, 1, 1, 0, 1, 0, 1]
    table = pl.DataFrame(
        {
            "hour": [n % 5 for n in range(16)],
            "click": click,
            "buy": [one * (n % 2) for n, one in enumerate(click)],
            "kind": [n // 6 for n in range(16)],
        }
    )
    schema = Schema(context=[Categorical("hour")], tasks=tasks)
    encoder = Encoder(schema)
    rows = RowTensors(encoder.fit_encode(table), CPU)
    found = []
    for parts in ([torch.arange(16)], list(torch.arange(16).split(8))):
        torch.manual_seed(0)
        sharing = MMoE(2, expert_dims=(8,))
        model = MultiTaskModel(encoder.layout, tasks, sharing=sharing, heads=heads, embedding_dim=4)
        stepper = _trainer(model, schema, optimizer=SGD(1e-30)).stepper
        stepper.take([(rows.take(one), rows.targets(one)) for one in parts])
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_without_rows_is_not_looked_at(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    trainer = _trainer(make_model(), schema, observe_every=1)
    rows, none = RowTensors(make_batch(20), CPU), torch.arange(0)
    trainer.stepper.observer.start_epoch(1)
    trainer.stepper.take([(rows.take(none), rows.targets(none))])
    assert trainer.stepper.observer.record() == {}


def test_an_epoch_of_accumulated_batches_has_fewer_steps(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    trainer = _trainer(make_model(), schema, batch_size=10, accumulate=4, max_epochs=1)
    trainer.fit(make_batch(95))  # ten batches: 4 + 4 + 2
    state = trainer.stepper.optimizers[0].state_dict()["state"]
    assert {int(one["step"]) for one in state.values()} == {3}


def test_a_balance_that_reads_the_whole_batch_refuses_to_accumulate(
    schema: Schema, make_model: MakeModel
) -> None:
    with pytest.raises(SchemaError, match=r"accumulate=2 needs balance 'fixed': 'uncertainty'"):
        _trainer(make_model(), schema, accumulate=2, balance=Uncertainty())


class _Reads(TorchDispatchMode):
    """Count how often the host asks for the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_the_host_never_waits_for_a_number_of_a_step(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """On a GPU every such number would stop the queue."""
    rows = RowTensors(make_batch(40), CPU)
    trainer = _trainer(make_model(dropout=0.2), schema)
    everything = torch.arange(40)
    inputs, targets = rows.take(everything), rows.targets(everything)
    trainer.stepper.take([(inputs, targets)])  # the first step makes the optimizer's state
    with _Reads() as reads:
        trainer.stepper.take([(inputs, targets)])
        assert reads.count == 0
        float(targets.labels_BT.sum())
    assert reads.count == 1


@contextmanager
def _second_device() -> Iterator[torch.device]:
    """Offer a device whose tensors have shapes only; to mix it with the CPU is an error."""
    no_autocast = mock.patch.object(
        torch, "is_autocast_enabled", return_value=False
    )  # meta has none
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), no_autocast:
        yield torch.device("meta")


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change all tensors of a dataclass."""
    fields = dataclasses.fields(value)
    found = {field.name: getattr(value, field.name) for field in fields}
    return dataclasses.replace(
        value, **{name: change(one) for name, one in found.items() if isinstance(one, Tensor)}
    )


def _move(module: nn.Module, device: torch.device) -> None:
    """Do what `module.to` does, which fake tensors do not allow."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, value in kept.items():
                if value is None:
                    continue
                moved = _like(value, device)
                if isinstance(value, nn.Parameter):
                    moved = nn.Parameter(moved, requires_grad=value.requires_grad)
                kept[name] = moved


@pytest.mark.parametrize("sharing", [MMoE(expert_dims=(8,)), PLE(expert_dims=(8,))])
def test_every_tensor_of_a_step_is_on_the_models_device(
    sharing: Any, schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    rows, model = RowTensors(make_batch(40), CPU), make_model(sharing=sharing, dropout=0.2)
    everything = torch.arange(40)
    inputs, targets = rows.take(everything), rows.targets(everything)
    with _second_device() as device:
        _move(model, device)
        on_device = functools.partial(_like, device=device)
        lists = tuple(_each(one, on_device) for one in inputs.lists)
        moved = Inputs(on_device(inputs.ids_BF), lists, on_device(inputs.dense_BN))
        trainer = _trainer(model, schema, clip_norm=1.0, average=0.9)
        # fused optimizers have no kernels for it
        trainer.stepper.optimizers = [torch.optim.Adam(trainer.stepper.dense)]
        losses = trainer.stepper.take([(moved, _each(targets, on_device))])
        assert losses.means_T.device.type == device.type
        gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert {one.device.type for one in gradients} == {device.type}


def test_rows_are_taken_on_their_device(make_batch: MakeBatch) -> None:
    with _second_device() as device:
        rows = RowTensors(make_batch(40), device)
        everything = torch.arange(40, device=device)
        inputs, targets = rows.take(everything), rows.targets(everything)
        tensors = [inputs.ids_BF, inputs.dense_BN, targets.labels_BT, targets.weights_BT]
        for one in inputs.lists:
            tensors += [one.values_M, one.offsets_B, one.weights_M, one.lengths_B]
        assert {tensor.device.type for tensor in tensors} == {device.type}


def test_a_tensor_left_on_the_cpu_would_be_seen() -> None:
    with _second_device() as device:
        one = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="same device"):
            one + torch.ones(3)
