"""Slices, intervals and paired comparisons of models, folders and tables of scores."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from recsys_mtl import (
    Binary,
    Categorical,
    MultiTaskRanker,
    Regression,
    Schema,
    SharedBottom,
    Side,
    compare,
)
from recsys_mtl.cli import app
from recsys_mtl.errors import EncodingError, SchemaError


@pytest.fixture(scope="module")
def test_rows(log):
    return log.rows(log.part("test"))


@pytest.fixture(scope="module")
def weak(make, log):
    """A model of the hour alone, for two of the three tasks."""
    schema = Schema(
        user=Side("user_id"),
        context=make().schema.context,
        tasks=[
            Binary("ctr", label="label_ctr"),
            Regression("rating", label="label_rating"),
        ],
    )
    return make(schema=schema, max_epochs=2).fit(log.rows(log.part("train")))


def test_slices_of_an_evaluation_equal_the_evaluation_of_the_filtered_rows(ranker, test_rows):
    rows = test_rows.filter(pl.col("hour") >= 21)
    found = ranker.evaluate(rows, by="hour", top=5)
    assert {"ndcg@5", "recall@5", "mrr"} <= {one.metric for one in found.measurements}
    for hour in (21, 22, 23):
        alone = ranker.evaluate(rows.filter(pl.col("hour") == hour), top=5)
        for one in alone.measurements:
            sliced = found.value(one.task, one.metric, slice=hour)
            assert sliced == pytest.approx(one.value, abs=1e-6)
    with pytest.raises(EncodingError, match="no_such"):
        ranker.evaluate(rows, by="no_such")


def test_intervals_surround_the_values_that_there_are_without_them(ranker, test_rows):
    plain, found = ranker.evaluate(test_rows), ranker.evaluate(test_rows, intervals=200)
    assert "low" not in plain.to_frame().columns
    assert found.to_frame().select("task", "metric", "value", "rows").equals(plain.to_frame())
    assert found.to_frame().select((pl.col("low") < pl.col("high")).all()).item()
    assert found == ranker.evaluate(test_rows, intervals=200)
    with pytest.raises(ValueError, match="replicates must be 1 or more"):
        ranker.evaluate(test_rows, intervals=0)
    with pytest.raises(ValueError, match="top must be 1 or more"):
        ranker.evaluate(test_rows, top=0)


def test_models_folders_tables_and_seeds_compare(ranker, weak, model, log, test_rows, tmp_path):
    test = log.part("test")
    scores = ranker.predict(test_rows)
    scores.write_parquet(tmp_path / "scores.parquet")
    given = [ranker, model, scores, scores.to_pandas(), scores.to_arrow()]
    given += [str(tmp_path / "scores.parquet"), {"ctr": scores["ctr"]}]
    for one in given:
        found = compare(test_rows, {"full": ranker, "other": one}, metrics=["auc"], replicates=20)
        same = found.find("ctr", "auc")
        assert same.verdict == "no evidence"
        assert (same.difference, same.low, same.high) == (0, 0, 0)
    found = compare(test_rows, {"full": [ranker, model], "hour": weak}, replicates=200)
    report = ranker.evaluate(test_rows)
    assert found.find("ctr", "auc").verdict == "better"
    assert found.find("ctr", "auc").first_value == pytest.approx(report.value("ctr", "auc"))
    assert found.find("ctr", "auc").rows == test.height
    assert found.find("rating", "rmse").first_value == pytest.approx(
        report.value("rating", "rmse"), abs=1e-6
    )
    assert "interest: not scored by hour" in found.notes
    assert any("full 2, hour 1" in note for note in found.notes)


def test_what_cannot_be_compared_is_said(ranker, weak, log, test_rows):
    scores = ranker.predict(test_rows)
    turned = scores.reverse()
    with pytest.raises(EncodingError, match=r"'user_id' differs in .* first in row 0"):
        compare(test_rows, {"one": ranker, "two": turned})
    with pytest.raises(EncodingError, match=r"must be of the rows compared.*for 1,"):
        compare(test_rows, {"one": ranker, "two": scores.head(7)})
    with pytest.raises(SchemaError, match="pass schema="):
        compare(test_rows, {"one": scores, "two": scores})
    with pytest.raises(EncodingError, match="empty table"):
        compare(log.rows(log.part("none")), {"one": ranker, "two": weak})
    other = Schema(context=ranker.schema.context, tasks=[Binary("ctr", label="label_interest")])
    with pytest.raises(SchemaError, match="one thing by task 'ctr'"):
        compare(test_rows, {"one": ranker, "two": weak}, schema=other)


def test_a_schema_alone_says_what_the_labels_of_two_tables_are(schema, log, test_rows):
    test = log.part("test")
    oracle = {task: test[f"oracle_{task}"].to_numpy() for task in ("interest", "ctr", "rating")}
    noise = np.random.default_rng(0).permutation(test.height)
    none = {task: column[noise] for task, column in oracle.items()}
    found = compare(test_rows, {"oracle": oracle, "none": none}, schema=schema, replicates=200)
    verdicts = {(one.task, one.metric): one.verdict for one in found.differences}
    for place in (("ctr", "auc"), ("interest", "gauc"), ("ctr", "log_loss"), ("rating", "rmse")):
        assert verdicts[place] == "better"


def test_the_command_line_compares_and_slices(model, folder, ranker, weak, tmp_path):
    weak.save(tmp_path / "weak")
    sides = ["--users", str(folder / "users.parquet"), "--items", str(folder / "items.parquet")]
    common = [str(folder / "interactions.parquet"), *sides, "--where", "split = 'test'", "--json"]
    models = [str(model), str(tmp_path / "weak")]
    told = CliRunner().invoke(app, ["compare", *models, *common, "--replicates", "100"])
    assert told.exit_code == 0, told.output
    rows = [json.loads(line) for line in told.stdout.strip().splitlines()]
    assert {(row["first"], row["second"]) for row in rows} == {("model", "weak")}
    verdicts = {(row["task"], row["metric"]): row["verdict"] for row in rows}
    assert verdicts["ctr", "auc"] == "better"
    told = CliRunner().invoke(app, ["compare", models[0], models[0], *common, "--replicates", "9"])
    assert '"verdict":"no evidence"' in told.stdout
    told = CliRunner().invoke(
        app, ["evaluate", models[0], *common, "--by", "hour", "--intervals", "--top", "3"]
    )
    assert told.exit_code == 0, told.output
    row = json.loads(told.stdout.splitlines()[0])
    assert list(row) == ["slice", "task", "metric", "value", "low", "high", "rows"]


@pytest.mark.slow
def test_a_useless_task_and_a_hostile_one_are_told_apart():
    """A coin of small weight changes nothing; another taste of 20 times the weight fills the model."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(150, size=12_000), rng.integers(100, size=12_000)
    tastes, kinds = rng.normal(size=(150, 3)), rng.normal(size=(100, 3))
    chance = 1 / (1 + np.exp(0.5 - 2 * (tastes[users] * kinds[items]).sum(axis=1)))
    other = rng.integers(2, size=(150, 100))
    table = pl.DataFrame(
        {
            "user": users,
            "item": items,
            "click": (rng.random(12_000) < chance) * 1,
            "coin": rng.integers(2, size=12_000),
            "other": other[users, items],
        }
    )
    beside = {
        "alone": [],
        "useless": [Binary("coin", label="coin", weight=0.05)],
        "hostile": [Binary("other", label="other", weight=20.0)],
    }

    def fitted(more: list[Binary], seed: int) -> MultiTaskRanker:
        schema = Schema(
            user=Side("user", features=[Categorical("user")]),
            item=Side("item", features=[Categorical("item")]),
            tasks=[Binary("ctr", label="click"), *more],
        )
        settings = {"batch_size": 256, "max_epochs": 8, "device": "cpu", "random_state": seed}
        sharing = SharedBottom(dims=(16,))
        ranker = MultiTaskRanker(schema, sharing=sharing, embedding_dim=8, **settings)
        return ranker.fit(table[:9000])

    models = {name: [fitted(more, seed) for seed in range(3)] for name, more in beside.items()}
    found = compare(table[9000:], models)
    for metric in ("auc", "gauc"):
        assert found.find("ctr", metric, second="useless").verdict == "no evidence"
        assert found.find("ctr", metric, second="hostile").verdict == "better"
