"""Laws of the metrics on any input hypothesis can think of."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys_mtl import metrics

CLOSE = 1e-9
Impressions = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]

# The first call compiles the kernel; that is no slow example.
unhurried = settings(deadline=None)


@st.composite
def impressions(draw: st.DrawFn) -> Impressions:
    """Labels, tied scores in (0, 1), weights and users of a few rows, with both classes."""
    num_rows = draw(st.integers(2, 60))

    def column(values: st.SearchStrategy[int]) -> NDArray[Any]:
        return np.array(draw(st.lists(values, min_size=num_rows, max_size=num_rows)))

    labels = column(st.integers(0, 1))
    assume(0 < labels.sum() < num_rows)
    scores = column(st.integers(1, 15)) / 16
    weights = column(st.integers(1, 8)) / 4
    users = column(st.integers(0, 5))
    return labels, scores, weights, users


@unhurried
@given(impressions())
def test_auc_equals_counting_all_pairs(rows: Impressions):
    labels, scores, weights, _ = rows
    better = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    pairs = np.outer(weights * labels, weights * (1 - labels))
    expected = (better * pairs).sum() / pairs.sum()
    assert metrics.auc(labels, scores, weights=weights) == pytest.approx(expected, abs=CLOSE)


@unhurried
@given(impressions(), st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_rows(rows: Impressions, random: Random):
    labels, scores, weights, users = rows
    order = random.sample(range(len(labels)), len(labels))
    for metric in (metrics.auc, metrics.log_loss, metrics.accuracy, metrics.pcoc, metrics.ece):
        before = metric(labels, scores, weights=weights)
        after = metric(labels[order], scores[order], weights=weights[order])
        assert after == pytest.approx(before, abs=CLOSE)
    if _some_user_has_both_classes(labels, users):
        found = metrics.gauc(labels, scores, users, weights=weights)
        moved = metrics.gauc(labels[order], scores[order], users[order], weights=weights[order])
        assert moved.value == pytest.approx(found.value, abs=CLOSE)
        assert (moved.groups_used, moved.groups_dropped) == (
            found.groups_used,
            found.groups_dropped,
        )


@unhurried
@given(impressions())
def test_auc_of_negated_scores_is_the_complement(rows: Impressions):
    labels, scores, weights, _ = rows
    found = metrics.auc(labels, scores, weights=weights)
    assert metrics.auc(labels, -scores, weights=weights) == pytest.approx(1 - found, abs=CLOSE)
    assert metrics.auc(1 - labels, scores, weights=weights) == pytest.approx(1 - found, abs=CLOSE)


@unhurried
@given(impressions())
def test_auc_and_gauc_ignore_a_monotone_change_of_scores(rows: Impressions):
    labels, scores, weights, users = rows
    changed = np.log(scores) * 3 - 100
    assert metrics.auc(labels, changed, weights=weights) == metrics.auc(
        labels, scores, weights=weights
    )
    assume(_some_user_has_both_classes(labels, users))
    per_user = scores ** (users + 1) + 10.0 * (users % 3)
    assert metrics.gauc(labels, per_user, users) == metrics.gauc(labels, scores, users)


@unhurried
@given(impressions())
def test_gauc_of_one_user_is_auc(rows: Impressions):
    labels, scores, weights, _ = rows
    found = metrics.gauc(labels, scores, ["ann"] * len(labels), weights=weights)
    expected = metrics.auc(labels, scores, weights=weights)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert (found.groups_used, found.groups_dropped, found.rows_used) == (1, 0, len(labels))


@unhurried
@given(impressions())
def test_gauc_does_not_care_how_users_are_named(rows: Impressions):
    labels, scores, weights, users = rows
    assume(_some_user_has_both_classes(labels, users))
    found = metrics.gauc(labels, scores, users, weights=weights)
    for names in (users + 2**62, users * -(2**40), users.astype(str), [f"u{u}" for u in users]):
        named = metrics.gauc(labels, scores, names, weights=weights)
        assert named.value == pytest.approx(found.value, abs=CLOSE)
        assert (named.groups_used, named.rows_used) == (found.groups_used, found.rows_used)


@unhurried
@given(impressions(), st.integers(1, 4))
def test_a_whole_weight_is_a_repeated_row(rows: Impressions, times: int):
    labels, scores, _, _ = rows
    repeats = np.arange(len(labels)) % times + 1
    for metric in (metrics.auc, metrics.log_loss, metrics.accuracy, metrics.pcoc, metrics.rmse):
        weighted = metric(labels, scores, weights=repeats)
        repeated = metric(labels.repeat(repeats), scores.repeat(repeats))
        assert weighted == pytest.approx(repeated, abs=CLOSE)


@unhurried
@given(impressions())
def test_a_row_of_weight_zero_changes_nothing(rows: Impressions):
    labels, scores, weights, users = rows
    more = (np.r_[labels, 1 - labels], np.r_[scores, 1 - scores])
    mass = np.r_[weights, 0 * weights]
    for metric in (metrics.auc, metrics.log_loss, metrics.accuracy, metrics.pcoc, metrics.ece):
        found = metric(labels, scores, weights=weights)
        assert metric(*more, weights=mass) == pytest.approx(found, abs=CLOSE)
    assume(_some_user_has_both_classes(labels, users))
    found = metrics.gauc(labels, scores, users, weights=weights)
    padded = metrics.gauc(*more, np.r_[users, users], weights=mass)
    assert padded.value == pytest.approx(found.value, abs=CLOSE)
    assert padded.groups_used == found.groups_used


@unhurried
@given(impressions(), st.integers(1, 20))
def test_ece_lies_between_the_overall_gap_and_one(rows: Impressions, num_bins: int):
    labels, scores, weights, _ = rows
    found = metrics.ece(labels, scores, num_bins=num_bins, weights=weights)
    overall = abs(np.average(scores - labels, weights=weights))
    assert overall - CLOSE <= found <= 1


@unhurried
@given(impressions(), st.data())
def test_unobserved_rows_do_not_matter(rows: Impressions, data: st.DataObject):
    labels, scores, weights, users = rows
    flags = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    observed = np.array(flags)
    assume(0 < labels[observed].sum() < observed.sum())
    assume(_some_user_has_both_classes(labels[observed], users[observed]))
    kept, _ = metrics.measure_task(
        "click",
        "binary",
        labels=labels[observed],
        observed=np.ones(observed.sum(), dtype=bool),
        scores=scores[observed],
        weights=weights[observed],
        groups=users[observed],
    )
    masked, _ = metrics.measure_task(
        "click",
        "binary",
        labels=np.where(observed, labels, np.nan),
        observed=observed,
        scores=np.where(observed, scores, np.inf),
        weights=np.where(observed, weights, -1),
        groups=[int(user) if known else None for user, known in zip(users, flags, strict=True)],
    )
    assert masked == kept


def _some_user_has_both_classes(labels: NDArray[Any], users: NDArray[Any]) -> bool:
    return any(len(set(labels[users == user])) == 2 for user in set(users.tolist()))
