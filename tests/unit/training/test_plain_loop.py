"""Many steps of the trainer are those of a loop that anyone would write, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_mtl.encoding import NUM_RESERVED, OBSERVED, Batch
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.schema import Schema
from recsys_mtl.training import Adam, RowWiseAdagrad, TrainConfig, Trainer

SEED, EPOCHS, BATCH, RATE, TABLE_RATE = 7, 3, 16, 0.01, 0.05


class PlainMMoE(nn.Module):
    """The network in a few lines, its tables as plain parameters."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        tags, item = (one.weight_RD.detach().clone() for one in model.embeddings.each())
        self.tags, self.item = nn.Parameter(tags), nn.Parameter(item)
        self.experts = nn.ModuleList(_copy(expert[0]) for expert in model.sharing.experts)
        self.gates = nn.ParameterList(gate.weight.detach().clone() for gate in model.sharing.gates)
        self.hidden = nn.ModuleList(_copy(tower.hidden[0]) for tower in model.heads.towers)
        self.last = nn.ModuleList(_copy(tower.output) for tower in model.heads.towers)

    def forward(self, item_B: Tensor, tags_BR: Tensor, numbers_BN: Tensor) -> list[Tensor]:
        """Return the logits of each task; `tags_BR` holds the pooling weight of every tag."""
        x = torch.cat([tags_BR @ self.tags, self.item[item_B], numbers_BN], dim=1)
        experts = torch.stack([torch.relu(expert(x)) for expert in self.experts], dim=1)
        logits = []
        for gate, hidden, last in zip(self.gates, self.hidden, self.last, strict=True):
            mixed = (torch.softmax(x @ gate.T, dim=1)[:, :, None] * experts).sum(dim=1)
            logits.append(last(torch.relu(hidden(mixed))))
        return logits


def _copy(layer: Any) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features)
    made.load_state_dict(layer.state_dict())
    return made


def _loss(plain: PlainMMoE, batch: Batch, rows: Any, mean: float, std: float) -> list[Tensor]:
    assert batch.labels is not None
    assert batch.states is not None
    assert batch.weights is not None
    block = batch.parts[0].block
    tags = np.zeros((batch.num_rows, len(plain.tags)), np.float32)
    for row in range(batch.num_rows):
        for place in range(*block.lists[0].offsets[row : row + 2]):
            tags[row, block.lists[0].values[place]] += block.lists[0].weights[place]
    item = torch.from_numpy(block.ids[:, 0].astype(np.int64))[rows]
    inputs = item, torch.from_numpy(tags)[rows], torch.from_numpy(block.dense)[rows]
    click, stars, genre = plain(*inputs)
    labels = torch.from_numpy(batch.labels)[rows]
    weights = torch.from_numpy(np.where(batch.states == OBSERVED, batch.weights, 0))[rows]
    each = [
        F.binary_cross_entropy_with_logits(click[:, 0], labels[:, 0], reduction="none"),
        (stars[:, 0] - (labels[:, 1] - mean) / std) ** 2,
        F.cross_entropy(genre, labels[:, 2].long(), reduction="none"),
    ]
    return [(one * w).sum() / w.sum() for one, w in zip(each, weights.T, strict=True)]


def _adagrad(table: nn.Parameter, state: Tensor) -> None:
    """Row-wise Adagrad over all rows: those without a gradient stay."""
    assert table.grad is not None
    state += table.grad.square().mean(dim=1)
    with torch.no_grad():
        table -= TABLE_RATE * table.grad / (state.sqrt() + 1e-8)[:, None]
    table.grad = None


def test_many_steps_are_those_of_a_plain_loop(
    schema: Schema, make_batch: Callable[..., Batch], make_model: Callable[..., MultiTaskModel]
) -> None:
    batch, model = make_batch(150), make_model()
    model.learn_outputs(batch)
    plain = PlainMMoE(model)
    scale = float(model.outputs.mean_T[1]), float(model.outputs.std_T[1])
    tables = plain.tags, plain.item
    states = [torch.zeros(len(table)) for table in tables]
    held = {id(table) for table in tables}
    dense = torch.optim.Adam([p for p in plain.parameters() if id(p) not in held], lr=RATE)
    expected = []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(
            150, generator=torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
        )
        sums = np.zeros(3)
        totals = np.zeros(3)
        for rows in torch.split(order, BATCH):
            losses = _loss(plain, batch, rows, *scale)
            dense.zero_grad()
            sum(t.weight * one for t, one in zip(schema.tasks, losses, strict=True)).backward()  # type: ignore[union-attr] # a tensor
            dense.step()
            for table, state in zip(tables, states, strict=True):
                _adagrad(table, state)
            weights = np.where(batch.states == OBSERVED, batch.weights, 0)[rows.numpy()].sum(0)
            sums += [float(one.detach()) for one in losses] * weights
            totals += weights
        expected.append(sums / totals)
    config = TrainConfig(
        batch_size=BATCH,
        max_epochs=EPOCHS,
        optimizer=Adam(RATE),
        table_optimizer=RowWiseAdagrad(TABLE_RATE),
    )
    history = Trainer(model, schema, config, seed=SEED, progress=False).fit(batch).history
    found = history.select(f"train_loss.{task.name}" for task in schema.tasks).to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found[-1] < found[0]).all()
    for own, other in zip(model.embeddings.each(), tables, strict=True):
        rows = own.weight_RD[NUM_RESERVED:]
        torch.testing.assert_close(rows, other.detach()[NUM_RESERVED:], rtol=1e-4, atol=1e-5)
