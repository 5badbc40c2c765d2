"""The weight of a task is what its gradient is multiplied with."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import Batch
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.schema import Schema, Task
from recsys_mtl.training import SGD, TrainConfig, Trainer

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]


def _fit(model: MultiTaskModel, schema: Schema, batch: Batch, **settings: Any) -> dict[str, Tensor]:
    Trainer(model, schema, TrainConfig(batch_size=64, **settings), seed=0, progress=False).fit(
        batch
    )
    return dict(model.state_dict())


def _weighted(schema: Schema, name: str, weight: float) -> Schema:
    tasks: list[Task] = [
        replace(task, weight=weight) if task.name == name else task for task in schema.tasks
    ]
    return replace(schema, tasks=tasks)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_task_of_weight_zero_trains_nothing_of_its_own_and_nothing_shared(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, number: int
) -> None:
    name, batch = schema.tasks[number].name, make_batch(100)
    assert batch.labels is not None
    muted = _weighted(schema, name, 0.0)
    own = (f"heads.towers.{number}.", f"sharing.gates.{number}.")
    before = make_model().state_dict()
    turned = batch.labels.copy()
    turned[:, number] = np.abs(1 - turned[:, number])  # still a label of each kind
    runs = [
        _fit(make_model(), muted, replace(batch, labels=labels), max_epochs=3)
        for labels in (batch.labels, turned)
    ]
    for key, value in runs[0].items():
        if key.startswith(own):
            assert torch.equal(value, before[key]), key
        elif key.startswith(("heads.", "sharing.")):
            assert not torch.equal(value, before[key]), key
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


def test_twice_the_weight_is_twice_the_gradient(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    start, name = make_model().double(), "heads.towers.2.output.weight"
    moves = []
    for weight in (1.0, 2.0):
        weighted = _weighted(schema, "genre", weight)
        state = _fit(
            copy.deepcopy(start), weighted, make_batch(40), max_epochs=1, optimizer=SGD(0.1)
        )
        moves.append(state[name] - start.get_parameter(name))
    torch.testing.assert_close(moves[1], 2 * moves[0], rtol=0, atol=1e-12)
