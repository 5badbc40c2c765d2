import math
from collections.abc import Callable

import numpy as np
import pytest

from recsys_mtl.metrics import MetricWarning, multiclass_accuracy, multiclass_log_loss

THIRDS = np.full((2, 3), 1 / 3)


def test_log_loss_of_an_even_guess_is_the_log_of_the_number_of_classes():
    assert multiclass_log_loss([0, 2], THIRDS) == pytest.approx(math.log(3))


def test_log_loss_of_certain_and_wrong_is_finite_in_float32():
    wrong = np.array([[0, 1]], dtype=np.float32)
    assert multiclass_log_loss([0], wrong) == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert multiclass_log_loss([1], wrong) == 0


def test_accuracy_is_weighted():
    scores = [[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]
    assert multiclass_accuracy([0, 2], scores, weights=[3, 1]) == 0.75


def test_accuracy_takes_logits():
    assert multiclass_accuracy([1], [[-5.0, 4.0]]) == 1


@pytest.mark.parametrize("metric", [multiclass_accuracy, multiclass_log_loss])
def test_no_rows_give_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="there are no rows"):
        assert math.isnan(metric([], np.empty((0, 3))))


@pytest.mark.parametrize("metric", [multiclass_accuracy, multiclass_log_loss])
@pytest.mark.parametrize("wrong", [-1, 3, 0.5])
def test_labels_must_name_a_column_of_the_scores(metric: Callable[..., float], wrong: float):
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2.*found 1 others"):
        metric([0, wrong], THIRDS)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="same number of rows"):
        multiclass_accuracy([0], THIRDS)


def test_rows_of_probabilities_must_sum_to_one():
    with pytest.raises(ValueError, match=r"found 1 of 2 rows that do not. Apply a softmax"):
        multiclass_log_loss([0, 1], [[0.5, 0.5], [0.5, 0.9]])


def test_rows_of_float16_probabilities_pass():
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(50), size=500).astype(np.float16)
    assert multiclass_log_loss(rng.integers(0, 50, 500), scores) > 0
