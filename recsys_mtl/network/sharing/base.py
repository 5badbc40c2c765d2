"""Sharing: how tasks share; one input, one representation per task.

Shape letters: B rows, V views, I input width, H representation width, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.layers import FirstLinear
from recsys_mtl.spec import Spec

Dims = tuple[Annotated[int, Field(ge=1)], ...]
ExpertDims = Annotated[Dims, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Roster:
    """Which experts a level has, and which of them each of its gates mixes.

    Parameters
    ----------
    names
        Name of every expert, in the order of their outputs.
    reads
        Per gate, the number of the expert behind each of its columns, from 0.
    bypassing
        Numbers of the experts that a task reads past the gates, too, by a residual or a self-gate.
    """

    names: tuple[str, ...]
    reads: tuple[tuple[int, ...], ...]
    bypassing: tuple[int, ...] = ()


def whole_roster(names: Sequence[str], num_gates: int, *, bypassing: bool = False) -> Roster:
    """Return the roster of a level in which every gate mixes all experts."""
    everyone = tuple(range(len(names)))
    return Roster(tuple(names), (everyone,) * num_gates, everyone if bypassing else ())


def expert_names(owners: Sequence[str], count: int) -> tuple[str, ...]:
    """Name so many experts of each owner in turn, such as ``"ctr #1"``, from 1."""
    return tuple(f"{owner} #{number}" for owner in owners for number in range(1, count + 1))


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
    experts
        Per level, the output (B, H) of every expert; empty without experts.
    penalty
        A term of the loss that the structure adds in training, such as a load-balance loss.
    rosters
        Per level, which expert each column of the gates is. Without them gates that are as wide as
        the level has experts are taken to mix all of them in order; of others no load is told.
    """

    tasks: tuple[Tensor, ...]
    gates: tuple[tuple[Tensor, ...], ...] = ()
    experts: tuple[tuple[Tensor, ...], ...] = ()
    penalty: Tensor | None = None
    rosters: tuple[Roster, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Where the numbers of each feature lie among the I of a view.

    Parameters
    ----------
    slices
        By feature name.
    """

    slices: Mapping[str, slice] = field(default_factory=dict)

    def of(self, names: Sequence[str]) -> list[int]:
        """Return the positions of these features' numbers.

        Raises
        ------
        SchemaError
            If there is no such feature.
        """
        unknown = [name for name in names if name not in self.slices]
        if unknown:
            raise SchemaError(
                f"Feature {unknown[0]!r} must be one of the schema's. Found: {sorted(self.slices)}."
            )
        return [i for name in names for i in range(self.slices[name].start, self.slices[name].stop)]


class SharingModule(nn.Module, ABC):
    """The network part of a sharing structure. `output_dim` is the width H of each representation."""

    output_dim: int

    @abstractmethod
    def forward(self, x_BVI: Tensor) -> Shared:
        """Map the input views to one representation per task."""

    def first_linears(self) -> tuple[FirstLinear, ...]:
        """Return all layers that read the input if they are linear and there is one view; else none.

        Their outputs are sums over features, so what a feature of a user adds can be computed once for
        all pairs of that user (`recsys_mtl.network.factored`).
        """
        return ()

    def from_linears(self, outputs: Iterator[Tensor]) -> Shared:
        """Do what `forward` does from the outputs of `first_linears`, for evaluation.

        Parameters
        ----------
        outputs
            Of each layer in turn, (B, its outputs). They are made when asked for, so that one can leave
            the cache before the next, and may be overwritten.
        """
        raise NotImplementedError(f"{type(self).__name__} names no first linear layers.")


class Sharing(Spec, ABC):
    """A choice of sharing structure. Subclasses are specs with a `kind`, one file each."""

    def num_views(self, num_tasks: int) -> int:
        """Return how many embeddings of every value the structure wants, V. Tables widen by it."""
        del num_tasks
        return 1

    @abstractmethod
    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module.

        Parameters
        ----------
        input_dim
            Width I of each view.
        tasks
            Names of the T tasks.
        columns
            Where each feature's numbers lie in a view, for structures that read some by name.
        """
