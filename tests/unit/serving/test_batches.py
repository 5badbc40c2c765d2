"""Batches that a worker of a cluster scores: the scores of one process, side tables encoded once."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl import (
    Categorical,
    MMoE,
    Multiclass,
    MultiTaskRanker,
    Numeric,
    Regression,
    Schema,
    Side,
    scan,
)
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import SideTable
from recsys_mtl.serving.batches import BatchScorer
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.run import ScoreOptions


@pytest.fixture(scope="module")
def users():
    chance = np.random.default_rng(0)
    columns = {f"u{number}": chance.normal(size=23) for number in range(20)}
    return pl.DataFrame({"user_id": [f"u{number}" for number in range(23)], **columns})


@pytest.fixture(scope="module")
def wide(table, users):
    """A scorer for which it pays to keep the first layer's part of users."""
    own = [Numeric(f"u{number}", scaling="standard") for number in range(20)]
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id"), *own]),
        item=Side("item_id", features=[Categorical("item_id")]),
        tasks=[
            Multiclass("choice", label="click", num_classes=3),
            Regression("rating", label="rating", bounds=(1, 5)),
        ],
    )
    made = MultiTaskRanker(
        schema,
        sharing=MMoE(2, expert_dims=(16, 8)),
        embedding_dim=4,
        max_epochs=2,
        batch_size=100,
        device="cpu",
        random_state=0,
    )
    rows = table.with_columns(rating=pl.col("item_id") % 5 + 1)
    return made.fit(scan(rows, users=users)).scorer


def _batches(table, size=250):
    arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest())
    return [arrow.slice(start, size) for start in range(0, arrow.num_rows, size)]


def test_batches_have_the_scores_of_one_process_whatever_came_before(wide, table, users):
    options = ScoreOptions(keep=["click"], fuse=Fusion({"rating": 2.0}))
    score = BatchScorer(wide, options, users=users)
    found = [score(batch) for batch in _batches(table)]
    again = BatchScorer(wide, options, users=users)
    for batch, one in reversed(list(zip(_batches(table), found, strict=True))):
        assert again(batch).equals(one)  # to the bit
    frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(found)))
    assert frame.columns == ["user_id", "item_id", "click", "choice", "rating", "fused"]
    assert frame.schema["choice"] == pl.List(pl.Float32)
    assert frame.select("user_id", "item_id", "click").equals(
        table.select("user_id", "item_id", "click")
    )
    expected = wide.score(scan(table, users=users))
    for name in ("choice", "rating"):
        both = (np.vstack(one[name].to_list()) for one in (frame, expected))
        np.testing.assert_allclose(*both, atol=1e-6, rtol=1e-6)
    logs = 2 * np.log(frame["rating"].to_numpy())
    np.testing.assert_allclose(frame["fused"].to_numpy(), logs, rtol=1e-6)


def test_a_side_table_is_read_once(wide, table, users, monkeypatch):
    read, frame = [], SideTable.frame

    def counted(self, key, columns):
        read.append(key)
        return frame(self, key, columns)

    monkeypatch.setattr(SideTable, "frame", counted)
    score = BatchScorer(wide, ScoreOptions(), users=users)
    for batch in _batches(table):
        score(batch)
    assert read == ["user_id"]


def test_an_empty_batch_has_the_columns_of_others(wide, table, users):
    score = BatchScorer(wide, ScoreOptions(keep=["click"]), users=users)
    full, empty = _batches(table)[0], _batches(table)[0].slice(0, 0)
    assert score(empty).schema.equals(score(full).schema)
    assert score(empty).num_rows == 0


def test_columns_to_keep_must_be_there_and_have_a_name_of_their_own(wide, table, users):
    with pytest.raises(SchemaError, match="one name each"):
        BatchScorer(wide, ScoreOptions(keep=["rating"]))
    score = BatchScorer(wide, ScoreOptions(keep=["nothing"]), users=users)
    with pytest.raises(EncodingError, match="'nothing'"):
        score(_batches(table)[0])
