"""Sharing: how tasks share; one input, one representation per task.

Shape letters: B rows, V views, I input width, H representation width, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.spec import Spec

Dims = tuple[Annotated[int, Field(ge=1)], ...]
ExpertDims = Annotated[Dims, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Shared:
    """What a sharing structure returns.

    Parameters
    ----------
    tasks
        One representation (B, H) per task. Structures may give tasks the same tensor.
    gates
        Per level, one gate (B, E) per task, then the shared one if there is one; empty without gates.
        They are returned, never kept on a module.
    """

    tasks: tuple[Tensor, ...]
    gates: tuple[tuple[Tensor, ...], ...] = ()


class SharingModule(nn.Module, ABC):
    """The network part of a sharing structure. `output_dim` is the width H of each representation."""

    output_dim: int

    @abstractmethod
    def forward(self, x_BVI: Tensor) -> Shared:
        """Map the input views to one representation per task."""


class Sharing(Spec, ABC):
    """A choice of sharing structure. Subclasses are specs with a `kind`, one file each."""

    @abstractmethod
    def build(self, input_dim: int, num_tasks: int) -> SharingModule:
        """Make the module for inputs of width `input_dim`."""
