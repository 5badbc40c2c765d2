"""Numbers to vectors: piecewise linear and periodic encodings, all features of one kind at a time.

Shape letters: B rows, P features of one kind and width, K bins or frequencies (the most that one of the
features has), D width of the vectors, C dense columns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import EncodedNumber
from recsys_mtl.schema import PIECEWISE_REACH


class NumberLayer(nn.Module, ABC):
    """Vectors of P numbers: a linear map of each one's encoding, and ReLU; missing ones have their own.

    Parameters
    ----------
    features
        Of one kind and width.
    columns
        Where each number stands among the dense ones; its flag, 1 where it is missing, is next to it.
    sizes
        Width of each feature's encoding.
    dim
        Width D of the vectors.
    """

    value_columns: Tensor

    def __init__(
        self,
        features: Sequence[EncodedNumber],
        columns: Sequence[int],
        sizes: Sequence[int],
        dim: int,
    ) -> None:
        super().__init__()
        self.features, self.dim = tuple(features), dim
        self.register_buffer("value_columns", torch.tensor(columns, dtype=torch.int64), False)
        # as torch's linear layers, each by the width of its own encoding; nothing reads the rest
        bounds_P = torch.tensor(sizes, dtype=torch.float32).rsqrt()
        used_PK = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        drawn_PKD = torch.empty(len(sizes), max(sizes), dim).uniform_(-1, 1)
        self.weight_PKD = nn.Parameter(drawn_PKD * bounds_P[:, None, None] * used_PK[:, :, None])
        self.bias_PD = nn.Parameter(
            torch.empty(len(sizes), dim).uniform_(-1, 1) * bounds_P[:, None]
        )
        self.missing_PD = nn.Parameter(torch.zeros(len(sizes), dim))

    @abstractmethod
    def encode(self, numbers_PB: Tensor) -> Tensor:
        """Return the encodings, (P, B, K)."""

    def forward(self, dense_BC: Tensor) -> Tensor:
        """Return the vectors side by side, (B, P * D)."""
        numbers_PB = dense_BC.index_select(1, self.value_columns).T
        missing_BP = dense_BC.index_select(1, self.value_columns + 1) > 0
        found_PBD = torch.baddbmm(self.bias_PD[:, None], self.encode(numbers_PB), self.weight_PKD)
        found_BPD = found_PBD.relu().transpose(0, 1)
        missing_PD = self.missing_PD.to(found_BPD.dtype)
        return torch.where(missing_BP[:, :, None], missing_PD, found_BPD).flatten(1)


class Piecewise(NumberLayer):
    """PLE-LR: how far each bin is filled, then a linear map and ReLU.

    A number is given as its place among the feature's bins: t + s is s of the way through bin t. Bins
    below are filled (1), those above empty (0). The first falls below 0 and the last rises above 1 for
    numbers outside, by `PIECEWISE_REACH` at most.

    References
    ----------
    Y. Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
    equation 1.
    """

    lowest_PK: Tensor
    highest_PK: Tensor

    def __init__(self, features: Sequence[EncodedNumber], columns: Sequence[int], dim: int) -> None:
        sizes = [feature.size for feature in features]
        super().__init__(features, columns, sizes, dim)
        lowest_PK = torch.zeros(len(sizes), max(sizes))
        highest_PK = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).float()
        lowest_PK[:, 0] = -PIECEWISE_REACH
        highest_PK[range(len(sizes)), [size - 1 for size in sizes]] += PIECEWISE_REACH
        self.register_buffer("lowest_PK", lowest_PK, False)
        self.register_buffer("highest_PK", highest_PK, False)

    def encode(self, numbers_PB: Tensor) -> Tensor:
        """Return how far each bin is filled."""
        bins_K = torch.arange(self.lowest_PK.shape[1], device=numbers_PB.device)
        above_PBK = numbers_PB[:, :, None] - bins_K
        return above_PBK.clamp(self.lowest_PK[:, None], self.highest_PK[:, None])


class Periodic(NumberLayer):
    """PLR: cosine and sine of trained frequencies, then a linear map and ReLU.

    References
    ----------
    Y. Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
    equation 2.
    """

    def __init__(self, features: Sequence[EncodedNumber], columns: Sequence[int], dim: int) -> None:
        sizes = [feature.size for feature in features]
        super().__init__(features, columns, [2 * size for size in sizes], dim)
        # an outlier among the frequencies makes training unstable: none is beyond 3 deviations
        drawn_PK = nn.init.trunc_normal_(torch.empty(len(sizes), max(sizes)), a=-3, b=3)
        scale_P = torch.tensor([feature.scale for feature in features])
        self.frequency_PK = nn.Parameter(drawn_PK * scale_P[:, None])

    def encode(self, numbers_PB: Tensor) -> Tensor:
        """Return cosine and sine, frequency by frequency."""
        angle_PBK = 2 * math.pi * numbers_PB[:, :, None] * self.frequency_PK[:, None]
        return torch.stack([angle_PBK.cos(), angle_PBK.sin()], dim=-1).flatten(2)


_LAYERS = {"piecewise": Piecewise, "periodic": Periodic}


def number_layers(
    features: Sequence[EncodedNumber], columns: Sequence[int], embedding_dim: int
) -> nn.ModuleDict:
    """Make a layer for the features of each kind and width, periodic ones by frequencies, too.

    Parameters
    ----------
    features
        The numbers to be encoded.
    columns
        Where each stands among the dense ones.
    embedding_dim
        Width of those that name none.
    """
    groups: dict[str, list[int]] = {}
    for place, feature in enumerate(features):
        # bins that a feature lacks stay empty, frequencies cannot
        size = f"_{feature.size}" if feature.kind == "periodic" else ""
        key = f"{feature.kind}{size}_{feature.dim or embedding_dim}"
        groups.setdefault(key, []).append(place)
    return nn.ModuleDict(
        {
            key: _LAYERS[features[places[0]].kind](
                [features[place] for place in places],
                [columns[place] for place in places],
                features[places[0]].dim or embedding_dim,
            )
            for key, places in groups.items()
        }
    )
