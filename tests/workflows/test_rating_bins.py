"""A rating learned as a distribution over bins, from the schema to the scored table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_mtl import (
    Adam,
    Binary,
    Categorical,
    MultiTaskRanker,
    Regression,
    Schema,
    SharedBottom,
    Towers,
    load,
)
from recsys_mtl.describe import describe_model
from recsys_mtl.errors import SchemaError

MEANS = np.array([1.2, 2.0, 3.1, 3.9, 4.8])


def _table(num_rows: int = 4000) -> pl.DataFrame:
    """Give the stars of items whose mean is known; they are whole, so a mean lies between them."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, len(MEANS), num_rows)
    low = np.floor(MEANS[item])
    stars = low + (rng.random(num_rows) < MEANS[item] - low)
    return pl.DataFrame({"item": item, "click": (stars > 3).astype(int), "stars": stars})


RATING = Regression("rating", label="stars", loss="bins", num_bins=9, bounds=(1, 5))


def _ranker(rating: Regression = RATING) -> MultiTaskRanker:
    schema = Schema(context=[Categorical("item")], tasks=[Binary("ctr", label="click"), rating])
    return MultiTaskRanker(
        schema,
        sharing=SharedBottom((8,)),
        heads=Towers(()),
        max_epochs=6,
        optimizer=Adam(learning_rate=0.02),
        batch_size=128,
        random_state=0,
        device="cpu",
    )


def test_scores_are_the_mean_rating_of_each_item_and_live_through_a_folder(tmp_path: Path) -> None:
    table = _table()
    ranker = _ranker().fit(table[:3000], valid=table[3000:])
    items = pl.DataFrame({"item": range(len(MEANS))})
    scores = ranker.predict(items)["rating"].to_numpy()
    known = table[:3000].group_by("item").agg(pl.col("stars").mean()).sort("item")
    np.testing.assert_allclose(scores, known["stars"].to_numpy(), atol=0.12)
    np.testing.assert_allclose(scores, MEANS, atol=0.15)
    assert ranker.evaluate(table).value("rating", "rmse") < 0.45
    ranker.save(tmp_path / "model")
    assert load(tmp_path / "model").predict(items).equals(ranker.predict(items))
    assert "rating (regression) from stars" in describe_model(ranker)
    assert "loss 'bins', num_bins 9, bounds (1.0, 5.0)" in describe_model(ranker)


def test_a_warm_start_goes_on_with_the_same_bins_and_refuses_others() -> None:
    table = _table(600)
    first = _ranker().fit(table)
    again = _ranker().fit(table, warm_start=first)
    assert again.predict(table)["rating"].is_between(1, 5).all()
    with pytest.raises(SchemaError, match=r"'rating' must stay .*loss='bins'.* Found loss='mse'"):
        _ranker(replace(RATING, loss="mse")).fit(table, warm_start=first)


def test_bins_without_bounds_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"bounds are needed by loss='bins'.* Found None"):
        Regression("rating", label="stars", loss="bins")
