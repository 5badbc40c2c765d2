"""GradNorm: weights under which tasks have gradients of like norm and learn at like rates.

Shape letters: P tensors of the boundary, T tasks.
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
from recsys_mtl.training.balancing.base import Balance, Balanced, Balancer, Boundary
from recsys_mtl.training.balancing.gradients import Place, task_gradients


@spec
class GradNorm(Balance, kind="gradnorm"):
    """Learn weights that sum to T, so that weighted gradient norms follow the tasks' training rates.

    A task whose loss fell less than others' is to have the larger gradient. Norms are those of the
    gradients at everything that tasks share, and take a backward pass per task.

    Parameters
    ----------
    alpha
        How much a task that lags is helped; 0 asks for equal norms.
    learning_rate
        Of the weights' logarithms.
    window
        First steps, in which weights stay 1 and whose mean losses are what later losses are held
        against.
    measured_at
        Where norms are taken: at the looked-up vectors (``"embeddings"``), at the shared dense
        parameters (``"dense"``) or at ``"both"``.

    References
    ----------
    Z. Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks", ICML 2018, section 3.

    DIFF: the step is taken on the logarithms of the weights and with norms in units of their mean, so
    that one learning rate suits all scales and weights stay positive; first losses are means over a
    window instead of one noisy batch; tasks without labels in a batch are left out of it.
    """

    needs_positive_losses: ClassVar[bool] = True

    _: KW_ONLY
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.025
    window: Annotated[int, Field(ge=1)] = 20
    measured_at: Place = "both"

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer."""
        del seed
        return _GradNorm(self, len(tasks), device=device)


class _GradNorm(Balancer):
    state: ClassVar[tuple[str, ...]] = ("steps", "weights_T", "sums_T", "counts_T", "reached_PT")

    def __init__(self, spec: GradNorm, num_tasks: int, *, device: str) -> None:
        self.spec = spec
        self.gives_gramian = spec.measured_at == "both"
        # on the CPU: it decides what Python does
        self.steps = torch.zeros((), dtype=torch.int64)
        self.weights_T = torch.ones(num_tasks, device=device)
        self.sums_T = torch.zeros(num_tasks, device=device)
        self.counts_T = torch.zeros(num_tasks, device=device)
        self.reached_PT = torch.zeros(1, num_tasks, dtype=torch.bool, device=device)

    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        gradients = task_gradients(losses_T, boundary, keep_graph=penalty is not None)
        self.reached_PT = self.reached_PT | gradients.reached()
        shared_P = self.reached_PT.sum(dim=1) > 1
        gramian_TT = gradients.gramian(shared_P, self.spec.measured_at)
        weights_T = self.weights_T
        gradients.fill(weights_T.expand(len(shared_P), -1))
        if penalty is not None:
            torch.autograd.backward(penalty)
        self._learn(losses_T.detach(), present_T, gramian_TT)
        return Balanced(weights_T, gramian_TT)

    def _learn(self, losses_T: Tensor, present_T: Tensor, gramian_TT: Tensor) -> None:
        dtype = self.weights_T.dtype
        losses_T = torch.where(present_T, losses_T, 0).to(dtype)
        self.steps = self.steps + 1
        if int(self.steps) <= self.spec.window:
            self.sums_T = self.sums_T + losses_T
            self.counts_T = self.counts_T + present_T.to(dtype)
            return
        norms_T = gramian_TT.diagonal().sqrt().to(dtype)
        # a task that the window never saw has nothing to be held against
        learns_T = present_T & (norms_T > 0) & (self.sums_T > 0)
        rates_T = losses_T / torch.where(learns_T, self.sums_T / self.counts_T.clamp(min=1), 1)
        rates_T = rates_T / _mean(rates_T, learns_T)
        weighted_T = self.weights_T * norms_T
        norm = _mean(weighted_T, learns_T)
        # of sum |w n - mean * rate^alpha|, the targets held fixed, by log w
        slope_T = torch.sign(weighted_T / norm - rates_T**self.spec.alpha) * weighted_T / norm
        moved_T = self.weights_T * torch.exp(-self.spec.learning_rate * slope_T)
        # those that learn share what they had: the sum over all tasks stays T
        scale = _mean(self.weights_T, learns_T) / _mean(moved_T, learns_T)
        self.weights_T = torch.where(learns_T, moved_T * scale, self.weights_T)


def _mean(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Return the mean where the mask is set; 1 where that is 0 or nothing is set, to divide by."""
    mean = torch.where(mask_T, values_T, 0).sum() / mask_T.sum().clamp(min=1)
    return torch.where(mean > 0, mean, 1)
