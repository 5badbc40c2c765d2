"""Losses and metrics of a model on encoded rows with labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE, Batch, absent_notes
from recsys_mtl.encoding.batch import FloatArray
from recsys_mtl.metrics import (
    Report,
    Resampling,
    TaskLabels,
    auc,
    evaluate_tasks,
    multiclass_accuracy,
    r2,
)
from recsys_mtl.network import (
    Headed,
    Joint,
    MultiTaskModel,
    RowTensors,
    joint_scores,
    predict_logits,
    score_rows,
)
from recsys_mtl.schema import Schema
from recsys_mtl.training.losses import task_losses


def evaluate_rows(
    model: MultiTaskModel,
    schema: Schema,
    batch: Batch,
    rows: RowTensors,
    *,
    by: pl.Series | None = None,
    top: int | None = None,
    resampling: Resampling | None = None,
) -> Report:
    """Measure every task on its observed rows; grouped metrics are grouped by user.

    The options are those of `recsys_mtl.metrics.evaluate_tasks`.
    """
    logits_BZ = predict_logits(model, rows)
    return evaluate_logits(model, schema, batch, logits_BZ, by=by, top=top, resampling=resampling)


@torch.inference_mode()
def evaluate_logits(
    model: MultiTaskModel,
    schema: Schema,
    batch: Batch,
    logits_BZ: Tensor,
    *,
    by: pl.Series | None = None,
    top: int | None = None,
    resampling: Resampling | None = None,
) -> Report:
    """Measure every task from the logits that `predict_logits` gave for the rows."""
    if batch.labels is None or batch.states is None or batch.weights is None:
        raise ValueError("Evaluation needs rows encoded with labels.")
    tasks = task_labels(schema, batch.labels, batch.states, batch.weights)
    scores = [found.cpu().numpy() for found in model.outputs(logits_BZ)]
    groups = user_groups(schema, batch.keys)
    report = evaluate_tasks(tasks, scores, groups, by=by, top=top, resampling=resampling)
    return replace(report, notes=(*report.notes, *absent_notes(batch.absent)))


def task_labels(
    schema: Schema,
    labels: FloatArray,
    states: npt.NDArray[np.uint8],
    weights: FloatArray,
) -> list[TaskLabels]:
    """Return what is true of the tasks and then of the joint scores, from a batch's columns."""
    found = [
        TaskLabels(
            task.name,
            task.kind,  # type: ignore[arg-type] # the kinds of tasks are those of metrics
            labels[:, number],
            states[:, number] == OBSERVED,
            weights[:, number] if task.sample_weight else None,
        )
        for number, task in enumerate(schema.tasks)
    ]
    for name, joint in joint_scores(schema.tasks).items():
        number = joint.numbers[-1]
        found.append(
            TaskLabels(
                name,
                "binary",
                labels[:, number],  # 0 where the row is out of the task's space
                states[:, number] != MISSING,
                _joint_weights(joint, schema, states, weights),
            )
        )
    return found


def _joint_weights(
    joint: Joint, schema: Schema, states: npt.NDArray[np.uint8], weights: FloatArray
) -> FloatArray | None:
    """Return the rows' weights in the joint loss; None where no task has sample weights."""
    if all(schema.tasks[number].sample_weight is None for number in joint.numbers):
        return None
    outermost, *others = joint.numbers
    chosen = weights[:, outermost]
    for number in others:
        outside = states[:, number] == OUT_OF_SPACE
        chosen = np.where(outside, chosen, weights[:, number])
    return chosen


def user_groups(schema: Schema, keys: pl.DataFrame) -> pl.Series | None:
    """Give each user a number; a row without a user is a group of its own, which GAUC drops."""
    if schema.user is None:
        return None
    first = pl.col("row").min().over("key")
    numbered = pl.DataFrame({"key": keys[schema.user.key]}).with_row_index("row")
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
