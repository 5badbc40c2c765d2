"""Which epoch's weights a training run keeps, and when it stops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import Batch
from recsys_mtl.errors import EncodingError
from recsys_mtl.metrics import Measurement, Report
from recsys_mtl.network import MultiTaskModel, RowTensors
from recsys_mtl.schema import Schema
from recsys_mtl.training import TrainConfig, Trainer

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]
Weights = dict[str, Tensor]


def _trainer(model: MultiTaskModel, schema: Schema, **settings: Any) -> Trainer:
    config = TrainConfig(**({"batch_size": 64, "max_epochs": 3} | settings))
    return Trainer(model, schema, config, seed=0, progress=False)


def _weights(model: MultiTaskModel) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("ctr.auc", [0.6, 0.8, 0.7], 2),
        ("ctr.auc", [0.8, 0.8, 0.7], 1),
        ("genre.accuracy", [0.6, 0.8, 0.7], 2),
        ("rating.rmse", [1.2, 0.9, 1.0], 2),
        ("ctr.log_loss", [0.4, 0.5, 0.6], 1),
        ("ctr.pcoc", [1.5, 0.9, 1.2], 2),
        ("ctr.pcoc", [0.5, 0.7, 1.1], 3),
        ("ctr.pcoc", [1.2, 0.1, 0.2], 1),
        ("loss", [2.0, 1.0, 1.5], 2),
    ],
)
def test_the_best_epochs_weights_are_kept_in_the_metrics_own_direction(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str,
    values: list[float],
    best: int,
) -> None:
    model, batch = make_model(), make_batch(60)
    trainer = _trainer(model, schema, monitor=monitor, patience=3)
    snapshots: list[Weights] = []
    task, _, metric = monitor.rpartition(".")

    def validate(*_: object) -> tuple[dict[str, float], Report]:
        value = values[len(snapshots)]
        snapshots.append(_weights(model))
        return {"valid_loss": value}, Report((Measurement(task, metric, value, 1),))

    monkeypatch.setattr(trainer, "_validate", validate)
    trained = trainer.fit(batch, batch)
    assert trained.best_epoch == best
    assert trained.report is not None
    assert trained.report.value(task, metric) == pytest.approx(values[best - 1])
    assert len(snapshots) == trained.history.height == 3
    assert [_same(_weights(model), one) for one in snapshots] == [k == best for k in (1, 2, 3)]


def test_an_undefined_monitor_chooses_nothing(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = make_model(), make_batch(60)
    trainer = _trainer(model, schema, monitor="ctr.auc", patience=3)
    report = Report((Measurement("ctr", "auc", math.nan, 60),))
    monkeypatch.setattr(trainer, "_validate", lambda *_: ({"valid_loss": 1.0}, report))
    with pytest.raises(EncodingError, match=r"'ctr.auc' must be defined on valid"):
        trainer.fit(batch, batch)


@pytest.mark.parametrize(
    "monitor", ["loss", "ctr.auc", "ctr.log_loss", "ctr.pcoc", "rating.rmse", "genre.accuracy"]
)
def test_the_final_model_measures_as_well_as_the_best_epoch_of_the_history(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, monitor: str
) -> None:
    """Validation labels are turned around: what is learned makes it worse."""
    train, valid, model = make_batch(400), make_batch(200, seed=1, flip=True), make_model()
    model.learn_outputs(train)
    trainer = _trainer(model, schema, monitor=monitor, max_epochs=5, patience=5)
    trained = trainer.fit(train, valid)
    column = trained.history["valid_loss" if monitor == "loss" else f"valid.{monitor}"].to_list()
    pick = {"auc": max, "accuracy": max}.get(monitor.rpartition(".")[2], min)
    off = [abs(value - 1) for value in column] if monitor == "ctr.pcoc" else column
    best = pick(off)
    assert trained.best_epoch == off.index(best) + 1
    assert len(set(column)) > 1
    if monitor in {"loss", "ctr.auc", "ctr.log_loss", "rating.rmse"}:
        assert trained.best_epoch < 5  # else the last epoch's weights would do
    measured, report = trainer._validate(0, valid, RowTensors(valid, CPU))
    if monitor == "loss":
        assert measured["valid_loss"] == best
    else:
        task, _, metric = monitor.rpartition(".")
        assert report.value(task, metric) == column[trained.best_epoch - 1]
    assert report == trained.report


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        ([1, 2, 3, 4, 5], 1, 2),
        ([1, 2, 3, 4, 5], 2, 3),
        ([3, 4, 2, 3, 4], 2, 5),
        ([5, 4, 3, 2, 1], 1, 5),
        ([1, 1, 1, 1, 1], 3, 4),
    ],
)
def test_training_stops_after_patience_epochs_without_a_better_one(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    patience: int,
    epochs: int,
) -> None:
    trainer = _trainer(make_model(), schema, max_epochs=5, patience=patience)
    script = iter(losses)
    monkeypatch.setattr(
        trainer, "_validate", lambda *_: ({"valid_loss": float(next(script))}, Report(()))
    )
    batch = make_batch(30)
    assert trainer.fit(batch, batch).history["epoch"].to_list() == list(range(1, epochs + 1))


def test_without_validation_rows_the_last_epochs_weights_stay(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model = make_model()
    trainer = _trainer(model, schema, max_epochs=4, patience=1, average=None)
    last: list[Weights] = []
    finish = trainer._finish_tables
    trainer._finish_tables = lambda: (finish(), last.append(_weights(model)))[0]  # type: ignore[method-assign]
    trained = trainer.fit(make_batch(60))
    assert trained.best_epoch == trained.history.height == len(last) == 4
    assert trained.report is None
    assert _same(_weights(model), last[-1])
    assert not _same(_weights(model), last[-2])
