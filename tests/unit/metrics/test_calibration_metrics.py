import math
from collections.abc import Callable

import numpy as np
import pytest

from recsys_mtl.metrics import MetricWarning, ece, pcoc

LABELS = [0, 0, 0, 1, 1, 1]
SCORES = [0.1, 0.1, 0.1, 0.1, 0.8, 0.8]


def test_pcoc_of_the_toy_case():
    assert pcoc(LABELS, SCORES) == pytest.approx(2 / 3)


def test_ece_of_the_toy_case():
    assert ece(LABELS, SCORES, num_bins=2) == pytest.approx(1 / 6)


def test_ece_of_one_bin_is_the_overall_gap():
    assert ece(LABELS, SCORES, num_bins=1) == pytest.approx(1 / 6)
    assert ece([0, 1], [0.9, 0.1], num_bins=1) == pytest.approx(0)


def test_bins_hold_equal_mass():
    scores = np.arange(1, 9) / 100
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    low, high = scores[:4].mean(), 1 - scores[4:].mean()
    assert ece(labels, scores, num_bins=2) == pytest.approx((low + high) / 2)


def test_a_heavy_row_fills_a_bin():
    gaps = 0.5 * 0.1 + 0.5 * abs(np.mean([0.2, 0.3]) - 0.5)
    found = ece([0, 0, 1], [0.1, 0.2, 0.3], num_bins=2, weights=[2, 1, 1])
    assert found == pytest.approx(gaps)


def test_pcoc_without_positives_is_nan():
    with pytest.warns(MetricWarning, match="none of 2 rows is positive"):
        assert math.isnan(pcoc([0, 0], [0.1, 0.2]))


@pytest.mark.parametrize("metric", [pcoc, ece])
def test_no_rows_give_nan_and_a_warning(metric: Callable[..., float]):
    with pytest.warns(MetricWarning, match="there are no rows"):
        assert math.isnan(metric([], []))


def test_ece_needs_a_bin():
    with pytest.raises(ValueError, match="num_bins must be 1 or more; found 0"):
        ece(LABELS, SCORES, num_bins=0)


def test_calibrated_scores_have_little_error():
    rng = np.random.default_rng(2)
    chance = rng.beta(1, 20, 200_000)
    labels = rng.random(200_000) < chance
    assert pcoc(labels, chance) == pytest.approx(1, abs=0.03)
    assert ece(labels, chance) < 0.003
    assert ece(labels, chance**2) > 0.03
