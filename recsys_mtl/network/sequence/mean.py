"""Mean: a history as an unordered bag."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule
from recsys_mtl.spec import spec


@spec
class Mean(SequenceEncoder, kind="mean"):
    """The mean of the events' vectors. The table itself takes it, so that events are never laid out."""

    pooled_first: ClassVar[bool] = True

    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module."""
        return _Mean(embedding_dim)


class _Mean(SequenceModule):
    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        del target_BD
        mask_BL1 = mask_BL[..., None].to(history_BLD.dtype)
        return (history_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1).clamp(min=1)
