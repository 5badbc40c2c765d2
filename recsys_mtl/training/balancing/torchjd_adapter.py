"""The only place that knows torchjd, which is optional and changes often."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
"""From the tasks' Gramian (T, T) to the weights (T,) of their gradients."""


def torchjd_weighting(
    make: Callable[[ModuleType], Weighting], *, extra: str = "balancing"
) -> Weighting:
    """Make one of torchjd's weightings.

    Parameters
    ----------
    make
        Makes it from the module `torchjd.aggregation`.
    extra
        The extra of this package that installs what it needs.

    Raises
    ------
    ImportError
        If torchjd, or a solver that it needs, is not installed.
    """
    try:
        from torchjd import aggregation

        return make(aggregation)
    except ImportError as error:
        raise ImportError(
            f"This balance needs the extra {extra!r} of recsys_mtl, which is not installed: pip install"
            f" 'recsys_mtl[{extra}]', or '.[{extra}]' in a clone. Missing: {str(error).split('.')[0]}."
        ) from error
