"""Losses and metrics of a model on encoded rows with labels."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE, Batch, absent_notes
from recsys_mtl.encoding.batch import FloatArray
from recsys_mtl.metrics import Measurement, Report, auc, measure_task, multiclass_accuracy, r2
from recsys_mtl.network import (
    Headed,
    Joint,
    MultiTaskModel,
    RowTensors,
    predict_logits,
    score_rows,
)
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
    scores = [found.cpu().numpy() for found in model.outputs(logits_BZ)]
    for number, task in enumerate(schema.tasks):
        found, said = measure_task(
            task.name,
            task.kind,  # type: ignore[arg-type] # the kinds of tasks are those of measure_task
            labels=batch.labels[:, number],
            observed=batch.states[:, number] == OBSERVED,
            scores=scores[number],
            weights=batch.weights[:, number] if task.sample_weight else None,
            groups=groups if task.kind == "binary" else None,
        )
        measurements += found
        notes += said
    joints = model.outputs.joints
    for name, place in zip(joints, range(len(schema.tasks), len(scores)), strict=True):
        number = joints[name].numbers[-1]
        found, said = measure_task(
            name,
            "binary",
            labels=batch.labels[:, number],  # 0 where the row is out of the task's space
            observed=batch.states[:, number] != MISSING,
            scores=scores[place],
            weights=_joint_weights(joints[name], schema, batch),
            groups=groups,
        )
        measurements += found
        notes += said
    notes += absent_notes(batch.absent)
    return Report(tuple(measurements), tuple(notes))


def _joint_weights(joint: Joint, schema: Schema, batch: Batch) -> FloatArray | None:
    """Return the rows' weights in the joint loss; None where no task has sample weights."""
    if all(schema.tasks[number].sample_weight is None for number in joint.numbers):
        return None
    if batch.states is None or batch.weights is None:
        raise ValueError("Evaluation needs rows encoded with labels.")
    outermost, *others = joint.numbers
    weights = batch.weights[:, outermost]
    for number in others:
        outside = batch.states[:, number] == OUT_OF_SPACE
        weights = np.where(outside, weights, batch.weights[:, number])
    return weights


def _groups(keys: pl.Series) -> pl.Series:
    """Give each user a number; a row without a user is a group of its own, which GAUC drops."""
    first = pl.col("row").min().over("key")
    numbered = pl.DataFrame({"key": keys}).with_row_index("row")
    own = pl.when(pl.col("key").is_null()).then(pl.col("row")).otherwise(first)
    return numbered.select(own.alias("user"))["user"]


@torch.inference_mode()
def validation_losses(
    model: MultiTaskModel, schema: Schema, rows: RowTensors, headed: Headed
) -> Tensor:
    """Return each task's loss (T,) over all rows, from what the heads gave for them."""
    everything = torch.arange(rows.num_rows, device=rows.device)
    outputs = model.outputs
    return task_losses(
        headed,
        rows.targets(everything),
        schema.tasks,
        outputs.mean_T,
        outputs.std_T,
        model.heads,
    ).means_T.cpu()


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
    for number, (task, scores) in enumerate(  # joint scores, behind those of tasks, are left out
        zip(schema.tasks, score_rows(model, rows), strict=False)
    ):
        seen = batch.states[:, number] == OBSERVED
        measure = measures[str(task.kind)]
        labels, weights = batch.labels[seen, number], batch.weights[seen, number]
        found.append(measure(labels, scores.numpy()[seen], weights=weights))
    defined = [value for value in found if not math.isnan(value)]
    if not defined:
        raise ValueError("No task can be scored on these rows: each has one class or no labels.")
    return sum(defined) / len(defined)
