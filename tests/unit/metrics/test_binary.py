import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl.metrics import MetricWarning, accuracy, auc, log_loss


def test_ties_count_one_half():
    assert auc([0, 1], [0.5, 0.5]) == 0.5
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == 0.875


def test_auc_weighs_pairs():
    assert auc([0, 0, 1], [0.2, 0.9, 0.5], weights=[3, 1, 2]) == 0.75


def test_negative_zero_ties_with_zero():
    assert auc([0, 1, 0, 1], [-0.0, 0.0, 0.0, -0.0]) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_nan_and_says_which_class_and_how_many_rows(label: int):
    with pytest.warns(MetricWarning, match=f"all 3 rows have label {label}"):
        assert math.isnan(auc([label] * 3, [0.1, 0.2, 0.3]))


def test_auc_does_not_count_a_class_of_weight_zero():
    with pytest.warns(MetricWarning, match="all 2 rows of positive weight have label 1"):
        assert math.isnan(auc([1, 1, 0], [0.1, 0.2, 0.3], weights=[1, 2, 0]))


@pytest.mark.parametrize("metric", [auc, log_loss, accuracy])
def test_no_rows_give_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="there are no rows"):
        assert math.isnan(metric([], []))


@pytest.mark.parametrize("metric", [auc, log_loss, accuracy])
def test_no_weight_gives_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="none of 2 rows has a positive weight"):
        assert math.isnan(metric([0, 1], [0.1, 0.2], weights=[0, 0]))


def test_the_warning_points_at_the_caller():
    with pytest.warns(MetricWarning) as caught:
        auc([1], [0.1])
    assert caught[0].filename == __file__


def test_log_loss_of_certain_and_wrong_is_large_and_finite_in_any_type():
    for dtype in (np.float16, np.float32, np.float64):
        wrong = np.array([1, 0], dtype=dtype)
        assert log_loss([0, 1], wrong) == pytest.approx(-math.log(np.finfo(np.float64).eps))
        assert log_loss([1, 0], wrong) == pytest.approx(0, abs=1e-15)


def test_log_loss_of_float32_is_computed_in_float64():
    scores = np.array([1e-9, 1 - 1e-7], dtype=np.float32)
    assert log_loss([0, 1], scores) == log_loss([0, 1], scores.astype(np.float64))


@pytest.mark.parametrize("scores", [[0.5, 1.2], [-0.1, 0.5]])
def test_log_loss_refuses_logits(scores: list[float]):
    with pytest.raises(ValueError, match=r"1 of 2 outside. Pass probabilities, not logits"):
        log_loss([0, 1], scores)


def test_a_score_at_the_threshold_says_one():
    assert accuracy([1, 0], [0.5, 0.5]) == 0.5
    assert accuracy([1, 0], [0.3, 0.2], threshold=0.3) == 1


@pytest.mark.parametrize(
    "convert", [np.array, pl.Series, pa.array, tuple, lambda values: np.array(values, dtype=object)]
)
def test_any_column_is_accepted(convert: Callable[[Any], Any]):
    labels, scores = convert([0, 1, 1, 0]), convert([0.1, 0.7, 0.3, 0.4])
    assert auc(labels, scores) == 0.75


def test_labels_may_be_booleans_or_floats():
    assert auc([False, True], [0.1, 0.2]) == auc([0.0, 1.0], [0.1, 0.2]) == 1
