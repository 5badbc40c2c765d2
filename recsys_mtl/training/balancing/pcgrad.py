"""PCGrad: from every task's gradient, take away what points against another's."""

from __future__ import annotations

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.torchjd_adapter import Weighting, torchjd_weighting


@spec
class PCGrad(Aggregation, kind="pcgrad"):
    """Project each gradient on the normal plane of those it conflicts with, then add up.

    The other tasks are visited in random order. Without conflicts it is the plain sum. Needs
    ``recsys_mtl[balancing]``.

    References
    ----------
    T. Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    def weighting(self) -> Weighting:
        """Return torchjd's weighting."""
        return torchjd_weighting(lambda torchjd: torchjd.PCGradWeighting())
