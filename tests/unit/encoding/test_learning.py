"""Scales against numpy and scikit-learn, hash ranges and bucket maps by hand."""

import numpy as np
import pytest
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler

from recsys_mtl.encoding.hashing import EMPTY_ROW, NULL_ROW, UNKNOWN_ROW
from recsys_mtl.encoding.learning import NumericScale
from recsys_mtl.encoding.maps import BucketMap, default_buckets
from recsys_mtl.encoding.sources import place_tokens, table_rows
from recsys_mtl.schema import Numeric

NAN = float("nan")


def rows_of(scale: NumericScale, numbers):
    return table_rows([scale.source(numbers)])[:, 0]


def values(seed: int = 0):
    return np.random.default_rng(seed).lognormal(1.0, 2.0, 501)


def test_standard_scaling_is_scikit_learns_cut_at_five_deviations():
    train, new = values(), np.array([0.0, -3.0, 7.5, 1e6, -1e6])
    scale = NumericScale.fit(Numeric("x", scaling="standard"), np.append(train, NAN))
    expected = StandardScaler().fit(train[:, None]).transform(new[:, None])[:, 0].clip(-5, 5)
    np.testing.assert_allclose(scale.dense(new)[:, 0], expected, rtol=1e-6)
    assert scale.dense(new).dtype == np.float32
    assert abs(scale.dense(new)[3:, 0]).tolist() == [5, 5]


def test_log_scaling_is_standard_scaling_of_the_signed_logarithm():
    train, new = values() - 3, np.array([0.0, -3.0, 7.5, 1e6])
    scale = NumericScale.fit(Numeric("x", scaling="log"), train)

    def logged(x):
        return np.where(x < 0, -np.log(1 - np.minimum(x, 0)), np.log(1 + np.maximum(x, 0)))

    reference = StandardScaler().fit(logged(train)[:, None])
    expected = reference.transform(logged(new)[:, None])[:, 0].clip(-5, 5)
    np.testing.assert_allclose(scale.dense(new)[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["standard", "log"])
def test_missing_number_is_zero_with_a_flag(scaling):
    scale = NumericScale.fit(Numeric("x", scaling=scaling), values())
    dense = scale.dense(np.array([NAN, 2.0]))
    assert dense[0].tolist() == [0, 1]
    assert dense[1, 1] == 0


def test_quantile_edges_are_those_of_numpy():
    train = values()
    scale = NumericScale.fit(Numeric("x", num_quantiles=4), np.append(train, [NAN, NAN]))
    np.testing.assert_array_equal(scale.edges, np.quantile(train, [0.25, 0.5, 0.75]))
    assert scale.num_rows == 3 + 4


def test_quantile_buckets_are_those_of_scikit_learn():
    train, new = values(), np.sort(values(1))
    scale = NumericScale.fit(Numeric("x", num_quantiles=8), train)
    reference = KBinsDiscretizer(
        8, encode="ordinal", strategy="quantile", quantile_method="linear", subsample=None
    ).fit(train[:, None])
    expected = reference.transform(new[:, None])[:, 0].astype(int) + 3
    assert rows_of(scale, new).tolist() == expected.tolist()


def test_number_on_an_edge_belongs_to_the_bucket_above():
    scale = NumericScale.fit(Numeric("x", num_quantiles=4), np.array([0.0, 1, 2, 3, 4]))
    assert scale.edges.tolist() == [1, 2, 3]
    assert rows_of(scale, np.array([-9, 0.9, 1, 1.5, 2, 3, 99, NAN])).tolist() == [
        3, 3, 4, 4, 5, 6, 6, NULL_ROW,
    ]  # fmt: skip


def test_equal_edges_are_merged():
    train = np.array([0.0] * 90 + [1.0] * 10)
    scale = NumericScale.fit(Numeric("x", num_quantiles=32), train)
    assert scale.edges[0] == 0
    assert scale.edges[-1] == 1
    assert len(set(scale.edges)) == len(scale.edges) < 31
    assert rows_of(scale, np.array([0.0]))[0] != rows_of(scale, np.array([1.0]))[0]


@pytest.mark.parametrize("scaling", ["quantile", "standard", "log"])
@pytest.mark.parametrize("train", [[], [NAN, NAN], [0.1] * 10, [-3.0]])
def test_column_without_spread_gives_finite_inputs(scaling, train):
    scale = NumericScale.fit(Numeric("x", scaling=scaling), np.array(train))
    new = np.array([0.1, 0.2, NAN])
    rows = rows_of(scale, new)
    assert rows.max() < scale.num_rows
    assert np.isfinite(scale.dense(new)).all()


def test_constant_is_zero_and_other_numbers_are_not_blown_up():
    scale = NumericScale.fit(Numeric("x", scaling="standard"), np.full(10, 0.1))
    np.testing.assert_allclose(scale.dense(np.array([0.1, 0.3]))[:, 0], [0, 0.2], atol=1e-7)


@pytest.mark.parametrize(
    ("distinct", "buckets"),
    [
        (0, 2**16),
        (1, 2**16),
        (2**11, 2**16),
        (2**11 + 1, 2**17),
        (100_000, 2**22),
        (2**21, 2**26),
        (10**9, 2**26),
    ],
)
def test_default_range_is_32_buckets_a_value_rounded_up(distinct, buckets):
    assert default_buckets(distinct) == buckets


def token(bucket: int):
    """A hash that falls into this one of 2**20 buckets."""
    return (bucket << 44) + 5


def test_bucket_map_gives_rows_to_the_buckets_seen_often_enough():
    tokens = np.array([0, 1, *map(token, (7, 9, 70, 9))], np.uint64)
    uses = np.array([50, 50, 1, 1, 3, 1])
    asked = np.array([0, 1, *map(token, (6, 7, 9, 64, 70, 71, 2**20 - 1))], np.uint64)
    all_seen = BucketMap.learn(tokens, uses, num_buckets=2**20)
    assert all_seen.num_rows == 6
    assert place_tokens(asked, all_seen.placement(0, "xxh64")).tolist() == [
        NULL_ROW, EMPTY_ROW, UNKNOWN_ROW, 3, 4, UNKNOWN_ROW, 5, UNKNOWN_ROW, UNKNOWN_ROW,
    ]  # fmt: skip
    twice = BucketMap.learn(tokens, uses, num_buckets=2**20, min_count=2)
    assert place_tokens(asked, twice.placement(0, "xxh64")).tolist() == [0, 2, 1, 1, 3, 1, 4, 1, 1]


def piecewise(num_bins: int, train: np.ndarray) -> NumericScale:
    return NumericScale.fit(Numeric("x", scaling="piecewise", num_quantiles=num_bins), train)


def filled(place: float, num_bins: int) -> list[float]:
    """The paper's vector, from a place among the bins."""
    low = [-np.inf] + [0.0] * (num_bins - 1)
    high = [1.0] * (num_bins - 1) + [np.inf]
    return [min(max(place - t, low[t]), high[t]) for t in range(num_bins)]


def paper(x: float, edges: np.ndarray) -> list[float]:
    """Equation 1 of Gorishniy et al., case by case."""
    last, found = len(edges) - 1, []
    for t in range(1, last + 1):
        if x < edges[t - 1] and t > 1:
            found.append(0.0)
        elif x >= edges[t] and t < last:
            found.append(1.0)
        else:
            found.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return found


def test_a_piecewise_place_stands_for_the_papers_vector():
    train = np.append(np.round(values() % 40), [NAN, 0.0, 0.0])
    scale = piecewise(8, train)
    known = train[~np.isnan(train)]
    np.testing.assert_array_equal(scale.edges, np.unique(np.quantile(known, np.linspace(0, 1, 9))))
    last = scale.edges.size - 1
    new = np.concatenate([scale.edges, [-1.0, 0.25, 7.5, scale.edges[-1] + 3]])
    places = scale.dense(new)[:, 0]
    for x, place in zip(new, places, strict=True):
        np.testing.assert_allclose(filled(place, last), paper(x, scale.edges), atol=1e-5)


def test_a_piecewise_place_goes_on_four_bins_beyond_and_no_further():
    scale = piecewise(2, np.array([0.0, 10.0, 20.0, 30.0, 50.0]))
    assert scale.edges.tolist() == [0, 20, 50]
    new = np.array([-80.0, -81.0, -1e308, 170.0, 171.0, 1e308, 20.0, NAN])
    dense = scale.dense(new)
    assert dense[:, 0].tolist() == [-4, -4, -4, 6, 6, 6, 1, 0]
    assert dense[:, 1].tolist() == [0] * 7 + [1]


def test_large_numbers_keep_their_digits_as_places():
    times = 1.7e12 + np.arange(101.0)
    places = piecewise(10, times).dense(times)[:, 0]
    np.testing.assert_allclose(places, np.arange(101) / 10, atol=1e-5)


@pytest.mark.parametrize("train", [[], [NAN, NAN], [7.0, 7.0], [0.0], [-1e300]])
def test_a_constant_or_missing_number_has_one_bin(train):
    scale = piecewise(4, np.array(train))
    assert scale.edges.size == 2
    assert np.isfinite(scale.dense(np.array([0.0, 7.0, NAN, 1e300]))).all()


def test_a_periodic_number_is_scaled_as_a_standard_one():
    train = values()
    found = [
        NumericScale.fit(Numeric("x", scaling=kind), train) for kind in ("periodic", "standard")
    ]
    np.testing.assert_array_equal(*(scale.dense(train) for scale in found))
