"""Any sharing x any heads x any balance x any mix of tasks trains: two steps, every parameter moved."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import (
    MISSING,
    OBSERVED,
    OUT_OF_SPACE,
    Batch,
    Block,
    InputLayout,
    Part,
    Ragged,
    TableSize,
)
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    Heads,
    Interaction,
    MMoE,
    MultiTaskModel,
    RowTensors,
    SequenceEncoder,
    Sharing,
    Towers,
)
from recsys_mtl.schema import Binary, Categorical, Multiclass, Regression, Schema, Task
from recsys_mtl.spec import Spec
from recsys_mtl.training import Balance, TrainConfig, Trainer

NUM_ROWS = 64
CPU = torch.device("cpu")

CLICK = Binary("ctr", label="click")
BUY = Binary("cvr", label="buy", within="ctr", joint="ctcvr")
MIXES: dict[str, tuple[Task, ...]] = {
    "one": (CLICK,),
    "side by side": (CLICK, Regression("rating", label="stars")),
    "nested": (CLICK, BUY, Regression("rating", label="stars", within="ctr", loss="huber")),
    "all kinds": (
        Multiclass("genre", label="genre", num_classes=3),
        BUY,
        Binary("like", label="like", loss="focal", parents=("rating",)),
        CLICK,
        Regression("rating", label="stars", loss="bins", num_bins=4, bounds=(-9, 9)),
    ),
}


def _kinds(family: type[Spec]) -> list[str]:
    return sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, family))


SHARING, HEADS, BALANCES = _kinds(Sharing), _kinds(Heads), _kinds(Balance)

# every pair of sharing and heads, with balances and mixes in turn
THINNED = [
    (sharing, heads, BALANCES[number % len(BALANCES)], list(MIXES)[number % len(MIXES)])
    for number, (sharing, heads) in enumerate(itertools.product(SHARING, HEADS))
]

LAYOUT = InputLayout(
    (TableSize("user", 12, None), TableSize("item", 20, None), TableSize("tag", 9, 2)),
    id_tables=("user", "item"),
    list_tables=("tag", "item"),
    dense_dim=2,
    id_names=("user", "item"),
    list_names=("tags", "seen"),
    dense_names=(("age", 2),),
    histories=(1,),
)


def _ragged(rng: np.random.Generator, num_rows: int) -> Ragged:
    lengths = rng.integers(0, 4, num_rows)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    values = rng.integers(3, 9, offsets[-1]).astype(np.int32)
    return Ragged(values, offsets, np.ones(values.size, np.float32))


def _batch(tasks: tuple[Task, ...]) -> Batch:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, 12, NUM_ROWS), rng.integers(0, 20, NUM_ROWS)], axis=1)
    block = Block(
        ids.astype(np.int32),
        (_ragged(rng, NUM_ROWS), _ragged(rng, NUM_ROWS)),
        rng.normal(size=(NUM_ROWS, 2)).astype(np.float32),
    )
    click = rng.random(NUM_ROWS) < 0.5
    columns, states = [], []
    for task in tasks:
        if isinstance(task, Multiclass):
            labels = rng.integers(0, task.num_classes, NUM_ROWS).astype(np.float32)
        elif isinstance(task, Regression):
            labels = rng.normal(3, 1, NUM_ROWS).astype(np.float32)
        else:
            labels = (click if task is CLICK else rng.random(NUM_ROWS) < 0.4).astype(np.float32)
        state = np.full(NUM_ROWS, OBSERVED, np.uint8)
        if task is not CLICK:
            state[rng.random(NUM_ROWS) < 0.2] = MISSING
        if task.within is not None:
            state[~click] = OUT_OF_SPACE
        columns.append(np.where(state == OBSERVED, labels, 0).astype(np.float32))
        states.append(state)
    stacked = np.stack(columns, axis=1)
    return Batch(
        NUM_ROWS,
        (Part(block),),
        pl.DataFrame(),
        stacked,
        np.stack(states, axis=1),
        np.ones_like(stacked),
    )


def _trainer(
    tasks: tuple[Task, ...],
    sharing: Sharing,
    heads: Heads,
    balance: Balance,
    sequences: tuple[SequenceEncoder, ...] = (),
    interaction: Interaction | None = None,
) -> Trainer:
    torch.manual_seed(0)
    schema = Schema(context=[Categorical("item")], tasks=tasks)
    model = MultiTaskModel(
        LAYOUT,
        tasks,
        sharing=sharing,
        heads=heads,
        embedding_dim=4,
        sequences=sequences,
        interaction=interaction,
    )
    model.learn_outputs(_batch(tasks))
    config = TrainConfig(balance=balance, observe_every=2)
    return Trainer(model.train(), schema, config, seed=0, progress=False)


def _train_two_steps(trainer: Trainer, tasks: tuple[Task, ...]) -> None:
    """Take two steps; every dense parameter and every table must get a finite gradient, not 0."""
    rows = RowTensors(_batch(tasks), CPU)
    everything = torch.arange(NUM_ROWS)
    reached = {name: 0.0 for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = [table.weight_RD.clone() for table in trainer.model.embeddings.each()]
    for _ in range(2):
        losses = trainer.stepper.take([(rows.take(everything), rows.targets(everything))])
        assert losses.means_T.isfinite().all()
        for name in reached:
            gradient = trainer.model.get_parameter(name).grad
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            reached[name] += float(gradient.abs().sum())
    assert [name for name, total in reached.items() if total == 0] == []
    for table, weight_RD in zip(trainer.model.embeddings.each(), before, strict=True):
        assert table.weight_RD.isfinite().all()
        assert (table.weight_RD != weight_RD).any()


def _needs_a_space(heads: str, mix: str) -> bool:
    return heads in {"esmm", "escm2"} and all(task.within is None for task in MIXES[mix])


def _small(family: type[Spec], kind: str) -> Any:
    """Make a spec of that kind with narrow layers: what is tested does not depend on widths."""
    names = {field.name for field in dataclasses.fields(Spec._kinds[kind])}  # type: ignore[arg-type]
    widths = {name: [16] for name in ("dims", "expert_dims") if name in names}
    return family.from_dict({"kind": kind} | widths)


def _check(sharing: str, heads: str, balance: str, mix: str) -> None:
    tasks = MIXES[mix]
    chosen = _small(Sharing, sharing), _small(Heads, heads), _small(Balance, balance)
    if _needs_a_space(heads, mix):
        with pytest.raises(SchemaError, match="within"):
            _trainer(tasks, *chosen)
        return
    _train_two_steps(_trainer(tasks, *chosen), tasks)


@pytest.mark.parametrize(("sharing", "heads", "balance", "mix"), THINNED)
def test_every_sharing_trains_with_every_heads(
    sharing: str, heads: str, balance: str, mix: str
) -> None:
    _check(sharing, heads, balance, mix)


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "heads"), list(itertools.product(SHARING, HEADS)))
def test_every_sharing_and_heads_train_with_every_balance_and_mix(sharing: str, heads: str) -> None:
    for balance, mix in itertools.product(BALANCES, MIXES):
        _check(sharing, heads, balance, mix)


@pytest.mark.parametrize(
    ("sequence", "interaction"),
    list(itertools.product(_kinds(SequenceEncoder), _kinds(Interaction))),
)
def test_every_sequence_encoder_trains_with_every_interaction(
    sequence: str, interaction: str
) -> None:
    mix = MIXES["nested"]
    trainer = _trainer(
        mix,
        MMoE(2, expert_dims=(8,)),
        Towers((4,)),
        Balance.from_dict({"kind": "fixed"}),
        (SequenceEncoder.from_dict({"kind": sequence}),),
        Interaction.from_dict({"kind": interaction}),
    )
    _train_two_steps(trainer, mix)
