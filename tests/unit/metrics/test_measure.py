import math
from typing import Any

import numpy as np
import pytest

from recsys_mtl import metrics
from recsys_mtl.metrics import Measurement, MetricWarning, measure_task

LABELS = [0, 1, 1, 0, 1]
SCORES = [0.1, 0.9, 0.3, 0.4, 0.5]
USERS = ["ann", "ann", "bob", "bob", "cy"]
ALL = [True] * 5


def _names(found: list[Measurement]) -> list[str]:
    return [measurement.metric for measurement in found]


def test_binary_without_groups_has_no_gauc():
    found, notes = measure_task("click", "binary", labels=LABELS, observed=ALL, scores=SCORES)
    assert _names(found) == ["auc", "log_loss", "accuracy", "pcoc", "ece"]
    assert found[0] == Measurement("click", "auc", metrics.auc(LABELS, SCORES), 5)
    assert notes == []


def test_binary_with_groups_says_what_gauc_dropped():
    found, notes = measure_task(
        "click", "binary", labels=LABELS, observed=ALL, scores=SCORES, groups=USERS
    )
    assert _names(found) == ["auc", "gauc", "log_loss", "accuracy", "pcoc", "ece"]
    assert notes == ["click: gauc uses 2 of 3 groups (4 rows); 1 dropped, with labels of one class"]


def test_regression_and_multiclass_have_their_own_metrics():
    found, _ = measure_task("rating", "regression", labels=LABELS, observed=ALL, scores=SCORES)
    assert _names(found) == ["rmse", "mae"]
    found, _ = measure_task(
        "genre", "multiclass", labels=[0, 1], observed=[True, True], scores=[[0.9, 0.1], [0.8, 0.2]]
    )
    assert [(one.metric, one.value) for one in found] == [
        ("log_loss", pytest.approx(-np.log([0.9, 0.2]).mean())),
        ("accuracy", 0.5),
    ]


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_unobserved_rows_may_hold_anything(kind: str):
    scores = np.array([[0.3, 0.7], [np.nan, np.nan], [0.6, 0.4]])
    if kind != "multiclass":
        scores = scores[:, 1]
    columns = {"labels": np.array([1, np.nan, 0]), "scores": scores, "weights": [1, -1, 2]}
    found, _ = measure_task("task", kind, observed=[True, False, True], **columns)
    known = {name: np.asarray(column)[[0, 2]] for name, column in columns.items()}
    expected, _ = measure_task("task", kind, observed=[True, True], **known)
    assert found == expected
    assert {one.rows for one in found} == {2}


def test_no_observed_rows_give_nan_one_warning_and_a_note():
    with pytest.warns(MetricWarning, match="Task 'click' has no observed rows") as caught:
        found, notes = measure_task(
            "click", "binary", labels=LABELS, observed=[False] * 5, scores=SCORES, groups=USERS
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(math.isnan(one.value) and one.rows == 0 for one in found)
    assert _names(found) == ["auc", "gauc", "log_loss", "accuracy", "pcoc", "ece"]
    assert notes == ["click: no observed rows"]


def test_an_undefined_metric_is_noted():
    with pytest.warns(MetricWarning):
        found, notes = measure_task(
            "click", "binary", labels=[0, 0], observed=[True, True], scores=[0.1, 0.2]
        )
    assert [math.isnan(one.value) for one in found] == [True, False, False, True, False]
    assert notes == ["click: auc, pcoc undefined on these 2 rows"]


def test_metrics_restrict_and_those_of_other_kinds_are_left_out():
    found, _ = measure_task(
        "click", "binary", labels=LABELS, observed=ALL, scores=SCORES, metrics={"rmse", "auc"}
    )
    assert _names(found) == ["auc"]


def test_measuring_regression_ignores_groups():
    found, _ = measure_task(
        "rating", "regression", labels=LABELS, observed=ALL, scores=SCORES, groups=USERS
    )
    assert _names(found) == ["rmse", "mae"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metrics": ["ndcg"]}, r"metrics must be among .*found \['ndcg'\]"),
        ({"metrics": ["gauc"]}, "gauc needs groups"),
        ({"kind": "survival"}, "kind must be one of .*found 'survival'"),
        ({"observed": [1, 1, 1, 0, 0]}, "observed must be booleans"),
        ({"observed": [True]}, "same number of rows.*'observed': 1"),
        ({"groups": ["ann"]}, "same number of rows.*'groups': 1"),
        ({"weights": [1]}, "same number of rows.*'weights': 1"),
        ({"scores": [np.nan] * 5}, "found 5 NaN"),
    ],
)
def test_impossible_arguments_are_refused(changed: dict[str, Any], message: str):
    arguments = {"kind": "binary", "labels": LABELS, "observed": ALL, "scores": SCORES}
    with pytest.raises(ValueError, match=message):
        measure_task("click", **(arguments | changed))
