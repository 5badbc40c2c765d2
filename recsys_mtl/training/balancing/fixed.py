"""Fixed: the plain weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

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
class Fixed(Balance, kind="fixed"):
    """The sum of the losses, each times its task's weight: the default, and hard to beat when tuned.

    References
    ----------
    V. Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task Learning", NeurIPS
    2022.
    """

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer."""
        del tasks, seed, device
        return _Fixed()


class _Fixed(Balancer):
    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        del present_T, boundary
        return backward_weighted(losses_T, torch.ones_like(losses_T), penalty)
