"""Heads: how representations become logits.

Shape letters: B rows, H representation width, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Task
from recsys_mtl.spec import Spec


@dataclass(frozen=True)
class Headed:
    """What heads return.

    Parameters
    ----------
    logits_BZ
        Logits of all tasks side by side.
    extra_BX
        What the heads' own losses read beside the logits, such as the logits of an imputation.
    """

    logits_BZ: Tensor
    extra_BX: Tensor | None = None


@dataclass(frozen=True)
class RowLosses:
    """A loss per row and the row's weight in the mean, 0 where the row does not count; (B,) both."""

    losses_B: Tensor
    weights_B: Tensor


class HeadsModule(nn.Module, ABC):
    """The network part of heads.

    Attributes
    ----------
    towers : nn.ModuleList
        One module per task with all the parameters that are this task's own: optimizers and balancing
        find them here. Parameters elsewhere are shared.
    """

    towers: nn.ModuleList
    signed_losses: bool = False
    """Whether a batch's mean of a loss that the heads define may be negative."""

    @abstractmethod
    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        """Map T representations (B, H) to logits (B, Z), never to probabilities."""

    @abstractmethod
    def set_bias(self, bias_Z: Tensor) -> None:
        """Start the logits at these values, such as those of the base rates."""

    def row_losses(self, number: int, headed: Headed, targets: Targets) -> RowLosses | None:
        """Return the loss of task `number` where the heads define it; None: the task's own loss."""
        del number, headed, targets
        return None

    def row_weights(self, number: int, targets: Targets) -> Tensor | None:
        """Return what rows (B,) count in the loss that the heads define; None: the task's weights."""
        del number, targets
        return None

    def defines_loss(self, number: int) -> bool:
        """Tell whether `row_losses` gives the loss of task `number`."""
        del number
        return False

    def penalty(self, headed: Headed, targets: Targets) -> Tensor | None:
        """Return a term that is added to the sum of the tasks' losses; None: no term."""
        del headed, targets
        return None


class Heads(Spec, ABC):
    """A choice of heads. Subclasses are specs with a `kind`, one file each."""

    links: ClassVar[Literal["none", "within", "parents"] | None] = None
    """Which links between tasks the heads act on; None: they do not say."""

    @abstractmethod
    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module for representations of width `input_dim`."""


def idle_links(heads: Heads, tasks: Sequence[Task]) -> str | None:
    """Say which of the heads' or the tasks' links change nothing, and what to do; None: all count."""
    linked = [task.name for task in tasks if task.built_on]
    if heads.links == "parents" and not linked:
        return (
            f"Heads {heads.kind!r} connect tasks with their parents, and no task has any: they equal"
            f" 'towers'. Name them, as in Binary({tasks[-1].name!r}, ..., parents=[...]), or choose"
            " heads 'towers'."
        )
    if heads.links not in {"none", "within"}:
        return None
    idle = [
        task
        for task in tasks
        if task.parents and not (heads.links == "within" and set(task.parents) == {task.within})
    ]
    if not idle:
        return None
    return (
        f"Task {idle[0].name!r} has parents {list(idle[0].built_on)}, which heads {heads.kind!r} do not"
        " read. Remove them, or choose heads 'serial', 'aitm' or 'dbmtl'."
    )


def logit_slices(tasks: Sequence[Task]) -> tuple[slice, ...]:
    """Return where each task's logits lie among the Z of all tasks."""
    slices, start = [], 0
    for task in tasks:
        slices.append(slice(start, start + task.num_logits))
        start += task.num_logits
    return tuple(slices)
