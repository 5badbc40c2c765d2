"""IMTL-G: the combination that has equal projections on all gradients."""

from __future__ import annotations

from recsys_mtl.spec import spec
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.torchjd_adapter import Weighting, torchjd_weighting


@spec
class IMTLG(Aggregation, kind="imtl_g"):
    """Weigh gradients so that the sum has equal projections on all of them; weights sum to 1.

    The scale of a loss, and so a task's fixed weight, has no influence. Weights may be negative. Needs
    ``recsys_mtl[balancing]``.

    References
    ----------
    L. Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, section 3.1.
    """

    def weighting(self) -> Weighting:
        """Return torchjd's weighting."""
        return torchjd_weighting(lambda torchjd: torchjd.IMTLGWeighting())
