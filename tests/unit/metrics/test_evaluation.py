import math

import numpy as np
import polars as pl
import pytest

from recsys_mtl.metrics import (
    Resampling,
    TaskLabels,
    bootstrap_interval,
    evaluate_tasks,
    miscalibration,
    ndcg,
)
from recsys_mtl.metrics.slices import slices_of


def _world(num_rows: int = 2000):
    rng = np.random.default_rng(0)
    users = rng.integers(150, size=num_rows)
    chance = rng.beta(1, 3, size=num_rows)
    labels = (rng.random(num_rows) < chance).astype(float)
    stars = rng.normal(size=num_rows)
    every, some = np.ones(num_rows, dtype=bool), rng.random(num_rows) < 0.5
    tasks = [
        TaskLabels("ctr", "binary", labels, every),
        TaskLabels("stars", "regression", stars, some, rng.random(num_rows)),
    ]
    return tasks, [chance, stars + rng.normal(size=num_rows)], pl.Series("user", users)


def test_slices_equal_the_evaluation_of_their_rows():
    tasks, scores, users = _world()
    tab = pl.Series("tab", [None if row % 7 == 0 else row % 3 for row in range(2000)])
    found = evaluate_tasks(tasks, scores, users, by=tab, top=3)
    whole = evaluate_tasks(tasks, scores, users, top=3)
    assert found.by == "tab"
    everything = tuple(one for one in found.measurements if one.slice is None)
    assert everything == whole.measurements
    for name, found_rows in (
        *((str(tab_), tab == tab_) for tab_ in range(3)),
        ("(null)", tab.is_null()),
    ):
        rows = found_rows.fill_null(False)
        kept = rows.to_numpy()
        expected = evaluate_tasks(
            [task.take(kept) for task in tasks],
            [column[kept] for column in scores],
            users.filter(rows),
            top=3,
        )
        for one in expected.measurements:
            assert found.value(one.task, one.metric, slice=name) == one.value
    frame = found.to_frame()
    assert frame.columns == ["slice", "task", "metric", "value", "rows"]
    sizes = frame.filter(pl.col("task") == "ctr", pl.col("metric") == "auc")
    assert sizes["slice"].to_list() == [None, "0", "1", "2", "(null)"]
    assert sizes["rows"][1:].sum() == sizes["rows"][0] == 2000
    assert str(found).split("\n")[0].split()[:3] == ["tab", "task", "rows"]
    with pytest.raises(KeyError, match=r"of tab '9'.*slices by tab: 0, 1, 2"):
        found.value("ctr", "auc", slice=9)


def test_a_slice_of_one_class_is_nan_without_a_warning():
    tasks, scores, users = _world()
    clicked = pl.Series("clicked", tasks[0].labels == 1)
    found = evaluate_tasks(tasks, scores, users, by=clicked)
    assert math.isnan(found.value("ctr", "auc", slice="true"))
    assert found.value("ctr", "log_loss", slice="true") > 0


def test_intervals_are_those_of_each_metric_alone():
    tasks, scores, users = _world()
    plan = Resampling(replicates=100, seed=4)
    report = evaluate_tasks(tasks, scores, users, top=3, resampling=plan)
    by_name = {(one.task, one.metric): one for one in report.measurements}
    for metric in ("auc", "gauc", "log_loss", "accuracy", "pcoc", "ece", "ndcg@3", "mrr"):
        one = by_name["ctr", metric]
        expected = bootstrap_interval(metric, tasks[0].labels, scores[0], users, resampling=plan)
        assert (one.value, one.low, one.high) == pytest.approx(tuple(expected))
    assert by_name["ctr", "ndcg@3"].value == pytest.approx(
        ndcg(tasks[0].labels, scores[0], users, k=3)
    )
    assert by_name["stars", "rmse"].low < by_name["stars", "rmse"].value
    assert report.to_frame().columns == ["task", "metric", "value", "low", "high", "rows"]
    assert str(report).split("\n")[0].split() == ["task", "rows", "metric", "value", "low", "high"]
    assert report.notes[-1] == "intervals: 95%, from 100 draws of users with all their rows"


def test_undefined_values_have_undefined_bounds():
    tasks, scores, _ = _world()
    tasks[0].labels[:] = 0
    with pytest.warns(UserWarning, match="undefined"):
        report = evaluate_tasks(tasks, scores, resampling=Resampling(replicates=20))
    first = report.measurements[0]
    assert first.metric == "auc"
    assert all(map(math.isnan, (first.value, first.low, first.high)))
    assert report.measurements[1].low < report.measurements[1].high


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda chance: chance, None),
        (lambda chance: chance * 1.3, "pcoc 1.28"),
        (lambda chance: chance * 0.7, "pcoc 0.69"),
        (lambda chance: 0.25 + (chance - 0.25) * 0.3, "ece 0.1"),
    ],
)
def test_a_task_that_ranks_well_and_is_miscalibrated_is_named(change, said):
    tasks, scores, users = _world(20_000)
    report = evaluate_tasks(tasks, [np.clip(change(scores[0]), 0, 1), scores[1]], users)
    named = [note for note in report.notes if "miscalibrated" in note]
    if said is None:
        assert named == []
    else:
        assert len(named) == 1
        assert named[0].startswith("ctr: ranks well (auc 0.")
        assert said in named[0]


def test_a_miscalibrated_task_that_does_not_rank_is_not_named():
    tasks, scores, users = _world()
    shuffled = np.random.default_rng(1).permutation(scores[0]) * 1.5
    report = evaluate_tasks(tasks, [np.clip(shuffled, 0, 1), scores[1]], users)
    assert not any("miscalibrated" in note for note in report.notes)


def test_noise_alone_is_called_miscalibrated_as_rarely_as_stated():
    called = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        chance = rng.beta(1, 20, size=1500)  # 70 clicks: pcoc strays by more than a tenth
        called += bool(miscalibration(rng.random(1500) < chance, chance))
    assert called / 300 < 0.09


def test_numbers_of_many_values_are_cut_at_quintiles_and_rare_texts_are_one_slice():
    rng = np.random.default_rng(0)
    cut, names = slices_of(pl.Series("price", [*rng.random(999), None, float("nan")]))
    assert len(names) == 6
    assert names[-1] == "(null)"
    assert np.bincount(cut).tolist() == [200, 200, 199, 200, 200, 2]
    texts = [f"city {number}" for number in range(40) for _ in range(40 - number)]
    cut, names = slices_of(pl.Series("city", texts))
    assert names == [*(f"city {number}" for number in range(20)), "(others)"]
    assert np.bincount(cut).tolist() == [*range(40, 20, -1), sum(range(1, 21))]
    days = pl.Series("day", ["2024-01-02", "2024-01-01"]).str.to_date()
    assert slices_of(days)[1] == ["2024-01-01", "2024-01-02"]
    with pytest.raises(ValueError, match="'tags' is List"):
        slices_of(pl.Series("tags", [[1], [2]]))
