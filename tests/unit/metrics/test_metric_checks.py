from collections.abc import Callable

import numpy as np
import pytest

from recsys_mtl import metrics

BINARY = [metrics.auc, metrics.log_loss, metrics.accuracy, metrics.pcoc, metrics.ece]
REGRESSION = [metrics.rmse, metrics.mae, metrics.r2]


@pytest.mark.parametrize("metric", BINARY + REGRESSION)
def test_lengths_must_agree(metric: Callable[..., float]):
    with pytest.raises(ValueError, match=r"same number of rows.*'labels': 3, 'scores': 2"):
        metric([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"same number of rows.*'weights': 1"):
        metric([0, 1], [0.1, 0.2], weights=[1.0])


@pytest.mark.parametrize("metric", BINARY + REGRESSION)
def test_scores_must_be_finite_and_the_error_counts_them(metric: Callable[..., float]):
    with pytest.raises(
        ValueError, match="scores must be finite; found 2 NaN and 1 infinite among 4"
    ):
        metric([0, 1, 1, 0], [0.1, np.nan, np.nan, np.inf])


@pytest.mark.parametrize("metric", BINARY + REGRESSION)
def test_labels_must_be_finite(metric: Callable[..., float]):
    with pytest.raises(ValueError, match="labels must be finite; found 1 NaN"):
        metric([0, None], [0.1, 0.2])


@pytest.mark.parametrize("metric", BINARY + REGRESSION)
def test_weights_must_not_be_negative(metric: Callable[..., float]):
    with pytest.raises(ValueError, match="weights must be 0 or more; found 1 below 0"):
        metric([0, 1], [0.1, 0.2], weights=[1.0, -1.0])


@pytest.mark.parametrize("metric", BINARY)
def test_binary_labels_must_be_zero_or_one(metric: Callable[..., float]):
    with pytest.raises(ValueError, match=r"must be 0 or 1; found 2 others, such as \[2.0, 5.0\]"):
        metric([0, 5, 2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("metric", BINARY + REGRESSION)
def test_columns_must_have_one_dimension(metric: Callable[..., float]):
    with pytest.raises(
        ValueError, match=r"scores must have 1 dimension\(s\); found shape \(2, 1\)"
    ):
        metric([0, 1], [[0.1], [0.2]])
