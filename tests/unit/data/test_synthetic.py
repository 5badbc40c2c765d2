"""The generators keep what they promise about their own answer."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from baselines import auc
from synthetic import impressions, main, task_pair, task_weights

Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]

SCHEMA_COLUMNS = {
    "interactions": {"user_id", "item_id", "hour", "duration_ms", "split"}
    | {"label_interest", "label_ctr", "label_rating"},
    "users": {"user_id", "city", "register_days"},
    "items": {"item_id", "tags"},
}


@pytest.fixture(scope="module")
def tables():
    return impressions(800, 300, 40_000, seed=3)


@pytest.mark.parametrize("correlation", [-1.0, -0.3, 0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_inputs", [2, 20, 100])
def test_cosine_of_the_weights_is_the_correlation(correlation: float, num_inputs: int):
    first, second = task_weights(num_inputs, correlation=correlation, scale=0.7, seed=1)
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    np.testing.assert_allclose(lengths, 0.7, rtol=1e-12)
    assert first @ second / np.prod(lengths) == pytest.approx(correlation, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_label_correlation_grows_with_the_cosine(seed: int):
    found = []
    for correlation in (0.0, 0.3, 0.6, 0.9, 1.0):
        _, first, second = task_pair(20_000, correlation=correlation, num_inputs=10, seed=seed)
        found.append(np.corrcoef(first, second)[0, 1])
    assert (np.diff(found) > 0).all()
    assert abs(found[0]) < 0.05


def test_label_correlation_is_that_of_a_million_rows():
    _, first, second = task_pair(1_000_000, correlation=0.5, num_inputs=5)
    found, reference = (
        np.corrcoef(first[rows], second[rows])[0, 1]
        for rows in (slice(50_000), slice(50_000, None))
    )
    assert found == pytest.approx(reference, abs=0.02)


def test_labels_are_the_same_at_cosine_one_without_noise():
    _, first, second = task_pair(500, correlation=1.0, noise=0.0)
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


def test_more_rows_extend_the_same_sample():
    short, long = (task_pair(rows, correlation=0.5, seed=4) for rows in (50, 80))
    for few, many in zip(short, long, strict=True):
        np.testing.assert_allclose(few, many[:50], rtol=1e-12, atol=1e-12)
    assert long[0].shape == (80, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_inputs": 1, "correlation": 0.0}, "num_inputs"), ({"correlation": 1.1}, "correlation")],
)
def test_impossible_tasks_are_refused(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        task_pair(10, **arguments)


def test_tables_have_the_columns_of_the_schema(tables: Tables):
    for table, expected in zip(tables, SCHEMA_COLUMNS.values(), strict=True):
        assert expected <= set(table.columns)
    interactions, users, items = tables
    assert (len(interactions), len(users), len(items)) == (40_000, 800, 300)
    assert interactions["user_id"].is_in(users["user_id"].implode()).all()
    assert interactions["item_id"].is_in(items["item_id"].implode()).all()
    assert users["user_id"].is_unique().all()


def test_nulls_and_empty_bags_occur_and_tags_do_not_repeat(tables: Tables):
    interactions, users, items = tables
    for column in (interactions["duration_ms"], users["register_days"], users["city"]):
        assert 0 < column.null_count() < 0.15 * len(column)
    assert 0 < items["tags"].null_count() < 0.15 * len(items)
    bags = items["tags"].drop_nulls().str.split(",")
    assert bags.list.len().to_list() == bags.list.n_unique().to_list()
    assert set(bags.list.len()) == {1, 2, 3, 4}


def test_split_is_by_time(tables: Tables):
    interactions = tables[0]
    assert interactions["timestamp"].is_sorted()
    assert interactions["split"].rle().struct.field("value").to_list() == ["train", "valid", "test"]
    assert interactions["split"].value_counts().sort("count")["count"].to_list() == [
        4_000,
        4_000,
        32_000,
    ]
    assert (interactions["timestamp"] // 3600 % 24 == interactions["hour"]).all()


def test_interest_and_rating_exist_only_behind_a_click(tables: Tables):
    interactions = tables[0]
    unclicked, clicked = (interactions.filter(label_ctr=click) for click in (0, 1))
    assert unclicked["label_interest"].sum() == 0
    assert unclicked["label_rating"].null_count() == len(unclicked)
    assert clicked["label_rating"].null_count() == 0
    assert set(clicked["label_rating"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert np.corrcoef(clicked["label_rating"], clicked["label_interest"])[0, 1] > 0.5


@pytest.mark.parametrize("task", ["ctr", "interest", "rating"])
def test_labels_are_calibrated_to_their_oracle(tables: Tables, task: str):
    observed = tables[0].drop_nulls(f"label_{task}").sort(f"oracle_{task}")
    labels = observed[f"label_{task}"].cast(pl.Float64).to_numpy()
    error = labels - observed[f"oracle_{task}"].to_numpy()
    for part in np.array_split(error, 10):  # overall and in each tenth of the oracle
        assert abs(part.mean()) < 4.5 * part.std() / np.sqrt(len(part))
    assert abs(error.mean()) < 4.5 * error.std() / np.sqrt(len(error))


def test_oracle_ranks_far_better_than_chance(tables: Tables):
    interactions = tables[0]
    for task in ("ctr", "interest"):
        found = auc(
            interactions[f"label_{task}"].cast(pl.Float64).to_numpy(),
            interactions[f"oracle_{task}"].to_numpy(),
        )
        assert found > 0.75
    rated = interactions.drop_nulls("label_rating")
    error = rated["label_rating"] - rated["oracle_rating"]
    assert error.std() < 0.9 * rated["label_rating"].std()


def test_seed_settles_everything(tables: Tables):
    for table, again in zip(tables, impressions(800, 300, 40_000, seed=3), strict=True):
        assert table.equals(again)
    assert not tables[0].equals(impressions(800, 300, 40_000, seed=4)[0])


def test_smallest_table_works_and_empty_is_refused():
    interactions, users, items = impressions(1, 1, 1, seed=0)
    assert (len(interactions), len(users), len(items)) == (1, 1, 1)
    with pytest.raises(ValueError, match="num_items=0"):
        impressions(1, 0, 1)


def test_script_writes_three_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["synthetic.py", "--out", str(tmp_path / "log"), "--users", "50", "--items", "20"]
    monkeypatch.setattr(sys, "argv", [*command, "--rows", "500", "--seed", "7"])
    main()
    written = [
        pl.read_parquet(tmp_path / "log" / f"{name}.parquet")
        for name in ("interactions", "users", "items")
    ]
    for table, expected in zip(written, impressions(50, 20, 500, seed=7), strict=True):
        assert table.equals(expected)
    assert "rating" in capsys.readouterr().out
