"""RandomWeights: weights drawn afresh at every step.

Shape letters: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
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


@spec
class RandomWeights(Balance, kind="random"):
    """Weigh by T times the softmax of standard normals: the control that other balances must beat.

    References
    ----------
    B. Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
    Learning", TMLR 2022.
    """

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer; it draws on the CPU, so that every device gets the same weights."""
        del device
        return _RandomWeights(len(tasks), seed=seed)


class _RandomWeights(Balancer):
    state: ClassVar[tuple[str, ...]] = ("random_state",)

    def __init__(self, num_tasks: int, *, seed: int) -> None:
        self.num_tasks = num_tasks
        self.random_state = torch.Generator().manual_seed(seed).get_state()

    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        del present_T, boundary
        generator = torch.Generator()
        generator.set_state(self.random_state)
        normals_T = torch.randn(self.num_tasks, generator=generator)
        self.random_state = generator.get_state()
        weights_T = self.num_tasks * torch.softmax(normals_T, dim=0)
        return backward_weighted(losses_T, weights_T.to(losses_T.device), penalty)
