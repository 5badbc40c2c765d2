"""Schedule: how learning rates change over a run, the same factor for layers and tables."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field

from recsys_mtl.spec import Spec, spec


@spec
class Schedule(Spec):
    """A rise over the first steps, then a decay to the end of the last epoch.

    Parameters
    ----------
    warmup_steps
        Steps over which rates rise linearly, from 0.
    decay
        ``"none"``; ``"linear"`` or ``"cosine"`` falls to `floor` at the last step of `max_epochs`.
    floor
        Share of the rate that is left at the end, 0 <= floor <= 1.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    equation 5 (cosine, without restarts).
    """

    _: KW_ONLY
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def factor(self, step: int, num_steps: int) -> float:
        """Return what rates are multiplied with at a step, from 0, of so many."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        left = max(num_steps - self.warmup_steps, 1)
        done = min((step - self.warmup_steps) / left, 1.0)
        share = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * share
