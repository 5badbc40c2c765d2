"""SequenceEncoder: how the events of a `History` become one vector.

Shape letters: B rows, L sequence length, D embedding dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_mtl.schema.features import Name
from recsys_mtl.spec import Spec, spec


class SequenceModule(nn.Module, ABC):
    """The network part of a sequence encoder. A row without events gets a learned vector.

    Parameters
    ----------
    embedding_dim
        Width D of the events and of the result.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.empty_D = nn.Parameter(torch.zeros(embedding_dim))

    def forward(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        """Return one vector (B, D) per row.

        A batch whose histories are all empty goes through the encoder as one empty column, so that
        every parameter is in the graph of every batch, as distributed training requires.

        Parameters
        ----------
        history_BLD
            Events, oldest first, each row's at the front; 0 behind them.
        mask_BL
            Whether there is an event.
        target_BD
            The vector of the item to be scored, where it shares the history's table.
        """
        if mask_BL.shape[1] == 0:
            history_BLD = nn.functional.pad(history_BLD, (0, 0, 0, 1))
            mask_BL = nn.functional.pad(mask_BL, (0, 1))
        encoded_BD = self.encode(history_BLD, mask_BL, target_BD)
        return encoded_BD.where(mask_BL.any(dim=1, keepdim=True), self.empty_D.to(encoded_BD.dtype))

    @abstractmethod
    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        """Return one finite vector (B, D) per row; those of rows without events are not looked at.

        L is at least 1 here.
        What stands behind the mask must have no influence, and no event on those before it.
        """


def last_event(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return what stands at each row's most recent event, (B, D); at the front where there is none."""
    last_B = (mask_BL.sum(dim=1) - 1).clamp(min=0)
    return states_BLD.take_along_dim(last_B[:, None, None], dim=1).squeeze(1)


@spec
class SequenceEncoder(Spec, ABC):
    """A choice of sequence encoder. Subclasses are specs with a `kind`, one file each.

    Parameters
    ----------
    feature
        Name of the `History` it is for; by default all that have no encoder of their own.
    """

    pooled_first: ClassVar[bool] = False
    """Whether the encoder may be given the mean of the events as the only event."""
    needs_target: ClassVar[bool] = False
    """Whether the encoder reads the vector of the item to be scored."""

    _: KW_ONLY
    feature: Name | None = None

    @abstractmethod
    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module for events of width `embedding_dim`."""
