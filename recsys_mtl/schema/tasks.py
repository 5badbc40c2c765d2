"""Tasks: what is predicted, from which label, on which rows."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field

from recsys_mtl.schema.features import Name
from recsys_mtl.spec import Spec, spec

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@spec
class Task(Spec):
    """What all tasks share.

    Parameters
    ----------
    name
        Name of the task and of the column of its scores.
    label
        Column of its label. A null (or NaN) label is missing: the row says nothing about this task.
    weight
        Weight of the task's loss in the sum over tasks.
    sample_weight
        Column of non-negative row weights for this task's loss and metrics.
    within
        Name of a binary task. Only rows where that task's label is positive are in this task's space;
        on others its label is ignored (a conversion rate is defined within clicks).
    """

    name: Name
    _: KW_ONLY
    label: Name
    weight: Weight = 1.0
    sample_weight: Name | None = None
    within: Name | None = None

    @property
    def num_logits(self) -> int:
        """Outputs the network has for this task."""
        return 1


@spec
class Binary(Task, kind="binary"):
    """A yes/no task such as a click. Labels are 0/1 or booleans; scores are probabilities."""


@spec
class Regression(Task, kind="regression"):
    """A number such as a rating. Scores are on the label's scale.

    Parameters
    ----------
    loss
        ``"mse"``, or ``"huber"`` where few far-off labels must not rule. Both are taken on the label
        centred by its training mean and divided by its training deviation.
    huber_delta
        Where Huber's loss turns from square to linear, in standard deviations of the label.
    bounds
        Smallest and largest possible label. Labels outside are an error; scores are clipped to it.
    """

    _: KW_ONLY
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bounds is None:
            return
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds must be two finite numbers, low < high. Found {self.bounds}")


@spec
class Multiclass(Task, kind="multiclass"):
    """One of several classes. Labels are integers 0 .. num_classes - 1; scores are probabilities.

    Parameters
    ----------
    num_classes
        Number of classes.
    """

    _: KW_ONLY
    num_classes: Annotated[int, Field(ge=2)]

    @property
    def num_logits(self) -> int:
        """Outputs the network has for this task: one per class."""
        return self.num_classes
