"""CAGrad: near the mean gradient, the direction that serves the worst task best."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.torchjd_adapter import Weighting, torchjd_weighting


@spec
class CAGrad(Aggregation, kind="cagrad"):
    """Within a ball around the mean gradient, maximise the worst task's improvement.

    A convex solver runs in each step. Needs ``recsys_mtl[cagrad]``.

    Parameters
    ----------
    c
        Radius of the ball as a share of the mean gradient's norm; 0 is the mean, from 1 on it tends to
        MGDA.

    References
    ----------
    B. Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, algorithm 1.
    """

    c: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5

    def weighting(self) -> Weighting:
        """Return torchjd's weighting."""
        return torchjd_weighting(lambda torchjd: torchjd.CAGradWeighting(c=self.c), extra="cagrad")
