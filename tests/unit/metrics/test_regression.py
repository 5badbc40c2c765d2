import math
from collections.abc import Callable

import pytest

from recsys_mtl.metrics import MetricWarning, mae, r2, rmse


def test_errors_are_weighted():
    assert rmse([1, 5], [4, 1], weights=[1, 0]) == 3
    assert mae([1, 5], [4, 1], weights=[1, 3]) == 3.75
    assert r2([1, 2, 3], [1, 2, 9], weights=[1, 1, 0]) == 1


def test_the_mean_label_explains_no_variance():
    assert r2([1, 2, 3], [2, 2, 2]) == 0


@pytest.mark.parametrize("metric", [rmse, mae, r2])
def test_no_rows_give_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="there are no rows"):
        assert math.isnan(metric([], []))


@pytest.mark.parametrize("metric", [rmse, mae, r2])
def test_no_weight_gives_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="none of 2 rows has a positive weight"):
        assert math.isnan(metric([1, 2], [1, 2], weights=[0, 0]))


def test_equal_labels_have_no_variance_to_explain():
    with pytest.warns(MetricWarning, match=r"all 2 labels are 4\.0"):
        assert math.isnan(r2([4, 4], [3, 4]))
