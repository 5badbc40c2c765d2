"""Id dropout: in training, a share of the ids is taken for unknown ones.

Shape letters: B rows, F one-id features, M ids of a list feature.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import NUM_RESERVED, UNKNOWN_ROW, InputLayout
from recsys_mtl.network.inputs import Inputs, ListInput


class IdDropout(nn.Module):
    """Replace ids by the unknown one at random, each feature by its own share; none in evaluation.

    Ids are drawn one by one, in lists too; the rows that one id looks up by several hashes go
    together. Null, the empty string and unknown ids stay what they are. Draws come from torch's global
    generator, as those of other dropout do.

    Parameters
    ----------
    layout
        Shares and lookups, from the encoder.
    """

    shares_F: Tensor

    def __init__(self, layout: InputLayout) -> None:
        super().__init__()
        self.list_shares = layout.list_dropout
        self.one_id = any(layout.id_dropout)
        self.register_buffer("shares_F", torch.tensor(layout.id_dropout), False)

    def forward(self, inputs: Inputs) -> Inputs:
        """Return the inputs that are to be looked up."""
        if not self.training:
            return inputs
        if self.one_id:
            ids_BF = inputs.ids_BF
            drawn_BF = torch.rand(ids_BF.shape, device=ids_BF.device) < self.shares_F
            inputs = replace(inputs, ids_BF=_unknown(ids_BF, drawn_BF))
        if any(share for share, _ in self.list_shares):
            pairs = zip(inputs.lists, self.list_shares, strict=True)
            lists = tuple(_dropped(one, *drawn) if drawn[0] else one for one, drawn in pairs)
            inputs = replace(inputs, lists=lists)
        return inputs


def _dropped(found: ListInput, share: float, num_lookups: int) -> ListInput:
    """Drop ids of a list, each of which has so many values side by side."""
    values_M = found.values_M
    size = values_M.numel() // num_lookups
    drawn_M = torch.rand(size, device=values_M.device) < share
    drawn_M = drawn_M.repeat_interleave(num_lookups)
    return replace(found, values_M=_unknown(values_M, drawn_M))


def _unknown(rows: Tensor, drawn: Tensor) -> Tensor:
    return rows.masked_fill(drawn & (rows >= NUM_RESERVED), UNKNOWN_ROW)
