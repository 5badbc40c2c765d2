import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from recsys_mtl.metrics import MetricWarning, mrr, ndcg, ranked_lists, recall


def _plain(labels, k):
    """NDCG, recall and reciprocal rank of labels in ranked order, by the definitions."""
    ideal = sorted(labels, reverse=True)
    gained = sum(label / math.log2(rank + 2) for rank, label in enumerate(labels[:k]))
    best = sum(label / math.log2(rank + 2) for rank, label in enumerate(ideal[:k]))
    first = next(rank for rank, label in enumerate(labels) if label) + 1
    return gained / best, sum(labels[:k]) / sum(labels), 1 / first


def _by_loop(labels, scores, users, k):
    """The mean of `_plain` over all orders of equal scores, user by user."""
    found = {}
    for user in sorted(set(users)):
        own = [row for row in range(len(users)) if users[row] == user]
        if not any(labels[row] for row in own):
            continue
        orders = [
            order
            for order in itertools.permutations(own)
            if all(scores[one] >= scores[two] for one, two in itertools.pairwise(order))
        ]
        found[user] = np.mean([_plain([labels[row] for row in order], k) for order in orders], 0)
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_each_user_gets_the_mean_over_all_orders_of_equal_scores(k: int, levels: int):
    rng = np.random.default_rng(levels)
    users, labels = rng.integers(10, size=45), rng.integers(2, size=45)
    users[:6] = 10  # one with six rows at least
    scores = rng.integers(levels, size=45).astype(float)
    users = np.where(np.bincount(users)[users] > 7, 11 + np.arange(45) // 6, users)
    found = ranked_lists(labels, scores, users, k=k)
    expected = _by_loop(labels.tolist(), scores.tolist(), users.tolist(), k)
    defined = ~np.isnan(found.mrr)
    assert found.codes.tolist() == sorted(set(users.tolist()))
    assert found.codes[defined].tolist() == list(expected)
    rows = np.array(list(expected.values()))
    np.testing.assert_allclose(found.ndcg[defined], rows[:, 0])
    np.testing.assert_allclose(found.recall[defined], rows[:, 1])
    np.testing.assert_allclose(found.mrr[defined], rows[:, 2])
    assert recall(labels, scores, users, k=k) == pytest.approx(rows[:, 1].mean())
    assert mrr(labels, scores, users) == pytest.approx(rows[:, 2].mean())


@pytest.mark.parametrize("k", [1, 5, None])
def test_ndcg_of_graded_labels_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(0)
    gains, scores = rng.integers(4, size=60), rng.integers(8, size=60) / 8
    users = np.repeat([0, 1, 2], 20)
    expected = [
        ndcg_score([gains[users == user]], [scores[users == user]], k=k) for user in range(3)
    ]
    np.testing.assert_allclose(ranked_lists(gains, scores, users, k=k).ndcg, expected)
    assert ndcg(gains, scores, users, k=k) == pytest.approx(np.mean(expected))


def test_one_score_for_all_gets_what_chance_gets():
    labels = np.zeros(50, int)
    labels[7] = 1
    same = np.ones(50)
    assert recall(labels, same, same.astype(int), k=10) == pytest.approx(10 / 50)
    harmonic = np.sum(1 / np.arange(1, 51)) / 50
    assert mrr(labels, same, same.astype(int)) == pytest.approx(harmonic)


def test_no_relevant_row_is_nan_with_a_warning_at_the_caller():
    for measure in (lambda *rows: recall(*rows, k=1), mrr):
        for rows in (([0, 0], [0.1, 0.2], ["a", "b"]), ([], [], [])):
            with pytest.warns(MetricWarning, match="undefined") as caught:
                assert math.isnan(measure(*rows))
            assert caught[0].filename == __file__
