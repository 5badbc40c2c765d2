"""What follows the input, and what belongs to single tasks, in structures that say nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from recsys_mtl.encoding import InputLayout, TableSize
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import Columns, MultiTaskModel, NoInteraction, Shared, Sharing, Towers
from recsys_mtl.network.probing import input_copies, task_lists
from recsys_mtl.network.sharing import SharingModule
from recsys_mtl.schema import Binary, Task
from recsys_mtl.spec import spec

WIDTH = 5
TASKS = (Binary("ctr", label="click"), Binary("like", label="click"))


class _Module(SharingModule):
    output_dim = 4

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x_BVI: torch.Tensor) -> Shared:
        raise NotImplementedError


def _linear(inputs: int, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


BUILDS: dict[str, Callable[[int, int], dict[str, nn.Module]]] = {
    "plain": lambda width, _: {"bottom": _linear(width), "top": _linear(4)},
    "twice": lambda width, _: {"bottom": _linear(2 * width)},
    "back": lambda width, _: {"bottom": _linear(4, width)},
    "beside": lambda width, _: {"bottom": _linear(width + 2)},
    "square": lambda width, _: {"bottom": _linear(width * width)},
    "per task": lambda _, tasks: {"own": nn.ModuleList(_linear(4) for _ in range(tasks))},
    "two each": lambda _, tasks: {"own": nn.ModuleList(_linear(4) for _ in range(2 * tasks))},
    "first shared": lambda _, tasks: {"own": nn.ModuleList(_linear(4) for _ in range(1 + tasks))},
    "wide": lambda _, tasks: {"all": _linear(4, tasks)},
    "named": lambda _, tasks: {f"task{n}": _linear(4) for n in range(tasks)},
}


@spec
class _Foreign(Sharing):
    """A structure that the package has never seen."""

    form: str

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        del columns
        return _Module(BUILDS[self.form](input_dim, len(tasks)))


def _model(sharing: Sharing, tasks: Sequence[Task] = TASKS) -> MultiTaskModel:
    layout = InputLayout((TableSize("item", 6, None),), ("item",), (), 0, id_names=("item",))
    return MultiTaskModel(layout, tasks, sharing=sharing, heads=Towers(()), embedding_dim=WIDTH)


def _copies(form: str) -> dict[str, tuple[int, ...]]:
    sharing = _Foreign(form)
    found = input_copies(_model(sharing), NoInteraction(), sharing, Towers(()))
    return {name: axes for name, axes in found.items() if name.startswith("sharing.")}


def test_axes_that_follow_the_input_are_found() -> None:
    assert _copies("plain") == {"sharing.bottom.weight": (0, 1), "sharing.top.weight": (0, 0)}
    assert _copies("twice") == {"sharing.bottom.weight": (0, 2)}
    assert _copies("back") == {"sharing.bottom.weight": (1, 0)}


@pytest.mark.parametrize("form", ["beside", "square"])
def test_an_axis_that_holds_more_than_the_input_is_refused(form: str) -> None:
    with pytest.raises(SchemaError, match=r"Features cannot .* sharing\.bottom\.weight is made"):
        _copies(form)


@pytest.mark.parametrize(("form", "found"), [("per task", 1), ("two each", 2)])
def test_lists_with_entries_of_each_task_are_found(form: str, found: int) -> None:
    assert task_lists(_model(_Foreign(form)), _Foreign(form)) == {"sharing.own": found}


def test_a_structure_that_all_tasks_share_has_no_such_lists() -> None:
    assert task_lists(_model(_Foreign("plain")), _Foreign("plain")) == {}


@pytest.mark.parametrize(
    ("form", "named"),
    [("first shared", r"own\.3"), ("wide", r"all\.weight"), ("named", r"task2\.weight")],
)
def test_layers_that_cannot_be_told_apart_by_task_are_refused(form: str, named: str) -> None:
    with pytest.raises(SchemaError, match=rf"Tasks cannot .* sharing\.{named} is made"):
        task_lists(_model(_Foreign(form)), _Foreign(form))


def test_probing_leaves_random_numbers_and_weights_alone() -> None:
    model, sharing = _model(_Foreign("per task")), _Foreign("per task")
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task_lists(model, sharing)
    input_copies(model, NoInteraction(), sharing, Towers(()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
