"""ImageCNN: a small convolutional network over the pixels of an image."""

from __future__ import annotations

from dataclasses import KW_ONLY
from math import prod

from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.extractor.base import Extractor
from recsys_mtl.network.layers import MLP
from recsys_mtl.network.sharing.base import Count, Dropout, ExpertDims
from recsys_mtl.spec import spec


@spec
class ImageCNN(Extractor, kind="image_cnn"):
    """Blocks of convolution, ReLU and max pooling, then one layer; for small images.

    Parameters
    ----------
    feature
        Name of the `Vector` feature it reads and replaces.
    shape
        Channels, height and width of the image. The vector holds its pixels channel by channel, row by
        row.
    channels
        Channels of each block, at least one block.
    kernel_size
        Height and width of the convolutions, an odd number from 1; borders are filled with zeros.
    pooling
        Height and width of the squares whose maximum each block keeps, from 1, which keeps all.
    output_dim
        Width of the result, from 1.
    dropout
        Share of the results dropped in training, 0 <= dropout < 1.

    References
    ----------
    Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
    IEEE 86(11), 1998, section II (ReLU and maxima in place of sigmoids and means).
    """

    shape: tuple[Count, Count, Count]
    _: KW_ONLY
    channels: ExpertDims = (16, 32)
    kernel_size: Count = 3
    pooling: Count = 2
    output_dim: Count = 64
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd. Found {self.kernel_size}")
        if 0 in self._pooled():
            raise ValueError(
                f"shape must leave a pixel after {len(self.channels)} blocks that pool"
                f" {self.pooling} by {self.pooling}. Found {self.shape}. Name fewer channels, or"
                " pooling=1"
            )

    def build(self, input_dim: int) -> nn.Module:
        """Make the module: (B, input_dim) -> (B, output_dim).

        Raises
        ------
        SchemaError
            If the image has another number of pixels.
        """
        if prod(self.shape) != input_dim:
            raise SchemaError(
                f"shape of the image {self.feature!r} must make {input_dim} numbers, the dim of the"
                f" feature. Found {self.shape}, which makes {prod(self.shape)}."
            )
        layers: list[nn.Module] = [nn.Unflatten(1, self.shape)]
        befores = [self.shape[0], *self.channels]
        for before, after in zip(befores, self.channels, strict=False):
            layers += [
                nn.Conv2d(before, after, self.kernel_size, padding="same"),
                nn.ReLU(inplace=True),
            ]
            if self.pooling > 1:
                layers.append(nn.MaxPool2d(self.pooling))
        flat = prod(self._pooled()) * self.channels[-1]
        head = MLP(flat, (self.output_dim,), dropout=self.dropout)
        return nn.Sequential(*layers, nn.Flatten(), head)

    def _pooled(self) -> tuple[int, int]:
        """Return height and width after the last block."""
        factor = self.pooling ** len(self.channels)
        return self.shape[1] // factor, self.shape[2] // factor
