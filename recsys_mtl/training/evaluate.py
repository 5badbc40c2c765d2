"""Losses and metrics of a model on encoded rows with labels."""

from __future__ import annotations

import math

import polars as pl
import torch
from torch import Tensor

from recsys_mtl.encoding import OBSERVED, Batch, absent_notes
from recsys_mtl.metrics import Measurement, Report, auc, measure_task, multiclass_accuracy, r2
from recsys_mtl.network import MultiTaskModel, RowTensors, predict_logits, score_rows
from recsys_mtl.schema import Schema
from recsys_mtl.training.losses import task_losses


def evaluate_rows(model: MultiTaskModel, schema: Schema, batch: Batch, rows: RowTensors) -> Report:
    """Measure every task on its observed rows; grouped metrics are grouped by user."""
    return evaluate_logits(model, schema, batch, predict_logits(model, rows))


@torch.inference_mode()
def evaluate_logits(
    model: MultiTaskModel, schema: Schema, batch: Batch, logits_BZ: Tensor
) -> Report:
    """Measure every task from the logits that `predict_logits` gave for the rows."""
    if batch.labels is None or batch.states is None or batch.weights is None:
        raise ValueError("Evaluation needs rows encoded with labels.")
    groups = None if schema.user is None else _groups(batch.keys[schema.user.key])
    measurements: list[Measurement] = []
    notes: list[str] = []
    for number, (task, scores) in enumerate(
        zip(schema.tasks, model.outputs(logits_BZ), strict=True)
    ):
        found, said = measure_task(
            task.name,
            task.kind,  # type: ignore[arg-type] # the kinds of tasks are those of measure_task
            labels=batch.labels[:, number],
            observed=batch.states[:, number] == OBSERVED,
            scores=scores.cpu().numpy(),
            weights=batch.weights[:, number] if task.sample_weight else None,
            groups=groups if task.kind == "binary" else None,
        )
        measurements += found
        notes += said
    notes += absent_notes(batch.absent)
    return Report(tuple(measurements), tuple(notes))


def _groups(keys: pl.Series) -> pl.Series:
    """Give each user a number; a row without a user is a group of its own, which GAUC drops."""
    first = pl.col("row").min().over("key")
    numbered = pl.DataFrame({"key": keys}).with_row_index("row")
    own = pl.when(pl.col("key").is_null()).then(pl.col("row")).otherwise(first)
    return numbered.select(own.alias("user"))["user"]


@torch.inference_mode()
def validation_losses(
    model: MultiTaskModel, schema: Schema, rows: RowTensors, logits_BZ: Tensor
) -> Tensor:
    """Return each task's loss (T,) over all rows, from their logits."""
    everything = torch.arange(rows.num_rows, device=rows.device)
    outputs = model.outputs
    return task_losses(
        logits_BZ, rows.targets(everything), schema.tasks, outputs.mean_T, outputs.std_T
    ).cpu()


def headline_score(model: MultiTaskModel, schema: Schema, batch: Batch, rows: RowTensors) -> float:
    """Return the mean over tasks of AUC, accuracy or R squared, whichever fits the task.

    Raises
    ------
    ValueError
        If it is undefined for all tasks.
    """
    if batch.labels is None or batch.states is None or batch.weights is None:
        raise ValueError("Evaluation needs rows encoded with labels.")
    measures = {"binary": auc, "multiclass": multiclass_accuracy, "regression": r2}
    found = []
    for number, (task, scores) in enumerate(
        zip(schema.tasks, score_rows(model, rows), strict=True)
    ):
        seen = batch.states[:, number] == OBSERVED
        measure = measures[str(task.kind)]
        labels, weights = batch.labels[seen, number], batch.weights[seen, number]
        found.append(measure(labels, scores.numpy()[seen], weights=weights))
    defined = [value for value in found if not math.isnan(value)]
    if not defined:
        raise ValueError("No task can be scored on these rows: each has one class or no labels.")
    return sum(defined) / len(defined)
