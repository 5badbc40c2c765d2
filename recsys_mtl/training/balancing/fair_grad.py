"""FairGrad: alpha-fair shares of the improvement; Nash-MTL's bargain at alpha = 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.torchjd_adapter import Weighting, torchjd_weighting


@spec
class FairGrad(Aggregation, kind="fair_grad"):
    """Solve ``gramian @ w = w ** (-1 / alpha)`` for the weights w of the gradients.

    The combined gradient's norm does not shrink with the gradients: with plain SGD, lower the learning
    rate as you would for normalised gradients. Needs ``recsys_mtl[balancing]``.

    Parameters
    ----------
    alpha
        1 is proportional fairness, the bargain of Nash-MTL; towards 0 the sum of improvements counts,
        at large values the smallest.

    References
    ----------
    H. Ban and K. Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, equation 6. A. Navon
    et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.
    """

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @property
    def degree(self) -> float:
        """How weights follow the gradients' scale."""
        return self.alpha / (1 + self.alpha)

    def weighting(self) -> Weighting:
        """Return torchjd's weighting."""
        return torchjd_weighting(lambda torchjd: torchjd.FairGradWeighting(alpha=self.alpha))
