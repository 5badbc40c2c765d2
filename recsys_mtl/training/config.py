"""How a model is trained, as one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from numbers import Integral
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from recsys_mtl.errors import SchemaError
from recsys_mtl.metrics import HIGHER_IS_BETTER, metrics_of
from recsys_mtl.network import joint_scores
from recsys_mtl.schema import Schema
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training.balancing import Balance, Fixed
from recsys_mtl.training.optim import Adam, Optimizer, TowerOptimizer
from recsys_mtl.training.schedule import Schedule
from recsys_mtl.training.tables import RowWiseAdagrad, TableOptimizer

Count = Annotated[int, Field(ge=1)]


def _check_sizes(found: Any) -> Any:
    """Check here what pydantic would tell of each member of the union."""
    each = found if isinstance(found, list | tuple) else [found]
    whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in each)
    if not whole or not each or min(each) < 1:
        raise ValueError(
            "must be a whole number above 0, or a list of such, one for each epoch. Found"
            f" {found!r}"
        )
    return int(found) if isinstance(found, Integral) else tuple(int(one) for one in each)


BatchSize = Annotated[int | Sequence[int], BeforeValidator(_check_sizes)]


@spec
class TrainConfig(Spec):
    """Settings of the training loop.

    Parameters
    ----------
    batch_size
        Rows per step: one number, or one for each epoch, of which the last is for all later ones. Small
        batches first and larger ones later cost few steps where gradients agree least.
    accumulate
        Batches whose gradients are added up to one step: a batch of that many times the rows in the
        memory of one. Each task's loss is its mean over the observed rows of all of them; ranking losses
        compare rows within a batch. Needs the balance ``"fixed"``.
    max_epochs
        Passes over the training rows.
    optimizer
        Of the dense parameters.
    tower_optimizers
        Optimizers for the layers of single tasks, where they should differ.
    table_optimizer
        Of the embedding tables, on the rows a batch touches.
    balance
        How the tasks' losses, each times its task's weight, become one step.
    observe_every
        Steps between two looks at gates, experts and the angle between the tasks' gradients, for the
        history; 0: never. A look costs about as many backward passes as there are tasks.
    monitor
        What validation is judged by: ``"loss"`` (the tasks' losses, weighted as in training) or
        ``"task.metric"`` such as ``"ctr.auc"``. The best epoch's weights are kept.
    patience
        Training stops after this many epochs without a better one.
    schedule
        How all learning rates change over the run. With `refit` its end is that of the refit.
    clip_norm
        Largest norm of the gradient of all dense parameters together; a larger one is scaled down.
        None: no bound. Embedding tables are not in it.
    average
        Decay of a running mean of the dense weights, 0 < average < 1: the mean is what is validated and
        kept (an exponential moving average, EMA). After n steps it is ``(1 + n) / (10 + n)`` where that
        is less, so that the first weights are soon forgotten. None: the weights themselves.
    precision
        ``"bfloat16"`` computes the layers between embeddings and losses in half precision (autocast);
        gates, losses, tables and all weights stay in float32. It is fast where the CPU has AMX or
        AVX512-bf16, or on a GPU. Scores are computed in float32 either way.
    compile
        Whether `torch.compile` fuses the layers between embeddings and losses. It takes a C++ compiler and
        tens of seconds at the start of a run, and again for the last, shorter batch; it pays in long runs.
    reset_tables
        Draw the embedding tables afresh at the start of every epoch but the first, and keep the
        dense layers: ids that appear a few times are otherwise learned by heart in the second epoch.
        None: where every epoch has 32 batches or more, from which a table can be learned, and the run
        goes on from no other model.

    References
    ----------
    Resetting tables: "Multi-Epoch Learning for Deep Click-Through Rate Prediction Models" (MEDA),
    arXiv 2305.19531, 2023.
    """

    _: KW_ONLY
    batch_size: BatchSize = 2048
    accumulate: Count = 1
    max_epochs: Count = 10
    optimizer: Optimizer = Adam()
    tower_optimizers: Annotated[Sequence[TowerOptimizer], AfterValidator(tuple)] = ()
    table_optimizer: TableOptimizer = RowWiseAdagrad()
    balance: Balance = Fixed()
    observe_every: Annotated[int, Field(ge=0)] = 100
    monitor: str = "loss"
    patience: Count = 2
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    average: Annotated[float, Field(gt=0, lt=1)] | None = 0.98
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    reset_tables: bool | None = None


def monitor_parts(monitor: str, schema: Schema) -> tuple[str, str]:
    """Split ``"task.metric"``; ``"loss"`` gives ("", "loss").

    Raises
    ------
    SchemaError
        If there is no such task, or the metric is not one of its kind.
    """
    if monitor == "loss":
        return "", "loss"
    kinds = [(task.name, task.kind) for task in schema.tasks]
    kinds += [(name, "binary") for name in joint_scores(schema.tasks)]
    allowed = [
        f"{name}.{metric}"
        for name, kind in kinds
        for metric in metrics_of(kind, grouped=schema.user is not None)  # type: ignore[arg-type] # tasks' kinds are metrics' kinds
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
