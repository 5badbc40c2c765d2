"""Scores and metrics say the same thing of the same rows."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from recsys_mtl import (
    Binary,
    Categorical,
    Multiclass,
    MultiTaskRanker,
    Numeric,
    Regression,
    Schema,
    SharedBottom,
)
from recsys_mtl.metrics.warn import MetricWarning


@pytest.fixture(scope="module")
def plain():
    """A table without users and items: a class that two columns give away, up to 10 % noise."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(3, size=(2, 1500))
    label = np.where(rng.random(1500) < 0.1, rng.integers(3, size=1500), (left + right) % 3)
    return pl.DataFrame({"left": left, "right": right, "size": rng.normal(size=1500), "y": label})


@pytest.fixture(scope="module")
def classifier(plain):
    schema = Schema(
        context=[Categorical("left"), Categorical("right"), Numeric("size", scaling="standard")],
        tasks=[Multiclass("kind", label="y", num_classes=3)],
    )
    made = MultiTaskRanker(
        schema,
        sharing=SharedBottom(dims=(32,)),
        batch_size=128,
        max_epochs=10,
        device="cpu",
        random_state=0,
    )
    return made.fit(plain)


def test_metrics_are_those_of_the_predicted_columns(ranker, log):
    test = log.part("test")
    report, scores = ranker.evaluate(log.rows(test)), ranker.predict(log.rows(test))
    for task in ("interest", "ctr"):
        label, score = test[f"label_{task}"], scores[task]
        assert report.value(task, "auc") == pytest.approx(roc_auc_score(label, score), abs=1e-6)
        assert report.value(task, "log_loss") == pytest.approx(log_loss(label, score), abs=1e-6)
        assert report.value(task, "pcoc") == pytest.approx(score.mean() / label.mean(), abs=1e-6)
    rated = test["label_rating"].is_not_null()
    label, score = test["label_rating"].filter(rated), scores["rating"].filter(rated)
    rmse = mean_squared_error(label, score) ** 0.5
    assert report.value("rating", "rmse") == pytest.approx(rmse, abs=1e-6)
    mae = mean_absolute_error(label, score)
    assert report.value("rating", "mae") == pytest.approx(mae, abs=1e-6)


def test_a_missing_label_takes_its_row_out_of_that_task_only(ranker, log):
    test = log.part("test")
    known = pl.int_range(pl.len()) % 3 > 0
    holes = test.with_columns(pl.when(known).then("label_ctr").alias("label_ctr"))
    found, whole = ranker.evaluate(log.rows(holes)), ranker.evaluate(log.rows(test))
    rest = ranker.evaluate(log.rows(test.filter(known)))
    assert found.value("ctr", "auc") == pytest.approx(rest.value("ctr", "auc"), abs=1e-6)
    assert found.value("ctr", "auc") != pytest.approx(whole.value("ctr", "auc"), abs=1e-6)
    assert found.value("interest", "auc") == whole.value("interest", "auc")
    counts = dict(found.to_frame().select("task", "rows").rows())
    assert counts["ctr"] == test.select(known.sum()).item()
    assert counts["interest"] == test.height


def test_a_task_without_labels_gives_nan_with_a_warning(ranker, log):
    none = log.part("test").with_columns(label_rating=pl.lit(None, dtype=pl.Float32))
    with pytest.warns(MetricWarning, match="rating"):
        report = ranker.evaluate(log.rows(none))
    assert np.isnan(report.value("rating", "rmse"))
    assert np.isfinite(report.value("ctr", "auc"))


def test_one_class_gives_nan_with_a_warning(ranker, log):
    clicked = log.part("test").filter(pl.col("label_ctr") == 1)
    with pytest.warns(MetricWarning, match="undefined"):
        report = ranker.evaluate(log.rows(clicked))
    assert np.isnan(report.value("ctr", "auc"))
    assert np.isfinite(report.value("ctr", "log_loss"))


def test_rows_whose_user_has_no_row_of_its_own_are_counted(ranker, log):
    known = log.users.filter(pl.col("user_id") > 10)
    test = log.part("test")
    rows = log.__class__(log.interactions, known, log.items).rows(test)
    lost = test.filter(pl.col("user_id") <= 10).height
    notes = " ".join(ranker.evaluate(rows).notes)
    assert f"{lost:,} rows have a user that the users table lacks" in notes


def test_sample_weights_weigh_the_metrics(make, log):
    schema = Schema(
        context=[Categorical("user_id")],
        tasks=[Binary("ctr", label="label_ctr", sample_weight="weight")],
    )
    weighed = log.part("test").with_columns(weight=pl.col("hour").cast(pl.Float32))
    fitted = make(schema=schema, max_epochs=1).fit(weighed)
    scores = fitted.predict(weighed)["ctr"]
    weights = weighed["weight"]
    expected = roc_auc_score(weighed["label_ctr"], scores, sample_weight=weights)
    assert fitted.evaluate(weighed).value("ctr", "auc") == pytest.approx(expected, abs=1e-6)


def test_a_multiclass_task_gives_a_probability_per_class(classifier, plain):
    scores = classifier.predict(plain)
    assert scores.columns == ["kind"]
    assert scores.schema["kind"] == pl.Array(pl.Float32, 3)
    matrix = scores["kind"].to_numpy()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    report = classifier.evaluate(plain)
    hit = (matrix.argmax(axis=1) == plain["y"].to_numpy()).mean()
    assert report.value("kind", "accuracy") == pytest.approx(hit)
    assert hit > 0.85
    matrix = matrix.astype(np.float64)
    expected = log_loss(plain["y"], matrix / matrix.sum(axis=1, keepdims=True))
    assert report.value("kind", "log_loss") == pytest.approx(expected, abs=1e-5)
    assert classifier.score(plain) == pytest.approx(hit)


def test_a_multiclass_task_survives_empty_tables_saving_and_parquet(classifier, plain, tmp_path):
    from recsys_mtl import load, score_parquet

    expected = classifier.predict(plain)
    assert classifier.predict(plain.clear()).schema == expected.schema
    classifier.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.predict(plain).equals(expected)
    score_parquet(loaded, plain, tmp_path / "scores.parquet")
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(expected)
    frame = classifier.predict(plain.head(3).to_pandas())
    assert [len(row) for row in frame["kind"]] == [3, 3, 3]


def test_a_plain_table_without_users_and_items_has_no_grouped_auc(make, log):
    schema = Schema(
        context=[Categorical("user_id"), Categorical("item_id"), Categorical("hour")],
        tasks=[Binary("ctr", label="label_ctr")],
    )
    fitted = make(schema=schema, max_epochs=3).fit(log.part("train"), valid=log.part("valid"))
    report = fitted.evaluate(log.part("test"))
    assert set(report.to_frame()["metric"]) == {"auc", "log_loss", "accuracy", "pcoc", "ece"}
    assert report.value("ctr", "auc") > 0.65
    assert fitted.predict(log.part("test")).columns == ["ctr"]


def test_scores_of_a_bounded_regression_stay_within_its_bounds(make, log):
    schema = Schema(
        context=[Categorical("user_id"), Categorical("item_id")],
        tasks=[Regression("stars", label="label_rating", bounds=(1, 5))],
    )
    fitted = make(schema=schema, max_epochs=3).fit(log.part("train"))
    scores = fitted.predict(log.interactions)["stars"]
    assert scores.min() >= 1
    assert scores.max() <= 5
    assert scores.max() - scores.min() > 1


def test_eight_threads_predict_what_one_does(ranker, log):
    from concurrent.futures import ThreadPoolExecutor

    tables = [log.part("test").slice(start, 150 + start) for start in range(8)]
    expected = [ranker.predict(log.rows(table)) for table in tables]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = pool.map(lambda table: ranker.predict(log.rows(table)), tables)
            assert all(one.equals(other) for one, other in zip(found, expected, strict=True))
