import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl.metrics import GroupedAUC, MetricWarning, gauc

LABELS = [0, 1, 1, 0, 1, 0]
SCORES = [0.1, 0.9, 0.3, 0.4, 0.5, 0.2]
USERS = ["ann", "ann", "bob", "bob", "cy", "bob"]


def test_groups_are_weighted_by_impressions_and_one_class_groups_are_counted():
    assert gauc(LABELS, SCORES, USERS) == GroupedAUC(
        value=pytest.approx((2 * 1 + 3 * 0.5) / 5), groups_used=2, groups_dropped=1, rows_used=5
    )


def test_weights_count_as_impressions():
    found = gauc([0, 1, 1, 0], [0.1, 0.9, 0.3, 0.4], [7, 7, 8, 8], weights=[3, 3, 1, 1])
    assert found.value == 0.75


def test_rows_of_a_group_need_not_be_neighbours():
    order = [3, 0, 5, 4, 1, 2]
    shuffled = [[column[row] for row in order] for column in (LABELS, SCORES, USERS)]
    assert gauc(*shuffled) == gauc(LABELS, SCORES, USERS)


def test_all_groups_of_one_class_give_nan_and_a_warning():
    with pytest.warns(MetricWarning, match="none of 2 groups has both classes"):
        found = gauc([1, 1, 0], [0.1, 0.2, 0.3], ["a", "a", "b"])
    assert math.isnan(found.value)
    assert (found.groups_used, found.groups_dropped, found.rows_used) == (0, 2, 0)


def test_no_rows_give_nan_and_a_warning():
    with pytest.warns(MetricWarning, match="there are no rows"):
        found = gauc([], [], [])
    assert math.isnan(found.value)
    assert (found.groups_used, found.groups_dropped) == (0, 0)


@pytest.mark.parametrize(
    "convert",
    [
        tuple,
        np.array,
        lambda users: np.array(users, dtype=object),
        lambda users: np.array(users, dtype="S"),
        pl.Series,
        lambda users: pl.Series(users, dtype=pl.Categorical),
        pd.Series,
        lambda users: pd.Series(users, dtype="category"),
        pa.array,
        lambda users: pa.array(users).dictionary_encode(),
        lambda users: pa.chunked_array([users[:2], users[2:]]),
        lambda users: [len(user) * 2**60 + ord(user[0]) for user in users],
        lambda users: np.array([2**64 - ord(user[0]) for user in users], dtype=np.uint64),
    ],
)
def test_any_column_of_groups_gives_the_same(convert: Callable[[Any], Any]):
    assert gauc(LABELS, SCORES, convert(USERS)) == gauc(LABELS, SCORES, USERS)


@pytest.mark.parametrize("base", [2**24, 2**31, 2**53, 2**63 - 2])
def test_neighbouring_large_ids_stay_distinct(base: int):
    found = gauc([0, 1, 1, 0], [0.1, 0.9, 0.3, 0.4], [base, base, base + 1, base + 1])
    assert found.groups_used == 2


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", None, "b"], "found 1 nulls among 3 rows"),
        ([1.0, 2.0, 3.0], "found Float64. Ids lose digits as floats"),
        ([[1], [2], [3]], "found List"),
        (["a", 1, "b"], "must be of one type"),
        (["a", "b"], "same number of rows"),
    ],
)
def test_impossible_groups_are_refused(groups: list[Any], message: str):
    with pytest.raises(ValueError, match=message):
        gauc([0, 1, 1], [0.1, 0.2, 0.3], groups)
