"""MLPExtractor: layers over a given vector, such as the embedding of a text."""

from __future__ import annotations

from dataclasses import KW_ONLY

from torch import nn

from recsys_mtl.network.extractor.base import Extractor
from recsys_mtl.network.layers import MLP
from recsys_mtl.network.sharing.base import Dropout, ExpertDims
from recsys_mtl.spec import spec


@spec
class MLPExtractor(Extractor, kind="mlp"):
    """Linear layers with ReLU that narrow a wide vector before it meets the other features.

    Parameters
    ----------
    feature
        Name of the `Vector` feature it reads and replaces.
    dims
        Widths of the layers, at least one.
    dropout
        Share of activations dropped after each layer in training, 0 <= dropout < 1.
    """

    _: KW_ONLY
    dims: ExpertDims = (64,)
    dropout: Dropout = 0.0

    def build(self, input_dim: int) -> nn.Module:
        """Make the module: (B, input_dim) -> (B, dims[-1])."""
        return MLP(input_dim, self.dims, dropout=self.dropout)
