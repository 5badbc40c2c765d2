"""What a user may get wrong without noticing is an error, or is said."""

import logging

import polars as pl
import pytest
import torch

from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema, SharedBottom, Side, load, scan
from recsys_mtl.errors import EncodingError

TABLE = pl.DataFrame(
    {
        "user_id": [k % 20 for k in range(200)],
        "hour": [k % 7 for k in range(200)],
        "click": [int(k % 3 == 0) for k in range(200)],
        "buy": [None] * 200,
    },
    schema_overrides={"buy": pl.Int8},
)
SCHEMA = Schema(
    user=Side("user_id", features=[Categorical("user_id"), Categorical("city")]),
    context=[Categorical("hour")],
    tasks=[Binary("ctr", label="click")],
)
USERS = pl.DataFrame({"user_id": range(15), "city": ["a", "b", "c"] * 5})


def _ranker(schema: Schema = SCHEMA, **options: object) -> MultiTaskRanker:
    return MultiTaskRanker(
        schema, sharing=SharedBottom((4,)), max_epochs=1, random_state=0, **options
    )


def test_a_second_positional_table_is_refused_by_fit() -> None:
    rows = scan(TABLE, users=USERS)
    with pytest.raises(TypeError, match=r"valid=valid"):
        _ranker().fit(rows, rows)


def test_a_monitored_metric_needs_valid_rows() -> None:
    with pytest.raises(ValueError, match=r"'ctr.auc' needs valid rows"):
        _ranker(monitor="ctr.auc").fit(scan(TABLE, users=USERS))


def test_a_task_without_any_observed_label_is_refused_unless_its_weight_is_zero() -> None:
    def schema(weight: float) -> Schema:
        tasks = [Binary("ctr", label="click"), Binary("cvr", label="buy", weight=weight)]
        return Schema(context=[Categorical("hour")], tasks=tasks)

    with pytest.raises(EncodingError, match="'cvr' needs rows to train on"):
        _ranker(schema(1.0)).fit(TABLE)
    assert _ranker(schema(0.0)).fit(TABLE).predict(TABLE).height == 200


def test_validation_rows_without_any_label_are_refused() -> None:
    valid = TABLE.with_columns(click=pl.lit(None, pl.Int8))
    train = scan(TABLE, users=USERS)
    with pytest.raises(EncodingError, match="valid must hold rows with observed labels"):
        _ranker().fit(train, valid=scan(valid, users=USERS))


def test_absent_users_are_said_in_training_scoring_and_reports(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = scan(TABLE, users=USERS)
    said = "50 rows have a user that the users table lacks"
    with caplog.at_level(logging.WARNING):
        ranker = _ranker().fit(rows)
    assert said in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert ranker.predict(rows).height == 200
    assert said in caplog.text
    assert said in str(ranker.evaluate(rows))


def test_loading_leaves_the_callers_random_state_alone(tmp_path) -> None:
    rows = scan(TABLE, users=USERS)
    _ranker().fit(rows).save(tmp_path / "model")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(tmp_path / "model")
    assert torch.equal(torch.rand(2), expected)
