import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from recsys_mtl import metrics
from recsys_mtl.metrics import Interval, Resampling, auc_interval, bootstrap_interval
from recsys_mtl.metrics.resampling import draws

FEW = Resampling(replicates=25, seed=3)


def _rows(seed: int = 0, num_rows: int = 400, num_users: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    users = rng.integers(num_users, size=num_rows)
    logits = rng.normal(size=num_rows) + rng.normal(size=num_users)[users]
    scores = np.round(1 / (1 + np.exp(-logits)), 2).clip(0.01, 0.99)  # with ties
    labels = (rng.random(num_rows) < scores).astype(int)
    return {"labels": labels, "scores": scores, "groups": users}


def _delong_by_pairs(labels, scores) -> tuple[float, float]:
    """Return the AUC and its variance, as the paper states them, over all pairs."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    psi = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    by_positive, by_negative = psi.mean(axis=1), psi.mean(axis=0)
    variance = by_positive.var(ddof=1) / len(positive) + by_negative.var(ddof=1) / len(negative)
    return psi.mean(), variance


def _logit(value: float) -> float:
    return math.log(value / (1 - value))


def _deviation(found: Interval) -> float:
    """Return the deviation of the AUC that an interval of 95 % was made from."""
    width = _logit(found.high) - _logit(found.low)
    return width / 2 / norm.ppf(0.975) * found.value * (1 - found.value)


@pytest.mark.parametrize("seed", range(3))
def test_delong_with_ties_equals_the_formula_over_all_pairs(seed: int):
    rows = _rows(seed)
    value, variance = _delong_by_pairs(rows["labels"], rows["scores"])
    found = auc_interval(rows["labels"], rows["scores"])
    assert found.value == pytest.approx(value)
    assert _deviation(found) == pytest.approx(math.sqrt(variance))


def test_delong_agrees_with_the_bootstrap_over_rows_and_over_users():
    rows = _rows(num_rows=3000, num_users=100)
    for groups in (None, rows["groups"]):
        one = auc_interval(rows["labels"], rows["scores"], groups)
        other = bootstrap_interval("auc", rows["labels"], rows["scores"], groups)
        assert one == pytest.approx(other, abs=0.003)


def test_each_row_as_its_own_group_is_delong():
    rows = _rows()
    alone = auc_interval(rows["labels"], rows["scores"], np.arange(400))
    assert alone == pytest.approx(auc_interval(rows["labels"], rows["scores"]))


def test_copies_of_every_row_narrow_the_interval_only_where_users_are_not_told():
    rows = _rows()
    copied = {name: np.repeat(column, 4) for name, column in rows.items()}
    once = auc_interval(rows["labels"], rows["scores"], rows["groups"])
    assert auc_interval(**copied) == pytest.approx(once)
    blind = auc_interval(copied["labels"], copied["scores"])
    assert _deviation(blind) < 0.6 * _deviation(auc_interval(rows["labels"], rows["scores"]))


def test_a_weight_of_zero_is_no_row():
    rows = _rows()
    kept = np.arange(400) % 3 > 0
    some = auc_interval(*(rows[name][kept] for name in ("labels", "scores", "groups")))
    assert auc_interval(**rows, weights=kept) == pytest.approx(some)
    plain = auc_interval(rows["labels"], rows["scores"], weights=kept)
    assert plain == pytest.approx(auc_interval(rows["labels"][kept], rows["scores"][kept]))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """400 samples of 60 users with 8 rows each: blind to users, an interval is too narrow."""
    truth = norm.cdf(1 / math.sqrt(2 * 1.5))
    held = {"users": 0, "rows": 0}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(60), 8)
        labels = (np.arange(480) // 8) % 2  # a user has one label: the worst case for rows
        scores = labels + rng.normal(size=480) + np.sqrt(0.5) * rng.normal(size=60)[users]
        for name, groups in (("users", users), ("rows", None)):
            found = auc_interval(labels, scores, groups)
            held[name] += found.low <= truth <= found.high
    assert 0.92 <= held["users"] / 400 <= 0.98
    assert held["rows"] / 400 < 0.85


def test_a_bootstrap_holds_the_truth_as_often_as_it_says():
    plan = Resampling(replicates=200)
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(60), 5)
        error = rng.normal(size=300) + rng.normal(size=60)[users]
        found = bootstrap_interval(
            "rmse", np.zeros(300), error, users, kind="regression", resampling=plan
        )
        held += found.low <= math.sqrt(2) <= found.high
    assert 0.88 <= held / 200 <= 0.98


@pytest.mark.parametrize(
    "metric", ["auc", "log_loss", "accuracy", "pcoc", "gauc", "ndcg@3", "recall@3", "mrr"]
)
def test_a_replicate_is_the_metric_of_the_rows_of_the_drawn_users(metric: str):
    rows = _rows(num_rows=200, num_users=25)
    replicates = []
    for counts in np.concatenate(list(draws(25, FEW))):
        taken, drawn = [], []  # a user who is drawn twice is two users
        for copy, user in enumerate(np.repeat(np.arange(25), counts.astype(int))):
            own = np.flatnonzero(rows["groups"] == user)
            taken += own.tolist()
            drawn += [copy] * len(own)
        labels, scores = rows["labels"][taken], rows["scores"][taken]
        name, _, depth = metric.partition("@")
        extra: list[Any] = [drawn] if name in ("gauc", "ndcg", "recall", "mrr") else []
        keywords = {"k": int(depth)} if depth else {}
        value = getattr(metrics, name)(labels, scores, *extra, **keywords)
        replicates.append(value.value if name == "gauc" else value)
    found = bootstrap_interval(metric, **rows, resampling=FEW)
    expected = np.quantile(replicates, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_that_of_the_metric_itself(weighted: bool):
    rows = _rows()
    labels, scores, users = rows.values()
    weights = np.random.default_rng(1).random(400) if weighted else None
    for name in ("auc", "log_loss", "accuracy", "pcoc", "ece"):
        expected = getattr(metrics, name)(labels, scores, weights=weights)
        found = bootstrap_interval(name, **rows, weights=weights, resampling=FEW)
        assert found.value == pytest.approx(expected), name
        assert found.low < found.value < found.high, name
    expected = metrics.gauc(labels, scores, users, weights=weights).value
    assert bootstrap_interval("gauc", **rows, weights=weights).value == pytest.approx(expected)
    for name in ("rmse", "mae"):
        expected = getattr(metrics, name)(labels, scores, weights=weights)
        found = bootstrap_interval(name, **rows, weights=weights, kind="regression")
        assert found.value == pytest.approx(expected)
    matrix = np.stack([1 - scores, scores], axis=1)
    for name in ("log_loss", "accuracy"):
        expected = getattr(metrics, f"multiclass_{name}")(labels, matrix, weights=weights)
        found = bootstrap_interval(name, labels, matrix, users, kind="multiclass", weights=weights)
        assert found.value == pytest.approx(expected)


def test_the_interval_of_an_ece_of_true_probabilities_reaches_down_to_nearly_nothing():
    """A replicate has the noise twice: its plain percentiles would all lie above the value."""
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    found = bootstrap_interval("ece", rng.random(4000) < scores, scores)
    assert found.low < found.value < found.high
    assert found.low < 0.01


def test_draws_depend_on_the_seed_alone_and_take_as_many_users_as_there_are():
    one, same, other = (
        np.concatenate(list(draws(70_000, Resampling(5, seed)))) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert (one.sum(axis=1) == 70_000).all()
    assert one.var(axis=1) == pytest.approx(1, abs=0.05)


def test_what_cannot_be_told_is_nan():
    assert all(map(math.isnan, auc_interval([1, 1], [0.1, 0.2])))
    assert all(map(math.isnan, auc_interval([], [])))
    single = auc_interval([1, 0, 0], [0.4, 0.2, 0.6])
    assert single.value == 0.5
    assert math.isnan(single.low)
    assert math.isnan(auc_interval([1, 0, 1, 0], [0.4, 0.2, 0.1, 0.6], ["ann"] * 4).low)
    assert all(map(math.isnan, bootstrap_interval("auc", [1, 1], [0.1, 0.2])))
    assert math.isnan(bootstrap_interval("pcoc", [0, 1], [0.1, 0.2], ["ann", "ann"]).high)
    perfect = auc_interval([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    assert perfect == (1, 1, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "gauc", "groups": None}, "rows without users; found 'gauc'"),
        ({"metric": "rmse"}, "binary task with users; found 'rmse'"),
        ({"groups": ["ann"]}, "same number of rows"),
        ({"labels": [0, 2]}, "must be 0 or 1"),
    ],
)
def test_impossible_arguments_are_refused(changed: dict[str, Any], message: str):
    usual = {"metric": "auc", "labels": [0, 1], "scores": [0.1, 0.2], "groups": ["ann", "bob"]}
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**(usual | changed))


@pytest.mark.parametrize(
    ("changed", "message"), [({"replicates": 0}, "1 or more"), ({"level": 1}, "level")]
)
def test_an_impossible_bootstrap_is_refused(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Resampling(**changed)
