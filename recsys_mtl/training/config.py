"""How a model is trained, as one value."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Annotated

from pydantic import Field

from recsys_mtl.errors import SchemaError
from recsys_mtl.metrics import HIGHER_IS_BETTER, metrics_of
from recsys_mtl.schema import Schema
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training.optim import Adam, Optimizer
from recsys_mtl.training.tables import RowWiseAdagrad

Count = Annotated[int, Field(ge=1)]


@spec
class TrainConfig(Spec):
    """Settings of the training loop.

    Parameters
    ----------
    batch_size
        Rows per step.
    max_epochs
        Passes over the training rows.
    optimizer
        Of the dense parameters.
    table_optimizer
        Of the embedding tables, on the rows a batch touches.
    monitor
        What validation is judged by: ``"loss"`` (the tasks' losses, weighted as in training) or
        ``"task.metric"`` such as ``"ctr.auc"``. The best epoch's weights are kept.
    patience
        Training stops after this many epochs without a better one.
    reset_tables
        Draw the embedding tables afresh at the start of every epoch but the first, and keep the
        dense layers: ids that appear a few times are otherwise learned by heart in the second epoch.

    References
    ----------
    Resetting tables: "Multi-Epoch Learning for Deep Click-Through Rate Prediction Models" (MEDA),
    arXiv 2305.19531, 2023.
    """

    _: KW_ONLY
    batch_size: Count = 2048
    max_epochs: Count = 10
    optimizer: Optimizer = Adam()
    table_optimizer: RowWiseAdagrad = RowWiseAdagrad()
    monitor: str = "loss"
    patience: Count = 2
    reset_tables: bool = False


def monitor_parts(monitor: str, schema: Schema) -> tuple[str, str]:
    """Split ``"task.metric"``; ``"loss"`` gives ("", "loss").

    Raises
    ------
    SchemaError
        If there is no such task, or the metric is not one of its kind.
    """
    if monitor == "loss":
        return "", "loss"
    allowed = [
        f"{task.name}.{metric}"
        for task in schema.tasks
        for metric in metrics_of(task.kind, grouped=schema.user is not None)  # type: ignore[arg-type] # tasks' kinds are metrics' kinds
    ]
    if monitor not in allowed:
        raise SchemaError(f"monitor must be 'loss' or one of {allowed}. Found {monitor!r}.")
    task_name, _, metric = monitor.rpartition(".")
    return task_name, metric


def badness(metric: str, value: float) -> float:
    """Return a number that is smaller the better the metric is, in the metric's own direction."""
    upward = HIGHER_IS_BETTER.get(metric, False)
    if upward is None:
        return abs(math.log(value)) if value > 0 else math.inf
    return -value if upward else value
