"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.quadratic import min_norm_weights
from recsys_mtl.training.balancing.torchjd_adapter import Weighting


@spec
class MGDA(Aggregation, kind="mgda"):
    """Take the shortest vector of the gradients' convex hull: no task loses, small gradients rule.

    References
    ----------
    J.-A. Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
    Comptes Rendus Mathématique 350, 2012. O. Sener and V. Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018.

    DIFF: solved exactly instead of by Sener and Koltun's Frank-Wolfe iterations, which after 100 rounds
    can still leave a task losing.
    """

    def weighting(self) -> Weighting:
        """Return the exact weights of the shortest vector."""
        return min_norm_weights
