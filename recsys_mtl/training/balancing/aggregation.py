"""Aggregation: balances that weigh the tasks' gradients at what tasks share, by their Gramian.

Shape letters: P tensors of the boundary, T tasks, A tasks with a gradient in this step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import torch
from torch import Tensor

from recsys_mtl.schema import Task
from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.base import Balance, Balanced, Balancer, Boundary
from recsys_mtl.training.balancing.gradients import Place, task_gradients
from recsys_mtl.training.balancing.torchjd_adapter import Weighting


@spec
class Aggregation(Balance):
    """What balances of gradients share.

    Each task's loss is differentiated down to the looked-up vectors. Weights found from the inner
    products of these gradients combine them at everything that tasks share; parameters that only one
    task's loss reaches get their plain gradient.

    Parameters
    ----------
    measured_at
        Where inner products are taken: at the looked-up vectors (``"embeddings"``), at the shared dense
        parameters (``"dense"``) or at ``"both"``. The weights apply to both in any case.

    Notes
    -----
    A step takes a backward pass per task, and reads T x T numbers from the device. Tasks without a
    gradient in a batch are left out of it, as if they did not exist.
    """

    _: KW_ONLY
    measured_at: Place = "both"

    @property
    def degree(self) -> float:
        """How weights follow the gradients' scale: times c**-degree if all squares are times c."""
        return 0.0

    @abstractmethod
    def weighting(self) -> Weighting:
        """Return the map from a Gramian (A, A), float64 on the CPU, mean diagonal 1, to weights."""

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer.

        Raises
        ------
        ImportError
            If the package that computes the weights is not installed.
        """
        return _Aggregating(self, len(tasks), seed=seed, device=device)


class _Aggregating(Balancer):
    """Reached tensors are remembered: a shared one stays shared in a step without a task's labels."""

    state: ClassVar[tuple[str, ...]] = ("reached_PT", "random_state")

    def __init__(self, spec: Aggregation, num_tasks: int, *, seed: int, device: str) -> None:
        self.spec = spec
        self.gives_gramian = spec.measured_at == "both"
        self.weighting = spec.weighting()
        self.reached_PT = torch.zeros(1, num_tasks, dtype=torch.bool, device=device)
        self.random_state = torch.Generator().manual_seed(seed).get_state()

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
        weights_T = self._weigh(gramian_TT, present_T)
        gradients.fill(torch.where(shared_P[:, None], weights_T, 1))
        if penalty is not None:
            torch.autograd.backward(penalty)
        return Balanced(weights_T, gramian_TT)

    def _weigh(self, gramian_TT: Tensor, present_T: Tensor) -> Tensor:
        """Return the weights of the tasks' gradients; 1 for tasks without any."""
        # one transfer, the only wait for the device in a step
        packed = torch.cat([gramian_TT, present_T[None].to(gramian_TT.dtype)]).cpu().double()
        gramian, present = packed[:-1], packed[-1] > 0
        weights = torch.ones(len(gramian), dtype=gramian.dtype)
        alive = present & (gramian.diagonal() > 0)
        # a Gramian that is not finite has no weights; the trainer stops on such losses by itself
        if alive.any() and gramian.isfinite().all():
            gramian_AA = gramian[alive][:, alive]
            scale = gramian_AA.diagonal().mean()
            weights[alive] = self._draw(gramian_AA / scale) * scale**-self.spec.degree
        return weights.to(gramian_TT.device, gramian_TT.dtype)

    def _draw(self, gramian_AA: Tensor) -> Tensor:
        """Compute weights; what is random about them follows the balancer's own seed."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            weights_A = self.weighting(gramian_AA)
            self.random_state = torch.get_rng_state()
        return weights_A
