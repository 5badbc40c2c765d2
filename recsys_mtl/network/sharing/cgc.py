"""CGC: each task mixes its own experts with the shared ones, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated

from pydantic import Field

from recsys_mtl.network.sharing.base import Columns, Dropout, ExpertDims, Sharing, SharingModule
from recsys_mtl.network.sharing.gating import Gating
from recsys_mtl.network.sharing.ple import PLE
from recsys_mtl.spec import spec


@spec
class CGC(Sharing, kind="cgc"):
    """Customized gate control: PLE with one level.

    Parameters
    ----------
    num_shared_experts, num_task_experts
        Experts that are shared, and that each task has for itself. Not both 0.
    expert_dims
        Widths of each expert's layers, at least one.
    dropout
        Share of activations dropped after each expert layer in training.
    normalize_experts
        End experts in layer normalisation and Swish instead of ReLU.
    gating
        How the gates behave.

    References
    ----------
    H. Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations", RecSys 2020, section 4.1.
    """

    num_shared_experts: Annotated[int, Field(ge=0)] = 2
    num_task_experts: Annotated[int, Field(ge=0)] = 2
    _: KW_ONLY
    expert_dims: ExpertDims = (256, 128)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def __post_init__(self) -> None:
        if self.num_shared_experts + self.num_task_experts == 0:
            raise ValueError("num_shared_experts and num_task_experts must not both be 0")

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        levels = PLE(
            1,
            num_shared_experts=self.num_shared_experts,
            num_task_experts=self.num_task_experts,
            expert_dims=self.expert_dims,
            dropout=self.dropout,
            normalize_experts=self.normalize_experts,
            gating=self.gating,
        )
        return levels.build(input_dim, tasks, columns)
