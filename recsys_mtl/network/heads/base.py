"""Heads: how representations become logits.

Shape letters: B rows, H representation width, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from recsys_mtl.schema import Task
from recsys_mtl.spec import Spec


class HeadsModule(nn.Module, ABC):
    """The network part of heads."""

    @abstractmethod
    def forward(self, tasks: tuple[Tensor, ...]) -> Tensor:
        """Map T representations (B, H) to logits (B, Z), never to probabilities."""

    @abstractmethod
    def set_bias(self, bias_Z: Tensor) -> None:
        """Start the logits at these values, such as those of the base rates."""


class Heads(Spec, ABC):
    """A choice of heads. Subclasses are specs with a `kind`, one file each."""

    @abstractmethod
    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module for representations of width `input_dim`."""


def logit_slices(tasks: Sequence[Task]) -> tuple[slice, ...]:
    """Return where each task's logits lie among the Z of all tasks."""
    slices, start = [], 0
    for task in tasks:
        slices.append(slice(start, start + task.num_logits))
        start += task.num_logits
    return tuple(slices)
