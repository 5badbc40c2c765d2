"""DualProj: the mean gradient projected on the directions that harm no task."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.quadratic import dual_cone_weights
from recsys_mtl.training.balancing.torchjd_adapter import Weighting


@spec
class DualProj(Aggregation, kind="dual_proj"):
    """Project the mean of the gradients on the dual cone of all of them: no task loses.

    References
    ----------
    D. Lopez-Paz and M. Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
    equation 11. P. Quinton and V. Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv
    2406.16232, 2024.

    DIFF: solved without torchjd's regularisation of the Gramian.
    """

    def weighting(self) -> Weighting:
        """Return the exact weights of the projection."""
        return _projected_mean


def _projected_mean(gramian_AA: Tensor) -> Tensor:
    mean_A = torch.full_like(gramian_AA[0], 1 / len(gramian_AA))
    return dual_cone_weights(mean_A, gramian_AA)
