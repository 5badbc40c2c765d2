"""Steps of several processes on their shares of the rows against one process on all rows.

Run as a script, this file is one of the processes.
"""

import copy
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from recsys_mtl.encoding import OBSERVED, Batch, Block, InputLayout, Part, Ragged, TableSize
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import DIN, MMoE, MultiTaskModel, RowTensors, Shard, Towers
from recsys_mtl.schema import Binary, Regression
from recsys_mtl.training import RowWiseAdagrad, task_losses
from recsys_mtl.training.distributed import (
    Processes,
    broadcast_,
    broadcast_state,
    check_alike,
    end_processes,
    refuse_processes,
    share,
    start_processes,
    sum_,
    sum_gradients,
    whole_state,
)

TASKS = (Binary("ctr", label="click"), Regression("rating", label="stars"))
LAYOUT = InputLayout(
    (TableSize("item", 40, None), TableSize("user", 25, None), TableSize("tag", 15, 2)),
    id_tables=("item", "user"),
    list_tables=("tag", "item"),
    dense_dim=2,
    list_names=("tags", "seen"),
    id_names=("item", "user"),
    histories=(1,),
    items=(0,),
)
EDGES = (0, 50, 100, 101, 160)
"""Batches of all processes together; of the third, with one row, all but the last have none."""

STATE = (
    {"version": 2, "names": ["ü", "b"]},
    {"a.map": np.array([2**62, -1]), "b": np.zeros((2, 0), np.float32)},
)


def _batch(num_rows: int) -> Batch:
    rng = np.random.default_rng(1)
    item = rng.integers(40, size=num_rows)
    lists = []
    for size in (15, 40):
        lengths = rng.integers(0, 4, size=num_rows)
        total = int(lengths.sum())
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        weights = rng.random(total).astype(np.float32)
        lists.append(Ragged(rng.integers(size, size=total), offsets, weights))
    labels = np.stack([item % 2, item % 5 + rng.normal(size=num_rows)], axis=1)
    ids = np.stack([item, rng.integers(25, size=num_rows)], axis=1)
    dense = rng.normal(size=(num_rows, 2)).astype(np.float32)
    return Batch(
        num_rows,
        (Part(Block(ids, tuple(lists), dense)),),
        pl.DataFrame(),
        labels=labels.astype(np.float32),
        states=np.full(labels.shape, OBSERVED, np.uint8),
        weights=rng.uniform(0.5, 2, size=labels.shape).astype(np.float32),
    )


def _model(shard: Shard) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(
        LAYOUT,
        TASKS,
        sharing=MMoE(2, expert_dims=(8,)),
        heads=Towers((4,)),
        embedding_dim=3,
        sequences=[DIN()],
        shard=shard,
    ).train()


def _train(model: MultiTaskModel, processes: Processes | None) -> None:
    batch = _batch(EDGES[-1])
    model.learn_outputs(batch)
    rows, outputs = RowTensors(batch, torch.device("cpu")), model.outputs
    dense = _dense(model)
    optimizer = torch.optim.Adam(dense, lr=0.01)
    tables = RowWiseAdagrad(0.05).build(model.embeddings.each())
    for start, stop in pairwise(EDGES):
        shard = model.embeddings.shard
        first, last = share(stop - start, shard.rank, shard.world)
        rows_B = torch.arange(start + first, start + last)
        inputs, targets = rows.take(rows_B), rows.targets(rows_B)
        embedded = model.embeddings(inputs)
        for vectors_SD in embedded.vectors:
            vectors_SD.requires_grad_()
        headed = model.from_embedded(embedded, inputs).headed
        losses = task_losses(headed, targets, TASKS, outputs.mean_T, outputs.std_T, model.heads)
        totals_T = sum_(losses.totals_T.clone(), processes)
        optimizer.zero_grad()
        (losses.means_T * losses.totals_T / totals_T).sum().backward()
        sum_gradients(dense, processes)
        optimizer.step()
        gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in embedded.vectors]
        tables.step(*model.embeddings.exchange(embedded.touched, gradients))
    model.embeddings.fill_untrained([tables.trained(number) for number in range(2)])


def _held(model: MultiTaskModel) -> list[int]:
    return [table.weight_RD.shape[0] for table in model.embeddings.each()]


def _dense(model: MultiTaskModel) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _refused(processes: Processes) -> list[str]:
    given: dict[str, Any] = {"schema": {"a": 1}, "cache": None}
    check_alike(given, processes)
    with pytest.raises(SchemaError) as unlike:
        check_alike(given | {"cache": [processes.rank], "settings": processes.rank}, processes)
    with pytest.raises(SchemaError) as alone:
        refuse_processes("partial_fit", processes.device)
    return [str(unlike.value), str(alone.value)]


def _main(path: str) -> None:
    processes = start_processes("cpu")
    assert processes is not None
    assert start_processes("cpu") == processes  # a second fit joins the same group
    model = _model(processes.shard)
    dense = _dense(model)
    if processes.rank > 0:
        for parameter in dense:
            nn.init.ones_(parameter)
    broadcast_(dense, processes)
    _train(model, processes)
    values, arrays = broadcast_state(STATE if processes.rank == 0 else None, processes)
    found = {
        "state": (values, {name: torch.from_numpy(array) for name, array in arrays.items()}),
        "dense": [parameter.detach() for parameter in dense],
        "held": _held(model),
        "whole": whole_state(model),
        "refused": _refused(processes),
        "seen": (processes.rank, processes.world, processes.local_rank, str(processes.device)),
    }
    end_processes()
    torch.save(found, path)


@pytest.fixture(scope="module")
def found(run_processes: Any) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return run_processes(__file__, 2)


@pytest.fixture(scope="module")
def alone() -> MultiTaskModel:
    """The model that one process trains on all rows."""
    model = _model(Shard())
    _train(model, None)
    return model


def test_processes_train_what_one_process_trains(
    found: list[dict[str, Any]], alone: MultiTaskModel
) -> None:
    """Every parameter moves by far more than the tolerance."""
    first, expected = _model(Shard()).state_dict(), alone.state_dict()
    assert found[0]["whole"].keys() == expected.keys()
    for name, parameter in alone.named_parameters():
        assert (parameter - first[name]).abs().max() > 1e-3, name
    for name, value in found[0]["whole"].items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert all(own["whole"] is None for own in found[1:])


def test_a_whole_state_fits_an_unsharded_model(
    found: list[dict[str, Any]], alone: MultiTaskModel
) -> None:
    model = _model(Shard())
    model.load_state_dict(found[0]["whole"])
    rows = RowTensors(_batch(7), torch.device("cpu")).take(torch.arange(7))
    torch.testing.assert_close(model(rows).logits_BZ, alone(rows).logits_BZ, rtol=1e-4, atol=1e-4)


def test_dense_weights_are_alike_in_all_processes_bit_by_bit(found: list[dict[str, Any]]) -> None:
    for own in found[1:]:
        assert all(map(torch.equal, own["dense"], found[0]["dense"]))


def test_a_process_holds_its_share_of_every_table(found: list[dict[str, Any]]) -> None:
    world = len(found)
    assert _held(_model(Shard())) == [15, 65]
    for rank, own in enumerate(found):
        assert own["held"] == [len(range(rank, rows, world)) for rows in (15, 65)]
        assert own["seen"] == (rank, world, rank, "cpu")


def test_a_state_reaches_every_process(found: list[dict[str, Any]]) -> None:
    for own in found:
        values, arrays = own["state"]
        assert values == STATE[0]
        assert arrays.keys() == STATE[1].keys()
        for name, array in STATE[1].items():
            assert torch.equal(arrays[name], torch.from_numpy(array))
            assert arrays[name].shape == array.shape


def test_unlike_settings_and_work_of_one_process_are_refused_by_all(
    found: list[dict[str, Any]],
) -> None:
    for own in found:
        unlike, alone = own["refused"]
        assert "2 processes must be given the same cache, settings" in unlike
        assert "partial_fit is for one process. Found 2" in alone
    refuse_processes("partial_fit", torch.device("cpu"))  # alone all is well


@pytest.mark.parametrize("world", [None, "1"])
def test_one_process_needs_no_group(world: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if world is not None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", world)
    assert start_processes("cpu") is None
    end_processes()


def test_without_processes_sums_and_first_values_stay() -> None:
    layer = nn.Linear(2, 1)
    before = copy.deepcopy(layer.state_dict())
    ours = torch.tensor([2.0])
    assert sum_(ours, None) is ours
    broadcast_(layer.parameters(), None)
    sum_gradients(list(layer.parameters()), None)
    assert layer.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert ours.item() == 2


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 9])
def test_shares_follow_one_another_and_are_even(num_rows: int) -> None:
    for world in (1, 2, 3, 8):
        shares = [share(num_rows, rank, world) for rank in range(world)]
        assert [row for one in shares for row in range(*one)] == list(range(num_rows))
        sizes = [stop - start for start, stop in shares]
        assert max(sizes) - min(sizes) <= 1


if __name__ == "__main__":
    _main(sys.argv[1])
