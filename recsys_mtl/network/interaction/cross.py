"""CrossNetwork: products of features of bounded degree, learned explicitly.

Shape letters: B rows, I input width, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor, nn

from recsys_mtl.network.interaction.base import Interaction, InteractionModule
from recsys_mtl.network.layers import linear
from recsys_mtl.network.sharing.base import Count
from recsys_mtl.spec import spec


@spec
class CrossNetwork(Interaction, kind="cross"):
    """DCN-v2's cross network: ``x_{l+1} = x_0 * (W x_l + b) + x_l``.

    Each column of the result is the column of the input times a polynomial of the features, of degree
    `num_layers`. The width stays.

    Parameters
    ----------
    num_layers
        Layers, from 1: one for products of two features, two for products of three.
    rank
        Make every W a product of two matrices (I, rank) and (rank, I), from 1; it saves parameters and time
        below I / 2. By default W is a full matrix.

    References
    ----------
    R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
    Learning to Rank Systems", WWW 2021, sections 3.2 (stacked) and 3.5 (low rank).
    """

    num_layers: Count = 2
    _: KW_ONLY
    rank: Count | None = None

    def build(self, input_dim: int, vector_dims: Sequence[tuple[int, int]]) -> InteractionModule:
        """Make the module."""
        return _CrossNetwork(self, input_dim)


class _CrossNetwork(InteractionModule):
    def __init__(self, spec: CrossNetwork, input_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_weight(input_dim, spec.rank) for _ in range(spec.num_layers))
        self.output_dim = input_dim

    def forward(self, x_BI: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        crossed_BI = x_BI
        for layer in self.layers:
            crossed_BI = torch.addcmul(crossed_BI, x_BI, layer(crossed_BI).to(x_BI.dtype))
        return crossed_BI


def _weight(input_dim: int, rank: int | None) -> nn.Module:
    """Return ``W x + b``, with W a product of two matrices if a rank is given."""
    if rank is None:
        return linear(input_dim, input_dim)
    narrow = nn.Linear(input_dim, rank, bias=False)
    nn.init.xavier_uniform_(narrow.weight)
    return nn.Sequential(narrow, linear(rank, input_dim))
