"""DIN: the events of a history that the item to be scored brings to mind.

Shape letters: B rows, L sequence length, D embedding dim, X width of a hidden layer.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_mtl.network.layers import MLP, linear
from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule
from recsys_mtl.network.sharing.base import Dropout, ExpertDims
from recsys_mtl.spec import spec


@spec
class DIN(SequenceEncoder, kind="din"):
    """Target attention: a sum of events, weighed by what each has to do with the item to be scored.

    ``sum_i a_i e_i`` with ``a_i = MLP([e_i, t, e_i - t, e_i * t])`` for events e and item t.

    Parameters
    ----------
    dims
        Widths of the MLP's hidden layers, at least one; by default the one of the paper's figure 2.
    dropout
        Share of activations dropped after each hidden layer in training, 0 <= dropout < 1.
    normalize
        Let a softmax over the events turn the weights into shares. The paper leaves it out: the sum
        then keeps how strong an interest is, not only its direction.

    References
    ----------
    G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section 4.3.
    DIFF: inputs of the MLP are those of the authors' code (alibaba-damo-academy/DIN), the paper draws an
    outer product; ReLU in place of PReLU or Dice, whose gates depend on the batch.
    """

    needs_target: ClassVar[bool] = True

    _: KW_ONLY
    dims: ExpertDims = (36,)
    dropout: Dropout = 0.0
    normalize: bool = False

    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module for events of width `embedding_dim`."""
        return _DIN(self, embedding_dim)


class _DIN(SequenceModule):
    def __init__(self, spec: DIN, embedding_dim: int) -> None:
        super().__init__(embedding_dim)
        first, *rest = spec.dims
        self.pair = linear(4 * embedding_dim, first)
        self.rest = nn.Sequential(
            nn.ReLU(inplace=True), nn.Dropout(spec.dropout), MLP(first, rest, dropout=spec.dropout)
        )
        self.weight = linear(spec.dims[-1], 1)
        self.normalize = spec.normalize

    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        if target_BD is None:
            raise ValueError(
                "DIN needs target_BD, the vectors of the items to be scored. Found None."
            )
        pairs_BLX = self._pairs(history_BLD, target_BD)
        weights_BL = self.weight(self.rest(pairs_BLX.flatten(0, 1))).view(mask_BL.shape)
        if self.normalize:
            # Not infinity: for a row without events the gradient would be NaN on its way to the mask.
            lowest = torch.finfo(weights_BL.dtype).min
            wide = torch.promote_types(weights_BL.dtype, torch.float32)
            weights_BL = weights_BL.masked_fill(~mask_BL, lowest).softmax(dim=1, dtype=wide)
        weights_BL = weights_BL.where(mask_BL, 0).to(history_BLD.dtype)
        return torch.bmm(weights_BL[:, None], history_BLD).squeeze(1)

    def _pairs(self, history_BLD: Tensor, target_BD: Tensor) -> Tensor:
        """Return the first layer's product with [e, t, e - t, e * t], without laying these out.

        What it owes to t alone is the same for all events of a row; e - t is split between e and t.
        """
        of_e, of_t, of_difference, of_product = self.pair.weight.chunk(4, dim=1)
        target_B1X = nn.functional.linear(target_BD, of_t - of_difference, self.pair.bias)[:, None]
        events_BLX = nn.functional.linear(
            torch.cat([history_BLD, history_BLD * target_BD[:, None]], dim=2),
            torch.cat([of_e + of_difference, of_product], dim=1),
        )
        return events_BLX + target_B1X
