"""Two-hot targets: a number as a distribution over bins whose mean it is.

Shape letters: B rows, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_mtl.schema import LabelBins


def two_hot(values_B: Tensor, bins: LabelBins) -> tuple[Tensor, Tensor]:
    """Split each value between the bins beside it.

    Parameters
    ----------
    values_B
        Numbers; those outside the bins are taken for the first or the last of them.
    bins
        The bins.

    Returns
    -------
    lower_B, share_B
        The number of the bin below, at most K - 2, and what the one above it gets, in [0, 1]; the bin
        below gets the rest.
    """
    steps = bins.number - 1
    place_B = ((values_B - bins.low) * (steps / (bins.high - bins.low))).clamp(0, steps)
    lower_B = place_B.floor().clamp(max=steps - 1)
    return lower_B.long(), place_B - lower_B


def two_hot_loss(logits_BK: Tensor, values_B: Tensor, bins: LabelBins) -> Tensor:
    """Return the cross-entropy (B,) of bins' logits against the values' two-hot targets."""
    lower_B, share_B = two_hot(values_B, bins)
    beside_B2 = torch.stack((lower_B, lower_B + 1), dim=1)
    logs_B2 = torch.log_softmax(logits_BK, dim=1).gather(1, beside_B2)
    return -(logs_B2[:, 0] * (1 - share_B) + logs_B2[:, 1] * share_B)


def bin_mean(logits_BK: Tensor, bins: LabelBins) -> Tensor:
    """Return the mean (B,) of the distribution that bins' logits stand for, within the bins."""
    chances_BK = torch.softmax(logits_BK, dim=1)
    centres_K = torch.linspace(
        bins.low, bins.high, bins.number, dtype=torch.float64, device=logits_BK.device
    )
    return (chances_BK * centres_K.to(chances_BK.dtype)).sum(dim=1).clamp(bins.low, bins.high)
