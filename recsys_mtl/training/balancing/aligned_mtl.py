"""Aligned-MTL: gradients made orthogonal and of equal length, then averaged."""

from __future__ import annotations

from typing import Literal

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.torchjd_adapter import Weighting, torchjd_weighting


@spec
class AlignedMTL(Aggregation, kind="aligned_mtl"):
    """Make all singular values of the gradients' matrix equal, and take the mean of its rows.

    Needs ``recsys_mtl[balancing]``.

    Parameters
    ----------
    scale
        The common singular value: the smallest (``"min"``, as in the paper), the median (``"median"``)
        or the root of the mean square (``"rmse"``).

    References
    ----------
    D. Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023,
    algorithm 1.
    """

    scale: Literal["min", "median", "rmse"] = "min"

    def weighting(self) -> Weighting:
        """Return torchjd's weighting."""
        return torchjd_weighting(lambda torchjd: torchjd.AlignedMTLWeighting(scale_mode=self.scale))
