"""FM: products of all pairs of embedded features.

Shape letters: B rows, I input width, C vectors per row of one width, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_mtl.network.interaction.base import Interaction, InteractionModule
from recsys_mtl.spec import spec


@spec
class FM(Interaction, kind="fm"):
    """The sum of the elementwise products of all pairs of vectors, behind the features themselves.

    Vectors pair up with those of their own width: ``sum_{i<j} v_i * v_j`` adds D columns for every
    table width that has at least two.

    References
    ----------
    S. Rendle, "Factorization Machines", ICDM 2010, lemma 3.1; X. He and T.-S. Chua, "Neural
    Factorization Machines for Sparse Predictive Analytics", SIGIR 2017, section 3.1 (the sum as
    input of a network, not summed over D).
    """

    def build(self, input_dim: int, vector_dims: Sequence[tuple[int, int]]) -> InteractionModule:
        """Make the module."""
        return _FM(input_dim, vector_dims)


class _FM(InteractionModule):
    def __init__(self, input_dim: int, vector_dims: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.paired = [place for place, (count, _) in enumerate(vector_dims) if count > 1]
        self.output_dim = input_dim + sum(vector_dims[place][1] for place in self.paired)

    def forward(self, x_BI: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        if not self.paired:
            return x_BI
        return torch.cat([x_BI, *(_pairs(vectors[place]) for place in self.paired)], dim=1)


def _pairs(vectors_BCD: Tensor) -> Tensor:
    """Return the sum over pairs: half of what the square of the sum has over the sum of squares."""
    squares_BD = vectors_BCD.square().sum(dim=1)
    return (vectors_BCD.sum(dim=1).square() - squares_BD) / 2
