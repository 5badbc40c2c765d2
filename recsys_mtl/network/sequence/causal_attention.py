"""CausalAttention: events of a history that attend to those before them.

Shape letters: B rows, L sequence length, Q queries, D embedding dim, N heads, K width of a head.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.layers import linear
from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule, last_event
from recsys_mtl.network.sharing.base import Count, Dropout
from recsys_mtl.spec import spec

INIT_STD = 0.01
"""Deviation of position embeddings at the start: that of the embedding tables."""


@spec
class CausalAttention(SequenceEncoder, kind="causal_attention"):
    """What self-attention gives at the most recent event; no event attends to a later one.

    Positions count from the most recent event back, so that "the last one" means the same in long
    and short histories.

    Parameters
    ----------
    num_layers
        Layers, 1 or 2.
    num_heads
        Heads of each layer, from 1; they divide the width of the events.
    max_positions
        Positions told apart, from 1; older events share the last.
    dropout
        Share of activations dropped after attention and feed-forward layers in training,
        0 <= dropout < 1.

    References
    ----------
    W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, section III.
    DIFF: positions count from the end; keys and values are normalised as queries are; heads are
    mixed by a linear layer (A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017); no
    dropout on attention weights.
    """

    _: KW_ONLY
    num_layers: Annotated[int, Field(ge=1, le=2)] = 1
    num_heads: Count = 1
    max_positions: Count = 50
    dropout: Dropout = 0.0

    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module for events of width `embedding_dim`.

        Raises
        ------
        SchemaError
            If the heads do not divide it.
        """
        if embedding_dim % self.num_heads:
            raise SchemaError(
                f"num_heads of causal_attention must divide the embedding dim {embedding_dim}. Found"
                f" {self.num_heads}. Change either."
            )
        return _CausalAttention(self, embedding_dim)


class _Layer(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added to what came in."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query = linear(dim, dim)
        self.key_value = linear(dim, 2 * dim)
        self.mix = linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), linear(dim, dim), nn.ReLU(inplace=True), linear(dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor, *, last: bool) -> Tensor:
        """Return (B, L, D), or (B, 1, D) for the most recent event alone if it is the last layer.

        Events stand at the front, so that an event which sees none after it sees none behind the
        mask either.
        """
        normed_BLD = self.norm(x_BLD)
        queried_BQD = normed_BLD
        if last:
            x_BLD = last_event(x_BLD, mask_BL)[:, None]
            queried_BQD = last_event(normed_BLD, mask_BL)[:, None]
            # A row without events sees the zeros at the front: kernels differ in what no key gives.
            front_L = torch.arange(mask_BL.shape[1], device=mask_BL.device) == 0
            seen_B11L = (mask_BL | front_L)[:, None, None]
        key_BLD, value_BLD = self.key_value(normed_BLD).chunk(2, dim=2)
        attended_BNQK = nn.functional.scaled_dot_product_attention(
            self._heads(self.query(queried_BQD)),
            self._heads(key_BLD),
            self._heads(value_BLD),
            attn_mask=seen_B11L if last else None,
            is_causal=not last,
        )
        x_BQD = x_BLD + self.dropout(self.mix(attended_BNQK.transpose(1, 2).flatten(2)))
        return cast("Tensor", x_BQD + self.dropout(self.feed_forward(x_BQD)))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        num_rows, length, dim = x_BLD.shape
        apart = x_BLD.view(num_rows, length, self.num_heads, dim // self.num_heads)
        return apart.transpose(1, 2)


class _CausalAttention(SequenceModule):
    def __init__(self, spec: CausalAttention, embedding_dim: int) -> None:
        super().__init__(embedding_dim)
        self.positions = nn.Embedding(spec.max_positions, embedding_dim)
        nn.init.normal_(self.positions.weight, std=INIT_STD)
        self.layers = nn.ModuleList(
            _Layer(embedding_dim, spec.num_heads, spec.dropout) for _ in range(spec.num_layers)
        )
        self.norm = nn.LayerNorm(embedding_dim)

    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        length = mask_BL.shape[1]
        places_L = torch.arange(length, device=mask_BL.device)
        ages_BL = mask_BL.sum(dim=1, keepdim=True) - 1 - places_L
        ages_BL = ages_BL.clamp(0, self.positions.num_embeddings - 1)
        x_BLD = history_BLD + self.positions(ages_BL)
        for number, layer in enumerate(self.layers, start=1):
            x_BLD = layer(x_BLD, mask_BL, last=number == len(self.layers))
        return cast("Tensor", self.norm(x_BLD.squeeze(1)))
