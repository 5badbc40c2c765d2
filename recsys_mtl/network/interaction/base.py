"""Interaction: how features meet before tasks share.

Shape letters: B rows, I input width, C vectors per row of one width, D embedding dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from recsys_mtl.spec import Spec


class InteractionModule(nn.Module, ABC):
    """The network part of an interaction. `output_dim` is its width, at least that of its input."""

    output_dim: int
    identity: bool = False
    """Whether the result is the input as it is."""

    @abstractmethod
    def forward(self, x_BI: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        """Return the input of sharing, (B, output_dim).

        The first I columns keep their meaning: structures that read features by name find them there.

        Parameters
        ----------
        x_BI
            All features side by side.
        vectors
            The embedded ones again, (B, C, D) per table width.
        """


class Interaction(Spec, ABC):
    """A choice of interaction. Subclasses are specs with a `kind`, one file each."""

    @abstractmethod
    def build(self, input_dim: int, vector_dims: Sequence[tuple[int, int]]) -> InteractionModule:
        """Make the module.

        Parameters
        ----------
        input_dim
            Width I of all features side by side.
        vector_dims
            Per table width: number C of vectors and their width D.
        """
