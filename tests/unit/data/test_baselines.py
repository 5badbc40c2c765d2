"""The baselines against closed forms and brute force."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from baselines import auc, choose_damping, global_mean, main, user_item_bias


def make_log(*, num_rows: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(12, size=num_rows), rng.integers(9, size=num_rows)
    effects = rng.normal(size=12)[user] + rng.normal(size=9)[item]
    rating = 3 + effects + rng.normal(0, 0.3, num_rows)
    frame = pl.DataFrame({"user_id": user, "item_id": item, "rating": rating})
    return frame.with_columns(click=(pl.col("rating") > 3).cast(pl.Int8))


def solve_ridge(
    train: pl.DataFrame, test: pl.DataFrame, label: str, damping_user: float, damping_item: float
):
    """Minimise the stated objective in one dense linear system."""
    rows = np.zeros((len(train) + len(test), 12 + 9))
    for place, (user, item) in enumerate(
        pl.concat([train, test]).select("user_id", "item_id").iter_rows()
    ):
        rows[place, user] = rows[place, 12 + item] = 1
    target = train[label].cast(pl.Float64).to_numpy()
    fitted = rows[: len(train)]
    penalty = np.diag([damping_user] * 12 + [damping_item] * 9)
    effects = np.linalg.solve(fitted.T @ fitted + penalty, fitted.T @ (target - target.mean()))
    return np.clip(target.mean() + rows[len(train) :] @ effects, target.min(), target.max())


@pytest.mark.parametrize("label", ["rating", "click"])
@pytest.mark.parametrize("damping", [(2.0, 2.0), (0.5, 20.0)])
def test_user_item_bias_equals_the_ridge_solution(label: str, damping: tuple[float, float]):
    log = make_log()
    train, test = log[:150], log[150:]
    scores = user_item_bias(train, test, label, damping=damping)
    np.testing.assert_allclose(scores, solve_ridge(train, test, label, *damping), atol=1e-6)


def test_one_damping_means_both():
    log = make_log()
    scores = user_item_bias(log, log, "rating", damping=3.0)
    np.testing.assert_array_equal(scores, user_item_bias(log, log, "rating", damping=(3.0, 3.0)))


def test_one_row_by_hand():
    train = pl.DataFrame({"user_id": ["a", "b"], "item_id": [1, 2], "rating": [5.0, 1.0]})
    # mean 3, residuals +-2; with damping 1: effect = (2 - other) / 2, so each is 2 / 3
    scores = user_item_bias(train, train, "rating", damping=1.0)
    np.testing.assert_allclose(scores, [3 + 4 / 3, 3 - 4 / 3], atol=1e-6)


def test_unknown_ids_get_the_mean():
    train = make_log()
    test = pl.DataFrame({"user_id": [99, 99], "item_id": [77, 78]})
    scores = user_item_bias(train, test, "rating")
    np.testing.assert_allclose(scores, global_mean(train, test, "rating"), rtol=1e-12)
    assert scores[0] == pytest.approx(train["rating"].mean())


def test_null_labels_do_not_count():
    log = make_log()
    holes = log.with_columns(
        rating=pl.when(pl.int_range(pl.len()) % 3 > 0).then("rating"),
    )
    kept = log.filter(pl.int_range(pl.len()) % 3 > 0)
    for score in (global_mean, user_item_bias):
        np.testing.assert_array_equal(score(holes, log, "rating"), score(kept, log, "rating"))


def test_scores_stay_in_the_range_of_the_label():
    log = make_log()
    scores = user_item_bias(log, log, "click", damping=0.01)
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_ids_may_be_strings():
    log = make_log()
    names = log.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    np.testing.assert_allclose(
        user_item_bias(names, names, "rating"), user_item_bias(log, log, "rating"), atol=1e-6
    )


def test_wrong_arguments_are_refused():
    log = make_log()
    with pytest.raises(ValueError, match="'damping' must be above 0"):
        user_item_bias(log, log, "rating", damping=0.0)
    with pytest.raises(ValueError, match="observed in at least one row"):
        global_mean(log.with_columns(rating=pl.lit(None, pl.Float64)), log, "rating")


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60).astype(np.float64)
    scores = rng.integers(5, size=60).astype(np.float64)
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert auc(labels, scores) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_damping_is_chosen_where_valid_has_the_least_error():
    log = make_log()
    train, valid = log[:100], log[100:]
    # user effects are real and the items are shuffled away: users need less damping than items
    shuffled = train.with_columns(pl.col("item_id").shuffle(seed=1))
    chosen = choose_damping(shuffled, valid, "rating")
    errors = {
        pair: np.square(
            user_item_bias(shuffled, valid, "rating", damping=pair) - valid["rating"].to_numpy()
        ).mean()
        for pair in (chosen, (1.0, 1.0), (100.0, 100.0), (chosen[1], chosen[0]))
    }
    assert min(errors, key=errors.__getitem__) == chosen


def test_script_prints_both_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    splits = ["train"] * 150 + ["valid"] * 25 + ["test"] * 25
    path = tmp_path / "interactions.parquet"
    make_log().with_columns(split=pl.Series(splits)).write_parquet(path)
    monkeypatch.setattr(sys, "argv", ["baselines.py", str(path), "rating", "click"])
    main()
    printed = capsys.readouterr().out
    assert "RMSE" in printed
    assert "global mean      AUC 0.500" in printed
