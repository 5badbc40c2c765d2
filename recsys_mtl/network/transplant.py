"""Transplant: the weights of one network, moved into another whose features, tables or tasks differ.

What the old network knows keeps its place: table rows by bucket, columns of first layers by feature,
towers and other layers of one task by the task's name, all else by parameter name. Weights that read
new columns start at 0, so the new network scores as the old one did.

No structure is known by name here. Which axes of a parameter follow the input, and which layers belong
to single tasks, is found by building the structure once more with one column, or one task, more.

Shape letters: R table rows, I input width, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys_mtl.encoding import InputLayout
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.extractor import Extractor
from recsys_mtl.network.heads import Heads
from recsys_mtl.network.interaction import Interaction
from recsys_mtl.network.model import MultiTaskModel
from recsys_mtl.network.numbers import NumberLayer
from recsys_mtl.network.probing import input_copies, task_lists
from recsys_mtl.network.sequence import SequenceEncoder
from recsys_mtl.network.sharing import Columns, Sharing
from recsys_mtl.spec import differences

_PARTS = ("interaction", "sharing", "heads")

_NUMBERS = "features.numbers."

Axes = tuple[Tensor | None, ...]
"""Per axis, where each place was in the old network, -1 where it is new; None: all where they are."""


@dataclass(frozen=True)
class Plan:
    """A network, and what it was built from."""

    model: MultiTaskModel
    layout: InputLayout
    interaction: Interaction
    sharing: Sharing
    heads: Heads
    extractors: Sequence[Extractor]
    sequences: Sequence[SequenceEncoder] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that it was built from, as JSON values."""
        one = {part: getattr(self, part).to_dict() for part in _PARTS}
        lists = {"extractors": self.extractors, "sequences": self.sequences}
        return one | {part: [each.to_dict() for each in found] for part, found in lists.items()}

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.model.outputs.tasks]

    @property
    def columns(self) -> Columns:
        """Where each feature's numbers lie."""
        return self.model.features.columns

    def histories(self) -> list[str]:
        """Return the histories, in the order of their encoders."""
        positions = [
            position
            for table in self.model.embeddings.each()
            for position in (*table.list_positions, *table.event_positions)
        ]
        return [self.layout.list_names[p] for p in positions if p in self.layout.histories]

    def extracted(self) -> list[str]:
        """Return the features that have an extractor, in the order of the extractors."""
        named = [extractor.feature for extractor in self.extractors]
        return [name for name, _ in self.layout.dense_names if name in named]

    def encoded_numbers(self, key: str) -> list[str]:
        """Return the features of a layer that encodes numbers, by its name."""
        layer = self.model.features.numbers[key]
        return [one.name for one in layer.features] if isinstance(layer, NumberLayer) else []


class Transplant:
    """Where everything in a new network comes from.

    Parameters
    ----------
    old, new
        The networks. Of the new one this process may hold a share of the table rows.
    origins
        Per table of both, the old row of each new row, -1 where it is new; from `row_origins`.

    Raises
    ------
    SchemaError
        If a part of the new network cannot take over what the old one knows.
    """

    def __init__(self, old: Plan, new: Plan, origins: Mapping[str, npt.NDArray[np.int64]]) -> None:
        for part in _PARTS:
            kinds = [getattr(plan, part).kind for plan in (old, new)]
            if kinds[0] != kinds[1]:
                raise SchemaError(
                    f"A warm start must keep the {part} of the model it goes on from, {kinds[0]!r}."
                    f" Found {kinds[1]!r}: keep it, or train afresh."
                )
        self.old, self.new = old, new
        self._check_tasks()
        self._check_widths()
        self._rows = [self._origins_of(number, origins) for number in range(self._num_matrices())]
        self._columns = self._column_origins()
        self._lists = self._list_origins()
        self._copies = {} if self._columns is None else self._input_copies()
        self._known = {name: value.cpu() for name, value in old.model.state_dict().items()}
        fresh = new.model.state_dict()
        self._axes = {name: self._find_axes(name, value) for name, value in fresh.items()}

    def table_rows(self, number: int) -> tuple[int | None, Tensor]:
        """Return which old matrix a matrix of tables comes from, and of which row each row held."""
        return self._rows[number]

    def source(self, name: str) -> str | None:
        """Return the old name of a parameter that is no table; None if the parameter is new."""
        parts = name.split(".")
        if name.startswith(_NUMBERS) and parts[2] not in self.old.model.features.numbers:
            return None
        for place in range(1, len(parts)):
            places = self._lists.get(".".join(name.split(".")[:place]))
            if places is None:
                continue
            known = places[int(parts[place])]
            if known is None:
                return None
            parts[place] = str(known)
        return ".".join(parts)

    def moved(self, name: str, known: Tensor, into: Tensor | None = None) -> Tensor:
        """Return what is known of a parameter that is no table, at its new places.

        Parameters
        ----------
        name
            The new parameter.
        known
            A tensor shaped as the old parameter, such as a moment of its optimizer.
        into
            What the new places hold; by default zeros.
        """
        axes = self._axes[name]
        if axes is None or all(places is None for places in axes):
            return known.clone()
        shape = self.new.model.state_dict()[name].shape
        out = known.new_zeros(shape) if into is None else into.clone()
        new, old = [], []
        for places, size in zip(axes, shape, strict=True):
            found = torch.arange(size) if places is None else places
            new.append(torch.nonzero(found >= 0)[:, 0])
            old.append(found[found >= 0])
        out[_cross(new)] = known[_cross(old)]
        return out

    @torch.no_grad()
    def apply(self) -> None:
        """Give the new network, on the CPU, what the old one knows."""
        for number, table in enumerate(self.new.model.embeddings.each()):
            source, places_R = self._rows[number]
            if source is not None:
                known_RD = self.old.model.embeddings.each()[source].weight_RD.detach().cpu()
                kept_R = places_R >= 0
                table.weight_RD[kept_R] = known_RD[places_R[kept_R]]
        for name, value in self.new.model.state_dict().items():
            source_name = self.source(name)
            if self._axes[name] is not None and source_name is not None:
                start = self._with_blind_columns(name, value)
                value.copy_(self.moved(name, self._known[source_name], start))

    def _with_blind_columns(self, name: str, fresh: Tensor) -> Tensor:
        """Return fresh weights whose known outputs do not read the new columns."""
        axes = self._axes[name] or ()
        start = fresh.clone()
        if len(axes) > 1 and (last := axes[-1]) is not None:
            others = [
                torch.arange(size) if places is None else torch.nonzero(places >= 0)[:, 0]
                for places, size in zip(axes[:-1], fresh.shape[:-1], strict=True)
            ]
            start[_cross([*others, torch.nonzero(last < 0)[:, 0]])] = 0
        return start

    def _check_tasks(self) -> None:
        before = {task.name: task for task in self.old.model.outputs.tasks}
        for task in self.new.model.outputs.tasks:
            known = before.get(task.name)
            if known is not None and (known.kind, known.num_logits) != (task.kind, task.num_logits):
                raise SchemaError(
                    f"Task {task.name!r} must stay {known.kind!r} with {known.num_logits} logits."
                    f" Found {task.kind!r} with {task.num_logits}: give the task another name."
                )

    def _check_widths(self) -> None:
        """Check that vectors of known tables stay as wide as they are."""
        widths = [
            {name: table.dim for table in plan.model.embeddings.each() for name in table.bases}
            for plan in (self.old, self.new)
        ]
        for name, width in widths[1].items():
            if widths[0].get(name, width) != width:
                raise SchemaError(
                    f"Table {name!r} must keep vectors of width {widths[0][name]}. Found {width}: keep"
                    " embedding_dim (and the tasks, if sharing has a view for each), or train afresh."
                )

    def _num_matrices(self) -> int:
        return len(self.new.model.embeddings.each())

    def _origins_of(
        self, number: int, origins: Mapping[str, npt.NDArray[np.int64]]
    ) -> tuple[int | None, Tensor]:
        table = self.new.model.embeddings.each()[number]
        places_R = torch.full((table.all_rows,), -1)
        dims = [one.dim for one in self.old.model.embeddings.each()]
        if table.dim not in dims:
            return None, table.shard.own(places_R, 0)
        source = dims.index(table.dim)
        bases = self.old.model.embeddings.each()[source].bases
        for name, base in table.bases.items():
            if name in origins and name in bases:
                found = torch.from_numpy(origins[name])
                moved = torch.where(found >= 0, found + bases[name], found)
                places_R[base : base + table.num_rows[name]] = moved
        return source, table.shard.own(places_R, 0)

    def _column_origins(self) -> Tensor | None:
        """Return the old column of each of the I; None if no column has moved."""
        before, after = self.old.columns.slices, self.new.columns.slices
        if before == after:
            return None
        places_I = torch.full((_width(self.new.columns),), -1)
        for name, here in after.items():
            there = before.get(name)
            if there is None:
                continue
            if here.stop - here.start != there.stop - there.start:
                raise SchemaError(
                    f"Feature {name!r} must keep its {there.stop - there.start} numbers in the"
                    f" network. Found {here.stop - here.start}: keep its extractor, or train afresh."
                )
            places_I[here] = torch.arange(there.start, there.stop)
        return places_I

    def _input_copies(self) -> dict[str, tuple[int, ...]]:
        for plan in (self.old, self.new):
            if plan.model.features.output_dim != _width(plan.columns):
                raise SchemaError(
                    f"Features cannot be added to or removed from interaction {plan.interaction.kind!r}:"
                    " numbers of features.interaction are made of all of them together. Keep the"
                    " features, or train afresh."
                )
        return input_copies(self.new.model, self.new.interaction, self.new.sharing, self.new.heads)

    def _list_origins(self) -> dict[str, list[int | None]]:
        """Return for each list of layers by feature or task the old number of each entry."""
        found = {
            "features.sequences": _numbers(self.old.histories(), self.new.histories()),
            "features.extractors": _numbers(self.old.extracted(), self.new.extracted()),
        }
        before, after = self.old.task_names, self.new.task_names
        if before == after:
            return found
        tasks = _numbers(before, after)
        found["heads.towers"] = tasks
        for name, each in task_lists(self.new.model, self.new.sharing).items():
            found[name] = [
                None if task is None else task * each + own for task in tasks for own in range(each)
            ]
        return found

    def _find_axes(self, name: str, fresh: Tensor) -> Axes | None:
        """Return where a parameter's places were; None for one that is a table or new."""
        source = self.source(name)
        if name.startswith("features.embeddings.") or source is None:
            return None
        known = self._known.get(source)
        if known is None or known.dim() != fresh.dim():
            raise self._unlike(name, None if known is None else known.shape, fresh.shape)
        if name.startswith("outputs."):
            tasks = _numbers(self.old.task_names, self.new.task_names)
            return (_axis(tasks),)
        if name.startswith(_NUMBERS):
            return self._axes_of_numbers(name, known, fresh)
        copies = self._copies.get(name, (0,) * fresh.dim())
        axes = tuple(self._places(count) for count in copies)
        width = _width(self.old.columns)
        for places, count, was, size in zip(axes, copies, known.shape, fresh.shape, strict=True):
            if (places is None and was != size) or (places is not None and was != count * width):
                raise self._unlike(name, known.shape, fresh.shape)
        return axes

    def _axes_of_numbers(self, name: str, known: Tensor, fresh: Tensor) -> Axes:
        """Return where the features of a layer that encodes numbers, and their bins, were."""
        key = name.removeprefix(_NUMBERS).split(".")[0]
        names = [plan.encoded_numbers(key) for plan in (self.old, self.new)]
        axes: list[Tensor | None] = [_axis(_numbers(*names)), *[None] * (fresh.dim() - 1)]
        if name.endswith("weight_PKD"):  # places behind a feature's bins are 0 in both
            bins_K = torch.arange(fresh.shape[1])
            axes[1] = bins_K.where(bins_K < known.shape[1], -1)
        return tuple(axes)

    def _unlike(self, name: str, was: torch.Size | None, shape: torch.Size) -> SchemaError:
        """Return the error for a parameter that has no like in the old network."""
        told = f"{name} has shape {tuple(shape)}, and "
        told += "was not there" if was is None else f"had {tuple(was)}"
        changed = differences(self.old.to_dict(), self.new.to_dict())
        if changed:
            kept = "; ".join(f"{path} {before!r}" for path, before, _ in changed)
            found = "; ".join(f"{path} {after!r}" for path, _, after in changed)
            rule = (
                f"A warm start must keep what makes up the network: {kept}. Found {found}: {told}."
            )
        else:
            rule = f"A warm start must keep what makes up the network. Found another: {told}."
        return SchemaError(f"{rule} Keep the settings, or train afresh.")

    def _places(self, copies: int) -> Tensor | None:
        """Return the old places along an axis that has the input's columns so many times."""
        if copies == 0 or self._columns is None:
            return None
        width, places_I = _width(self.old.columns), self._columns
        return torch.cat(
            [torch.where(places_I >= 0, places_I + n * width, -1) for n in range(copies)]
        )


def _numbers(before: Sequence[str], after: Sequence[str]) -> list[int | None]:
    """Return the old number of each name, None where there is none."""
    return [before.index(name) if name in before else None for name in after]


def _axis(numbers: Sequence[int | None]) -> Tensor:
    return torch.tensor([-1 if number is None else number for number in numbers])


def _width(columns: Columns) -> int:
    return max((place.stop for place in columns.slices.values()), default=0)


def _cross(indices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return indices of the block of all combinations."""
    return torch.meshgrid(*indices, indexing="ij")
