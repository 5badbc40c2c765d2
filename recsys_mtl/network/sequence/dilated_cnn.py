"""DilatedCNN: a history seen through convolutions whose reach grows from layer to layer.

Shape letters: B rows, L sequence length, D embedding dim, A events told by their age, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor, nn

from recsys_mtl.network.layers import linear
from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule
from recsys_mtl.network.sharing.base import Count, Dropout, ExpertDims
from recsys_mtl.spec import spec


@spec
class DilatedCNN(SequenceEncoder, kind="dilated_cnn"):
    """What causal dilated convolutions give at the most recent event.

    Each layer adds to every event ``ReLU(LayerNorm(convolution))`` of it and of earlier ones; before
    the oldest there is 0. The most recent event, rather than the mean of all, is read out: all that
    it sees has a place relative to it, and only what it sees is computed. It sees the last
    ``1 + (kernel_size - 1) * sum(dilations)`` events, 31 by default.

    Parameters
    ----------
    kernel_size
        Events that each convolution takes in, from 1.
    dilations
        Per layer, how many events those are apart, from 1; at least one layer.
    dropout
        Share of each layer's activations dropped in training, 0 <= dropout < 1.

    References
    ----------
    F. Yuan et al., "A Simple Convolutional Generative Network for Next Item Recommendation", WSDM
    2019, section 4.
    DIFF: one convolution in each residual block, not two.
    """

    _: KW_ONLY
    kernel_size: Count = 3
    dilations: ExpertDims = (1, 2, 4, 8)
    dropout: Dropout = 0.0

    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module for events of width `embedding_dim`."""
        return _DilatedCNN(self, embedding_dim)


class _Block(nn.Module):
    """A layer at some ages; `places_KA` says where among those it is given each tap of each is."""

    places_KA: Tensor
    ages_A: Tensor

    def __init__(
        self, dim: int, places: Sequence[Sequence[int]], ages: Sequence[int], *, dropout: float
    ) -> None:
        super().__init__()
        self.convolution = linear(len(places) * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places_KA", torch.tensor(places), persistent=False)
        self.register_buffer("ages_A", torch.tensor(ages), persistent=False)

    def forward(self, x_BAD: Tensor, lengths_B1: Tensor) -> Tensor:
        # One selection per tap: no event is selected twice, so gradients are added in a fixed order.
        taps = [x_BAD.index_select(1, places_A) for places_A in self.places_KA]
        found_BAD = self.norm(self.convolution(torch.cat(taps, dim=2)))
        x_BAD = taps[0] + self.dropout(nn.functional.relu(found_BAD))
        return x_BAD.where((self.ages_A < lengths_B1)[..., None], 0)


class _DilatedCNN(SequenceModule):
    ages_A: Tensor

    def __init__(self, spec: DilatedCNN, embedding_dim: int) -> None:
        super().__init__(embedding_dim)
        ages, blocks = [0], []
        for dilation in reversed(spec.dilations):
            taps = [[age + tap * dilation for age in ages] for tap in range(spec.kernel_size)]
            seen = sorted({age for each in taps for age in each})
            places = [[seen.index(age) for age in each] for each in taps]
            blocks.append(_Block(embedding_dim, places, ages, dropout=spec.dropout))
            ages = seen
        self.blocks = nn.ModuleList(reversed(blocks))
        self.register_buffer("ages_A", torch.tensor(ages), persistent=False)

    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        lengths_B1 = mask_BL.sum(dim=1, keepdim=True)
        places_BA = (lengths_B1 - 1 - self.ages_A).clamp(min=0)
        x_BAD = history_BLD.take_along_dim(places_BA[..., None], dim=1)
        x_BAD = x_BAD.where((self.ages_A < lengths_B1)[..., None], 0)
        for block in self.blocks:
            x_BAD = block(x_BAD, lengths_B1)
        return x_BAD.squeeze(1)
