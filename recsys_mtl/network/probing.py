"""Probing: what in a structure's parameters follows its input, and what belongs to single tasks.

A structure is built a second time with one column, or one task, more, and the shapes are compared. So
it need not say anything about itself, wherever it comes from.

Shape letters: I input width, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import Heads
from recsys_mtl.network.interaction import Interaction
from recsys_mtl.network.model import MultiTaskModel
from recsys_mtl.network.sharing import Sharing

_ANOTHER_TASK = "\N{WHITE QUESTION MARK ORNAMENT}"

Shapes = Mapping[str, torch.Size]


def input_copies(
    model: MultiTaskModel, interaction: Interaction, sharing: Sharing, heads: Heads
) -> dict[str, tuple[int, ...]]:
    """Return for each parameter behind the features how often the I columns lie along each axis.

    Parameters
    ----------
    model
        The network.
    interaction, sharing, heads
        What it was built from.

    Raises
    ------
    SchemaError
        If an axis grows with the input and holds something else, too.
    """
    width, views = model.features.output_dim, model.features.num_views
    vector_dims = [
        (table.num_lookups + len(table.event_positions), table.dim // views)
        for table in model.embeddings.each()
    ]
    names = [task.name for task in model.outputs.tasks]
    built = []
    for input_dim in (width, width + 1):
        with torch.random.fork_rng(devices=[]):  # what is drawn here is thrown away
            first = interaction.build(input_dim, vector_dims)
            second = sharing.build(first.output_dim, names, model.features.columns)
            third = heads.build(second.output_dim, model.outputs.tasks)
        built.append(
            _shapes("features.interaction", first)
            | _shapes("sharing", second)
            | _shapes("heads", third)
        )
    plain, wider = built
    copies = {}
    for name, shape in plain.items():
        grown = wider.get(name, torch.Size())
        if len(grown) != len(shape):
            raise _unreadable(name, "features")
        copies[name] = tuple(after - before for before, after in zip(shape, grown, strict=True))
        odd = [size for size, count in zip(shape, copies[name], strict=True) if count]
        if odd != [count * width for count in copies[name] if count]:
            raise _unreadable(name, "features")
    return copies


def task_lists(model: MultiTaskModel, sharing: Sharing) -> dict[str, int]:
    """Return the lists of layers of single tasks in a sharing structure, with their entries per task.

    Raises
    ------
    SchemaError
        If the structure has parameters that are made for a certain number of tasks.
    """
    names = [task.name for task in model.outputs.tasks]
    few = _sharing_shapes(model, sharing, names)
    try:
        more = _sharing_shapes(model, sharing, [*names, _ANOTHER_TASK])
    except SchemaError as error:
        raise SchemaError(
            f"Tasks cannot be added to or removed from sharing {sharing.kind!r}, whose settings name"
            " them: keep the tasks, or train afresh."
        ) from error
    for name, shape in few.items():
        if more.get(name) != shape:
            raise _unreadable(name, "tasks")
    known = _paths(few)
    added: dict[str, set[int]] = {}
    for name in more.keys() - few.keys():
        path = next(path for path in _paths([name]) if path not in known)
        place, _, number = path.rpartition(".")
        if not number.isdigit():
            raise _unreadable(name, "tasks")
        added.setdefault(place, set()).add(int(number))
    for place, numbers in added.items():
        length = len(numbers) * len(names)
        if f"{place}.{length - 1}" not in known or min(numbers) != length:
            raise _unreadable(f"{place}.{min(numbers)}", "tasks")
    return {place: len(numbers) for place, numbers in added.items()}


def _sharing_shapes(model: MultiTaskModel, sharing: Sharing, tasks: Sequence[str]) -> Shapes:
    with torch.random.fork_rng(devices=[]):  # what is drawn here is thrown away
        built = sharing.build(model.features.output_dim, tasks, model.features.columns)
    return _shapes("sharing", built)


def _shapes(prefix: str, module: nn.Module) -> dict[str, torch.Size]:
    return {f"{prefix}.{name}": value.shape for name, value in module.state_dict().items()}


def _paths(names: Iterable[str]) -> dict[str, None]:
    """Return the names and all that they lie in, outer ones first."""
    parts = [name.split(".") for name in names]
    return dict.fromkeys(".".join(one[:end]) for one in parts for end in range(1, len(one) + 1))


def _unreadable(name: str, what: str) -> SchemaError:
    return SchemaError(
        f"{what.capitalize()} cannot be added or removed here: {name} is made of all {what} together, in a"
        f" way that cannot be carried over. Keep the {what}, or train afresh."
    )
