"""No interaction: features stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recsys_mtl.network.interaction.base import Interaction, InteractionModule
from recsys_mtl.spec import spec


@spec
class NoInteraction(Interaction, kind="none"):
    """Features stand side by side; experts find their own crossings."""

    def build(self, input_dim: int, vector_dims: Sequence[tuple[int, int]]) -> InteractionModule:
        """Make the module."""
        del vector_dims
        return _NoInteraction(input_dim)


class _NoInteraction(InteractionModule):
    identity = True

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.output_dim = input_dim

    def forward(self, x_BI: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        del vectors
        return x_BI
