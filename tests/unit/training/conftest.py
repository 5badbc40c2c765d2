"""Encoded rows made by hand: ids, tags and numbers that say something about three tasks."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import (
    MISSING,
    OBSERVED,
    Batch,
    Block,
    InputLayout,
    Part,
    Ragged,
    TableSize,
)
from recsys_mtl.network import MMoE, MultiTaskModel, Sharing, Towers
from recsys_mtl.schema import Bag, Binary, Categorical, Multiclass, Numeric, Regression, Schema

NUM_IDS = 12  # rows 0, 1, 2 of the table are reserved; 11 is never drawn


@pytest.fixture
def schema() -> Schema:
    return Schema(
        context=[Categorical("item"), Bag("tags"), Numeric("age", scaling="standard")],
        tasks=[
            Binary("ctr", label="click"),
            Regression("rating", label="stars", weight=0.5),
            Multiclass("genre", label="genre", num_classes=3),
        ],
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Draw rows; `flip` turns every label around, `seed` draws other rows."""

    def make(num_rows: int, *, seed: int = 0, flip: bool = False) -> Batch:
        rng = np.random.default_rng(seed)
        item = rng.integers(3, NUM_IDS - 1, size=num_rows)
        lengths = rng.integers(0, 4, size=num_rows)
        tags = Ragged(
            rng.integers(3, 8, size=int(lengths.sum())),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32),
        )
        age = rng.normal(size=(num_rows, 2)).astype(np.float32)
        click = rng.random(num_rows) < np.where(item % 2, 0.9, 0.1)
        stars = 1 + item % 4 + rng.normal(0, 0.3, num_rows)
        genre = item % 3
        if flip:
            click, stars, genre = ~click, 5 - stars, (genre + 1) % 3
        states = np.full((num_rows, 3), OBSERVED, dtype=np.uint8)
        states[rng.random(num_rows) < 0.5, 1] = MISSING
        labels = np.stack([click, stars, genre], axis=1).astype(np.float32)
        return Batch(
            num_rows,
            (Part(Block(item[:, None], (tags,), age)),),
            pl.DataFrame(),
            labels=np.where(states == OBSERVED, labels, np.float32(0)),
            states=states,
            weights=rng.uniform(0.5, 1.5, size=labels.shape).astype(np.float32),
        )

    return make


@pytest.fixture
def make_model(schema: Schema) -> Callable[..., MultiTaskModel]:
    """Build the network for those rows; tags have a table of another width."""

    def make(
        *, seed: int = 0, sharing: Sharing | None = None, dropout: float = 0.0
    ) -> MultiTaskModel:
        torch.manual_seed(seed)
        layout = InputLayout(
            (TableSize("item", NUM_IDS, None), TableSize("tags", 8, 2)),
            id_tables=("item",),
            list_tables=("tags",),
            dense_dim=2,
        )
        return MultiTaskModel(
            layout,
            schema.tasks,
            sharing=sharing or MMoE(2, expert_dims=(8,), dropout=dropout),
            heads=Towers((4,)),
            embedding_dim=3,
        )

    return make
