"""Features of earlier rows from fit to the model folder: the same state trains, scores and is carried."""

import logging

import polars as pl
import pytest
from typer.testing import CliRunner

from recsys_mtl import (
    AsOf,
    AsOfHistory,
    AsOfState,
    Binary,
    Categorical,
    DiskCache,
    History,
    MultiTaskRanker,
    Numeric,
    Recency,
    Schema,
    SharedBottom,
    Side,
    Time,
    load,
)
from recsys_mtl.cli import app
from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError

DAY = 24 * 3_600_000
ITEM = Side("item", features=[Categorical("item")])
USER = Side("user", features=[Categorical("user")])


def table(days: range) -> pl.DataFrame:
    rows = [
        {
            "time": day * DAY + k * DAY // 101,
            "user": k % 7,
            "item": k * k % 11,
            "click": k * k % 3 % 2,
        }
        for day in days
        for k in range(100)
    ]
    return pl.DataFrame(rows)


def schema(warm_up: str | None = None) -> Schema:
    context = [
        AsOf("item_ctr", key="item", label="click", scaling="standard"),
        Recency("gap", key="user", scaling="log"),
        AsOfHistory("last", key="user", column="item", max_length=3, table="item"),
    ]
    tasks = [Binary("ctr", label="click")]
    return Schema(
        user=USER, item=ITEM, context=context, tasks=tasks, time=Time("time", warm_up=warm_up)
    )


def ranker(schema: Schema) -> MultiTaskRanker:
    small = SharedBottom((8,))
    return MultiTaskRanker(
        schema,
        sharing=small,
        embedding_dim=4,
        max_epochs=2,
        batch_size=64,
        device="cpu",
        random_state=0,
    )


def test_fit_is_that_of_columns_computed_beforehand() -> None:
    train, valid, test = table(range(3)), table(range(3, 4)), table(range(4, 5))
    context = [
        Numeric("item_ctr", scaling="standard"),
        Numeric("gap", scaling="log"),
        History("last", max_length=3, table="item"),
    ]
    plain = Schema(user=USER, item=ITEM, context=context, tasks=schema().tasks)
    state = AsOfState(schema("1d"))
    ready = state.learn(train).filter(pl.col("time") >= DAY)
    expected = ranker(plain).fit(ready, valid=state.apply(valid))
    found = ranker(schema("1d")).fit(train, valid=valid)
    assert found.valid_report_ == expected.valid_report_
    assert found.predict(test).equals(expected.predict(state.apply(test)))
    assert found.evaluate(test) == expected.evaluate(state.apply(test))


def test_refit_knows_the_validation_rows() -> None:
    fitted = ranker(schema()).fit(table(range(3)), valid=table(range(3, 4)), refit=True)
    assert fitted.scorer.as_of is not None
    assert fitted.scorer.as_of.end == table(range(4))["time"].max()


def test_a_saved_model_scores_alike_and_goes_on_observing(tmp_path) -> None:
    fitted = ranker(schema()).fit(table(range(3)))
    fitted.save(tmp_path / "model")
    test = table(range(4, 5))
    before = fitted.predict(test)
    assert load(tmp_path / "model", device="cpu").predict(test).equals(before)
    day = tmp_path / "day.parquet"
    table(range(3, 4)).with_columns(click=1).write_parquet(day)
    assert CliRunner().invoke(app, ["observe", str(tmp_path / "model"), str(day)]).exit_code == 0
    after = load(tmp_path / "model", device="cpu").predict(test)
    assert after.equals(fitted.observe(day).predict(test))
    assert not after.equals(before)


def test_rows_from_before_the_end_of_training_are_refused() -> None:
    train = table(range(3))
    with pytest.raises(EncodingError, match="must not lie before time"):
        ranker(schema()).fit(train, valid=train[:50])
    fitted = ranker(schema()).fit(train)
    with pytest.raises(EncodingError, match="Split by time"):
        fitted.predict(train)
    with pytest.raises(EncodingError, match="in the order of time"):
        fitted.observe(train)


def test_partial_fit_goes_on_with_what_is_known() -> None:
    fitted = ranker(schema()).partial_fit(table(range(2))).partial_fit(table(range(2, 4)))
    state = AsOfState(schema())
    state.update(table(range(4)))
    test = table(range(4, 5))
    assert fitted.scorer.as_of is not None
    assert fitted.scorer.as_of.apply(test).equals(state.apply(test))
    with pytest.raises(EncodingError, match="in the order of time"):
        fitted.partial_fit(table(range(1)))


def test_a_warm_start_goes_on_if_its_rows_follow_and_says_if_not(caplog) -> None:
    first = ranker(schema()).fit(table(range(2)))
    follows = ranker(schema()).fit(table(range(2, 3)), warm_start=first)
    assert not [note for note in follows.warm_start_notes_ if "earlier rows" in note]
    with caplog.at_level(logging.INFO):
        again = ranker(schema()).fit(table(range(2)), warm_start=first)
    assert [note for note in again.warm_start_notes_ if "learned from these rows alone" in note]


def test_what_does_not_go_together_is_refused(tmp_path) -> None:
    file = tmp_path / "rows.parquet"
    table(range(3)).write_parquet(file)
    with pytest.raises(SchemaError, match="computed from earlier rows, which cache"):
        ranker(schema()).fit(file, cache=DiskCache(str(tmp_path / "cache")))
    with pytest.raises(EncodingError, match="beyond the warm-up"):
        ranker(schema("1w")).fit(table(range(3)))
    plain = Schema(context=[Categorical("item")], tasks=[Binary("ctr", label="click")])
    with pytest.raises(SchemaError, match="observe needs features of earlier rows"):
        ranker(plain).fit(table(range(1))).observe(file)


def test_a_model_folder_without_its_state_is_refused(tmp_path) -> None:
    fitted = ranker(schema()).fit(table(range(2)))
    fitted.scorer.as_of = None
    fitted.save(tmp_path / "model")
    with pytest.raises(ModelDirError, match=r"must hold as_of\.parquet"):
        load(tmp_path / "model")


@pytest.mark.slow
def test_kuairand_items_have_the_clicks_of_the_days_before(real_data) -> None:
    log = pl.read_parquet(real_data / "kuairand_pure" / "interactions.parquet")
    clock = Time("timestamp_ms", offset="8h", slack="1h")
    clicks = AsOf("clicks", key="item_id", label="label_ctr", statistic="sum")
    known = Schema(context=[clicks], tasks=[Binary("ctr", label="label_ctr")], time=clock)
    day = pl.from_epoch("timestamp_ms", time_unit="ms").dt.offset_by("8h").dt.date().alias("day")
    dated = log.with_columns(day)
    daily = dated.group_by("item_id", "day").agg(pl.col("label_ctr").cast(pl.Float64).sum())
    pairs = daily.join(daily, on="item_id", suffix="_before")
    before = pairs.filter(pl.col("day_before") < pl.col("day"))
    sums = before.group_by("item_id", "day").agg(pl.col("label_ctr_before").sum().alias("clicks"))
    expected = dated.join(sums, on=["item_id", "day"], how="left", maintain_order="left")
    found = AsOfState(known).learn(
        log.sample(fraction=1.0, shuffle=True, seed=0).sort("timestamp_ms")
    )
    order = ["timestamp_ms", "user_id", "item_id"]
    assert found.sort(order)["clicks"].equals(expected.sort(order)["clicks"].fill_null(0.0))
    state = AsOfState(known)
    state.update(log.filter(pl.col("split") != "test"))
    assert state.apply(log.filter(pl.col("split") == "test")).height == 30_290


def test_parquet_is_scored_with_features_of_earlier_rows(tmp_path) -> None:
    from recsys_mtl import score_parquet

    fitted = ranker(schema()).fit(table(range(3)))
    day = table(range(3, 4)).with_columns(page=pl.int_range(pl.len()))
    day.write_parquet(tmp_path / "day.parquet")
    fitted.save(tmp_path / "model")
    out = tmp_path / "out.parquet"
    for rows in (day, tmp_path / "day.parquet"):
        score_parquet(tmp_path / "model", rows, out, keep=["page"], overwrite=True, part_rows=30)
        found = pl.read_parquet(out)
        assert found["page"].equals(day["page"])
        expected = fitted.predict(day)
        assert found.drop("page").columns == expected.columns
        assert float((found["ctr"] - expected["ctr"]).abs().max()) < 1e-6  # type: ignore[arg-type]
    later = tmp_path / "later.parquet"
    score_parquet(fitted, tmp_path / "day.parquet", later, where="page >= 50")
    assert pl.read_parquet(later).height == 50
    with pytest.raises(ValueError, match="without features of earlier rows"):
        score_parquet(tmp_path / "model", tmp_path / "day.parquet", out, workers=2)


def test_scoring_rows_without_those_before_them_is_refused() -> None:
    from recsys_mtl import score_on_ray, score_on_spark, top_k

    scorer = ranker(schema()).fit(table(range(2))).scorer
    for call in (score_on_ray, score_on_spark):
        with pytest.raises(
            SchemaError, match="'item_ctr' is computed from earlier rows, which a c"
        ):
            call(scorer, None)  # type: ignore[operator] # before the rows are looked at
    keys = {"users": pl.DataFrame({"user": [1]}), "items": pl.DataFrame({"item": [1, 2]})}
    with pytest.raises(SchemaError, match="'item_ctr' is computed from earlier rows, which sc"):
        top_k(scorer, **keys, k=1, by="user", score="ctr")
    day = table(range(3, 4))
    best = top_k(scorer, day, k=1, by="user", score="ctr")  # candidates have a time
    assert best["ctr"].to_list() == [
        one["ctr"].max()
        for _, one in scorer.score(day).sort("user").group_by("user", maintain_order=True)
    ]
