"""Learning rates over a run, the bound on gradients, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from recsys_mtl.encoding import Batch
from recsys_mtl.network import MultiTaskModel, RowTensors
from recsys_mtl.schema import Schema
from recsys_mtl.training import SGD, Adam, RowWiseAdagrad, Schedule, TrainConfig, Trainer
from recsys_mtl.training.losses import TaskLosses

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]
CPU = torch.device("cpu")


def _trainer(model: MultiTaskModel, schema: Schema, **settings: Any) -> Trainer:
    config = TrainConfig(**{"batch_size": 20, "max_epochs": 2} | settings)
    return Trainer(model, schema, config, seed=0, progress=False)


def test_rates_rise_then_fall_to_the_floor() -> None:
    cosine = Schedule(warmup_steps=4, decay="cosine", floor=0.1)
    found = [cosine.factor(step, 12) for step in range(13)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 8)) / 2 for n in range(9)]
    assert found[4:] == pytest.approx(expected)
    linear = Schedule(decay="linear")
    assert [linear.factor(step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert Schedule().factor(10**9, 1) == 1


def test_a_cosine_is_that_of_torch() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    twin = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.2)
    schedule = Schedule(decay="cosine", floor=0.2)
    for step in range(10):
        assert schedule.factor(step, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        twin.step()


def test_layers_and_tables_move_by_the_scheduled_share(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """In the first of four steps of warm-up a quarter of the step is taken, everywhere."""
    moved = []
    for schedule in (Schedule(), Schedule(warmup_steps=4)):
        model, batch = make_model().double(), make_batch(20)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = _trainer(
            model,
            schema,
            schedule=schedule,
            optimizer=SGD(0.1),
            table_optimizer=RowWiseAdagrad(0.1),
        )
        rows = RowTensors(batch, CPU)
        everything = torch.arange(20)
        factor = trainer.config.schedule.factor(0, 10)
        trainer.stepper.take([(rows.take(everything), rows.targets(everything))], factor=factor)
        after = model.state_dict()
        moved.append({name: after[name] - before[name] for name in before})
    assert moved[0]["features.embeddings.tables.0.weight_RD"].any()
    for name, whole in moved[0].items():
        torch.testing.assert_close(moved[1][name], whole / 4, rtol=1e-9, atol=1e-12)


def test_a_run_without_a_schedule_keeps_its_rates_and_one_with_a_decay_ends_at_rest(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    rates = {}
    for decay in ("none", "linear"):
        chosen = {"schedule": Schedule(decay=decay), "optimizer": Adam(1e-3)}
        trainer = _trainer(make_model(), schema, **chosen)
        trainer.fit(make_batch(100))
        rates[decay] = trainer.stepper.optimizers[0].param_groups[0]["lr"]
    assert rates == {"none": 1e-3, "linear": pytest.approx(1e-3 / 10)}  # the last of ten steps


def test_a_schedule_counts_the_steps_of_epochs_of_different_batches(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """100 rows are 5 batches of 20, then 2 of 50 in each later epoch; two batches make a step."""
    schedule = Schedule(decay="linear")
    for accumulate, num_steps in ((1, 9), (2, 5)):
        sizes = {"batch_size": (20, 50), "max_epochs": 3, "accumulate": accumulate}
        trainer = _trainer(make_model(), schema, schedule=schedule, **sizes)
        factors = _factors(trainer)
        trainer.fit(make_batch(100))
        assert factors == [schedule.factor(step, num_steps) for step in range(num_steps)]


def _factors(trainer: Trainer) -> list[float]:
    """Return the list that the factor of each step will be added to."""
    take, factors = trainer.stepper.take, list[float]()

    def watched(*arguments: Any, **named: Any) -> TaskLosses:
        factors.append(named["factor"])
        return take(*arguments, **named)

    trainer.stepper.take = watched  # type: ignore[method-assign]
    return factors


def test_a_bound_scales_the_gradient_of_all_layers_together(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    norms = {}
    for bound in (None, 1e-3):
        model, batch = make_model(), make_batch(20)
        trainer = _trainer(model, schema, clip_norm=bound, optimizer=SGD(1e-30))
        rows = RowTensors(batch, CPU)
        everything = torch.arange(20)
        trainer.stepper.take([(rows.take(everything), rows.targets(everything))])
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms[bound] = float(torch.cat(gradients).norm())
    assert norms[None] > 0.1
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_the_running_mean_is_what_is_kept(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """Against a loop over the weights after each step."""
    model = make_model()
    dense = [name for name, value in model.named_parameters() if value.requires_grad]
    means = {name: model.get_parameter(name).detach().clone() for name in dense}
    trainer = _trainer(model, schema, average=0.8, optimizer=Adam(0.01))
    take = trainer.stepper.take
    steps: list[float] = []

    def watched(*arguments: Any, **named: Any) -> TaskLosses:
        losses = take(*arguments, **named)
        decay = min(0.8, (1 + len(steps)) / (10 + len(steps)))
        steps.append(decay)
        for name in dense:
            now = model.get_parameter(name).detach()
            means[name] = decay * means[name] + (1 - decay) * now
        return losses

    trainer.stepper.take = watched  # type: ignore[method-assign]
    trainer.fit(make_batch(100))
    assert steps
    for name in dense:
        torch.testing.assert_close(model.get_parameter(name).detach(), means[name])


def test_validation_measures_the_running_mean(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    from recsys_mtl.training import evaluate_rows

    batch, model = make_batch(100), make_model()
    trained = _trainer(model, schema, average=0.99, max_epochs=1).fit(batch, batch)
    assert trained.report == evaluate_rows(model, schema, batch, RowTensors(batch, CPU))


def test_half_precision_learns_as_single_does_and_scores_in_single(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    train, test = make_batch(2000), make_batch(1000, seed=1)
    found = {}
    for precision in ("float32", "bfloat16"):
        model = make_model()
        trainer = _trainer(model, schema, precision=precision, max_epochs=6, optimizer=Adam(0.01))
        report = trainer.fit(train, test).report
        assert report is not None
        found[precision] = report.value("ctr", "auc")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found["float32"] > 0.85
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.02)
