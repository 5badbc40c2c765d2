"""Every metric equals scikit-learn's, and grouped AUC a loop over users with scikit-learn."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from recsys_mtl import metrics

EXACT = 1e-12


def _binary_case(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(7)
    scores = rng.random(2_000)
    if name == "ties":
        scores = scores.round(1)
    if name == "all_tied":
        scores = np.full(2_000, 0.3)
    if name == "float32":
        scores = scores.astype(np.float32)
    labels = rng.random(2_000) < 0.2 + 0.3 * scores
    if name == "one_positive":
        labels = np.arange(2_000) == 1_234
    if name == "one_negative":
        labels = np.arange(2_000) != 1_234
    if name == "negative_scores":
        scores = scores * 8 - 4
    return labels.astype(np.int64), scores


CASES = ["plain", "ties", "all_tied", "float32", "one_positive", "one_negative", "negative_scores"]


def _weights(kind: str, num_rows: int) -> NDArray[Any] | None:
    rng = np.random.default_rng(11)
    if kind == "none":
        return None
    if kind == "random":
        return rng.random(num_rows) + 0.1
    if kind == "wide":
        return 10.0 ** rng.uniform(-3, 3, num_rows)
    return rng.integers(0, 3, num_rows).astype(float)


WEIGHTS = ["none", "random", "wide", "some_zero"]


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("case", CASES)
def test_auc_equals_sklearn(case: str, weighting: str):
    labels, scores = _binary_case(case)
    weights = _weights(weighting, len(labels))
    if weights is not None:
        weights[1_234] = 0.7  # the lone row of its class must count
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(labels, scores, weights=weights) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_log_loss_equals_sklearn(weighting: str):
    labels, scores = _binary_case("plain")
    weights = _weights(weighting, len(labels))
    expected = sk.log_loss(labels, scores, sample_weight=weights)
    assert metrics.log_loss(labels, scores, weights=weights) == pytest.approx(expected, abs=EXACT)


def test_log_loss_of_certain_wrong_float64_equals_sklearn():
    labels, certain = [0, 1, 1, 0], np.array([1.0, 0.0, 1.0, 0.0])
    expected = sk.log_loss(labels, certain)
    assert metrics.log_loss(labels, certain) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_accuracy_equals_sklearn(threshold: float, weighting: str):
    labels, scores = _binary_case("ties")
    weights = _weights(weighting, len(labels))
    expected = sk.accuracy_score(labels, scores >= threshold, sample_weight=weights)
    found = metrics.accuracy(labels, scores, weights=weights, threshold=threshold)
    assert found == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_multiclass_metrics_equal_sklearn(weighting: str):
    rng = np.random.default_rng(3)
    scores = rng.dirichlet([1.0, 2.0, 0.5, 1.0], size=800)
    labels = rng.integers(0, 4, 800)
    weights = _weights(weighting, 800)
    loss = sk.log_loss(labels, scores, sample_weight=weights, labels=range(4))
    assert metrics.multiclass_log_loss(labels, scores, weights=weights) == pytest.approx(
        loss, abs=EXACT
    )
    share = sk.accuracy_score(labels, scores.argmax(axis=1), sample_weight=weights)
    assert metrics.multiclass_accuracy(labels, scores, weights=weights) == pytest.approx(
        share, abs=EXACT
    )


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_regression_metrics_equal_sklearn(weighting: str):
    rng = np.random.default_rng(5)
    labels = rng.normal(3, 1, 700)
    scores = labels + rng.normal(0, 0.4, 700)
    weights = _weights(weighting, 700)
    for ours, theirs in [
        (metrics.rmse, sk.root_mean_squared_error),
        (metrics.mae, sk.mean_absolute_error),
        (metrics.r2, sk.r2_score),
    ]:
        expected = theirs(labels, scores, sample_weight=weights)
        assert ours(labels, scores, weights=weights) == pytest.approx(expected, abs=EXACT)


def _gauc_by_loop(
    labels: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[float, int, int, int]:
    impressions = np.ones(len(labels)) if weights is None else weights
    total = mass = 0.0
    used = dropped = rows = 0
    for group in set(groups.tolist()):
        own = groups == group
        counted = own & (impressions > 0)
        if len(set(labels[counted].tolist())) < 2:
            dropped += 1
            continue
        value = sk.roc_auc_score(labels[own], scores[own], sample_weight=impressions[own])
        total += value * impressions[own].sum()
        mass += impressions[own].sum()
        used += 1
        rows += int(own.sum())
    return total / mass, used, dropped, rows


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("kind", ["integer", "text", "bytes", "object", "categorical"])
def test_gauc_equals_a_loop_over_users_with_sklearn(kind: str, weighting: str):
    rng = np.random.default_rng(13)
    num_rows = 1_500
    labels = rng.integers(0, 2, num_rows)
    scores = rng.random(num_rows).round(2)
    groups = (rng.zipf(1.5, num_rows) % 200 + 2**62).astype(np.int64)
    weights = _weights(weighting, num_rows)
    value, used, dropped, rows = _gauc_by_loop(labels, scores, groups, weights)
    text = groups.astype(str)
    column = {
        "integer": groups,
        "text": text,
        "bytes": text.astype("S"),
        "object": text.astype(object),
        "categorical": pl.Series(text).cast(pl.Categorical),
    }[kind]
    found = metrics.gauc(labels, scores, column, weights=weights)
    assert dropped > 10
    assert found.value == pytest.approx(value, abs=EXACT)
    assert (found.groups_used, found.groups_dropped, found.rows_used) == (used, dropped, rows)


@pytest.mark.parametrize("k", [None, 1, 3, 10])
@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_equals_a_loop_over_groups_with_sklearn(k: int | None, tied: bool) -> None:
    rng = np.random.default_rng(5)
    users = rng.integers(0, 40, 1_000)
    relevances = rng.integers(0, 4, 1_000) * (users > 2)  # three users have no relevance at all
    scores = rng.random(1_000).round(1 if tied else 12)
    expected = [
        sk.ndcg_score([relevances[users == user]], [scores[users == user]], k=k)
        for user in np.unique(users)
        if relevances[users == user].any()
    ]
    assert metrics.ndcg(relevances, scores, users, k=k) == pytest.approx(
        np.mean(expected), abs=EXACT
    )


def test_ndcg_without_any_relevance_is_undefined() -> None:
    with pytest.warns(metrics.MetricWarning, match="none of 2 groups"):
        assert np.isnan(metrics.ndcg([0, 0], [0.1, 0.2], ["ann", "bob"]))


@pytest.mark.parametrize(
    ("relevances", "k", "message"), [([-1, 1], None, "0 or more"), ([0, 1], 0, "k must be")]
)
def test_ndcg_refuses_what_it_cannot_rank(
    relevances: list[int], k: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.ndcg(relevances, [0.1, 0.2], ["ann", "ann"], k=k)
