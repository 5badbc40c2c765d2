"""FAMO: losses are made to fall at equal relative rates, from their values alone.

Shape letters: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from recsys_mtl.schema import Task
from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.base import (
    Balance,
    Balanced,
    Balancer,
    Boundary,
    backward_weighted,
)

SMALLEST_LOSS = 1e-8


@spec
class FAMO(Balance, kind="famo"):
    """Weigh by ``softmax(w) / loss``, w learned so that the slowest relative improvement is largest.

    Losses must not be negative. Their scale, and so a task's fixed weight, has no influence. Weights of
    the tasks with labels in a batch sum to their number.

    Parameters
    ----------
    learning_rate
        Of w, by plain gradient descent.
    decay
        Pull of w towards 0, which is uniform.

    References
    ----------
    B. Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 1.

    DIFF: a step's improvement is read off the next batch that has the task's labels, not off the same
    batch after the step, which would cost a second forward pass. The noise of a batch enters two
    improvements in a row with opposite signs, and so cancels. Weights sum to the number of tasks and
    not to 1, as those of other balances.
    """

    needs_positive_losses: ClassVar[bool] = True

    _: KW_ONLY
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.025
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer."""
        del seed
        return _FAMO(self, len(tasks), device=device)


class _FAMO(Balancer):
    state: ClassVar[tuple[str, ...]] = ("preference_T", "last_log_T", "seen_T")

    def __init__(self, spec: FAMO, num_tasks: int, *, device: str) -> None:
        self.spec = spec
        self.preference_T = torch.zeros(num_tasks, device=device)
        self.last_log_T = torch.zeros(num_tasks, device=device)
        self.seen_T = torch.zeros(num_tasks, dtype=torch.bool, device=device)

    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        del boundary
        dtype = self.preference_T.dtype
        log_T = losses_T.detach().clamp(min=SMALLEST_LOSS).log().to(dtype)
        self._learn(log_T, present_T)
        # weights in the log domain: losses may differ by many orders of magnitude
        scores_T = torch.log_softmax(self.preference_T, dim=0) - log_T
        weights_T = torch.softmax(torch.where(present_T, scores_T, -torch.inf), dim=0)
        weights_T = torch.where(present_T, weights_T * present_T.sum(), 1)
        return backward_weighted(losses_T, weights_T, penalty)

    def _learn(self, log_T: Tensor, present_T: Tensor) -> None:
        both_T = present_T & self.seen_T
        gains_T = torch.where(both_T, self.last_log_T - log_T, 0)
        shares_T = torch.where(both_T, torch.softmax(self.preference_T, dim=0), 0)
        mean_gain = (shares_T * gains_T).sum() / shares_T.sum().clamp(min=SMALLEST_LOSS)
        slope_T = shares_T * (gains_T - mean_gain) + self.spec.decay * self.preference_T
        moved_T = self.preference_T - self.spec.learning_rate * slope_T
        self.preference_T = torch.where(both_T, moved_T, self.preference_T)
        self.last_log_T = torch.where(present_T, log_T, self.last_log_T)
        self.seen_T = self.seen_T | present_T
