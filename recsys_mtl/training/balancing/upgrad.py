"""UPGrad: each task's gradient projected on the directions that harm none, averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.quadratic import dual_cone_weights
from recsys_mtl.training.balancing.torchjd_adapter import Weighting


@spec
class UPGrad(Aggregation, kind="upgrad"):
    """Project every gradient on the dual cone of all of them, and take the mean: no task loses.

    References
    ----------
    P. Quinton and V. Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv 2406.16232, 2024,
    section 3.

    DIFF: solved without torchjd's regularisation of the Gramian.
    """

    def weighting(self) -> Weighting:
        """Return the exact weights of the mean projection."""
        return _mean_of_projections


def _mean_of_projections(gramian_AA: Tensor) -> Tensor:
    weights_AA = torch.eye(len(gramian_AA), dtype=gramian_AA.dtype) / len(gramian_AA)
    return torch.stack([dual_cone_weights(one_A, gramian_AA) for one_A in weights_AA]).sum(dim=0)
