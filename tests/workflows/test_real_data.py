"""The package on real tables: floors of hashed linear models, and a data set without clicks."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from recsys_mtl import (
    Bag,
    Binary,
    Categorical,
    MMoE,
    MultiTaskRanker,
    Numeric,
    Regression,
    RowWiseAdagrad,
    Schema,
    Side,
    Towers,
    scan,
)
from recsys_mtl.config import read_config

CONFIG = Path(__file__).parents[2] / "data" / "kuairand.toml"


@pytest.mark.slow
def test_kuairand_reaches_the_floors_of_hashed_linear_models(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_MTL_DATA", str(real_data))
    config = read_config(CONFIG)
    rows = config.rows()
    ranker = config.ranker().fit(rows["train"], valid=rows["valid"], refit=True)
    report = ranker.evaluate(rows["test"])
    assert report.value("ctr", "auc") >= 0.728
    assert report.value("interest", "auc") >= 0.729
    assert report.value("rating", "rmse") <= 1.251
    assert report.value("like", "auc") >= 0.79
    scores = ranker.predict(rows["test"])
    ids = rows["test"].frame(["user_id", "item_id"])
    assert scores.select("user_id", "item_id").equals(ids)


@pytest.mark.slow
def test_two_epochs_without_a_reset_overfit_the_ids_of_kuairand(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_MTL_DATA", str(real_data))
    config = read_config(CONFIG)
    training = dataclasses.replace(config.training, reset_tables=False, max_epochs=2)
    rows = config.rows()
    ranker = dataclasses.replace(config, training=training).ranker()
    losses = ranker.fit(rows["train"], valid=rows["valid"]).history_["valid_loss"]
    assert losses[1] > losses[0]
    assert ranker.best_epoch_ == 1


@pytest.mark.slow
def test_movietweetings_has_no_clicks_and_still_beats_a_constant(real_data: Path) -> None:
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id", min_count=2)]),
        item=Side(
            "item_id",
            features=[
                Categorical("item_id", min_count=2),
                Bag("genres", separator="|"),
                Numeric("year", scaling="standard"),
            ],
        ),
        tasks=[
            Binary("interest", label="label_interest"),
            Regression("rating", label="label_rating", bounds=(0, 10)),
        ],
    )
    folder = real_data / "movietweetings_100k"
    rows = scan(folder / "ratings.parquet", items=folder / "movies.parquet")
    train, valid, test = (rows.filter(pl.col("split") == s) for s in ("train", "valid", "test"))
    ranker = MultiTaskRanker(
        schema,
        sharing=MMoE(4, expert_dims=(64,), dropout=0.2),
        heads=Towers((32,)),
        batch_size=1024,
        table_optimizer=RowWiseAdagrad(0.05),
        random_state=0,
    )
    report = ranker.fit(train, valid=valid, refit=True).evaluate(test)
    assert report.value("interest", "auc") > 0.72
    assert report.value("rating", "rmse") < 1.75  # global mean: 1.898; user + item bias: 1.646
