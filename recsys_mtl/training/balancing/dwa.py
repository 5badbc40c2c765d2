"""DWA: losses that fall slowly weigh more.

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


@spec
class DWA(Balance, kind="dwa"):
    """Weigh by ``T * softmax(ratio / temperature)``, so that losses that fall slowly weigh more.

    A task's ratio is its mean loss in the last window over that in the one before. Weights are 1 during
    the first two windows.

    Parameters
    ----------
    window
        Steps per window.
    temperature
        Larger values make weights more alike.

    References
    ----------
    S. Liu, E. Johns and A. J. Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    equation 7.

    DIFF: windows of steps instead of epochs, of which a ranking model may have only one. A task without
    labels in a whole window keeps its last ratio.
    """

    _: KW_ONLY
    window: Annotated[int, Field(ge=1)] = 200
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0

    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer."""
        del seed
        return _DWA(self, len(tasks), device=device)


class _DWA(Balancer):
    state: ClassVar[tuple[str, ...]] = ("steps", "sums_T", "counts_T", "means_2T")

    def __init__(self, spec: DWA, num_tasks: int, *, device: str) -> None:
        self.spec = spec
        # on the CPU: it decides what Python does
        self.steps = torch.zeros((), dtype=torch.int64)
        self.sums_T = torch.zeros(num_tasks, device=device)
        self.counts_T = torch.zeros(num_tasks, device=device)
        # of the last window and the one before; equal means say nothing
        self.means_2T = torch.ones(2, num_tasks, device=device)

    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        del boundary
        balanced = backward_weighted(losses_T, self._weights(), penalty)
        self.sums_T = self.sums_T + torch.where(present_T, losses_T.detach(), 0).to(
            self.sums_T.dtype
        )
        self.counts_T = self.counts_T + present_T.to(self.counts_T.dtype)
        self.steps = self.steps + 1
        if int(self.steps) % self.spec.window == 0:
            self._close_window()
        return balanced

    def _weights(self) -> Tensor:
        last_T, before_T = self.means_2T
        if int(self.steps) < 2 * self.spec.window:
            return torch.ones_like(last_T)
        ratios_T = torch.where(before_T > 0, last_T / before_T, 1)
        return len(ratios_T) * torch.softmax(ratios_T / self.spec.temperature, dim=0)

    def _close_window(self) -> None:
        seen_T = self.counts_T > 0
        means_T = self.sums_T / self.counts_T.clamp(min=1)
        self.means_2T = torch.where(seen_T, torch.stack([means_T, self.means_2T[0]]), self.means_2T)
        self.sums_T = torch.zeros_like(self.sums_T)
        self.counts_T = torch.zeros_like(self.counts_T)
