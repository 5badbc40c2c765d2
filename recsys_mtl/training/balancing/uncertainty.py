"""Uncertainty: each loss weighs by a learned noise of its task.

Shape letters: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from recsys_mtl.schema import Regression, Task
from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.base import (
    Balance,
    Balanced,
    Balancer,
    Boundary,
    backward_weighted,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@spec
class Uncertainty(Balance, kind="uncertainty"):
    """Learn a log variance s per task: ``exp(-s) * loss + s / 2``, half the loss for squared errors.

    At rest a task weighs ``1 / (2 * loss)``: tasks with small losses weigh most, up to
    ``exp(max_log)``. A task's fixed weight multiplies its whole term, so that it keeps its meaning.

    Parameters
    ----------
    learning_rate
        Of the log variances, by plain gradient descent without decay.
    max_log
        Bound of ``abs(s)``.

    References
    ----------
    A. Kendall, Y. Gal and R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics", CVPR 2018, equations 7 and 10.

    DIFF: s is bounded, since a rare task's loss would make its weight run away; tasks without labels
    in a batch keep theirs.
    """

    _: KW_ONLY
    learning_rate: Positive = 0.01
    max_log: Positive = 3.0

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer."""
        del seed
        return _Uncertainty(self, tasks, device=device)


class _Uncertainty(Balancer):
    state: ClassVar[tuple[str, ...]] = ("log_variance_T",)

    def __init__(self, spec: Uncertainty, tasks: Sequence[Task], *, device: str) -> None:
        self.spec = spec
        squared = [isinstance(task, Regression) and task.bins is None for task in tasks]
        shares = [0.5 if found else 1.0 for found in squared]
        # a task of fixed weight 0 has losses of 0, and any divisor will do
        fixed = [task.weight or 1.0 for task in tasks]
        self.shares_T = torch.tensor(shares, device=device)
        self.fixed_T = torch.tensor(fixed, device=device)
        self.log_variance_T = torch.zeros(len(tasks), device=device)

    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        del boundary
        factors_T = self.shares_T * torch.exp(-self.log_variance_T)
        balanced = backward_weighted(losses_T, factors_T, penalty)
        slope_T = 0.5 - factors_T * losses_T.detach() / self.fixed_T
        moved_T = self.log_variance_T - self.spec.learning_rate * slope_T
        bounded_T = moved_T.clamp(-self.spec.max_log, self.spec.max_log)
        self.log_variance_T = torch.where(present_T, bounded_T, self.log_variance_T).to(
            self.log_variance_T.dtype
        )
        return balanced
