import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl.metrics import (
    Comparison,
    Resampling,
    TaskLabels,
    auc,
    compare_scores,
    gauc,
    rmse,
)
from recsys_mtl.metrics.resampling import draws

NUM_ROWS, NUM_USERS = 6000, 300
FEW = Resampling(replicates=200)


def _world(seed: int = 0) -> tuple[list[TaskLabels], pl.Series, np.ndarray]:
    """A binary task, a regression observed in part, the users, and the true logits."""
    rng = np.random.default_rng(seed)
    users = rng.integers(NUM_USERS, size=NUM_ROWS)
    logits = rng.normal(size=NUM_ROWS) + 0.5 * rng.normal(size=NUM_USERS)[users] - 1
    clicks = (rng.random(NUM_ROWS) < _chance(logits)).astype(float)
    ratings = logits + rng.normal(size=NUM_ROWS)
    every = np.ones(NUM_ROWS, dtype=bool)
    seen = rng.random(NUM_ROWS) < 0.3
    tasks = [
        TaskLabels("ctr", "binary", clicks, every),
        TaskLabels("rating", "regression", np.where(seen, ratings, np.nan), seen),
    ]
    return tasks, pl.Series("user", users), logits


def _chance(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _scores(logits: np.ndarray, noise: float, seed: int) -> dict[str, np.ndarray]:
    """What a model of that much error says."""
    off = logits + noise * np.random.default_rng(seed).normal(size=len(logits))
    return {"ctr": _chance(off), "rating": off}


def test_a_model_compared_with_itself_is_exactly_equal():
    tasks, users, logits = _world()
    seeds = [_scores(logits, 0.5, seed) for seed in (1, 2)]
    found = compare_scores(tasks, {"one": seeds, "two": seeds}, users, top=5)
    assert {one.metric for one in found.differences} >= {"auc", "gauc", "ece", "ndcg@5", "mrr"}
    for one in found.differences:
        assert (one.difference, one.low, one.high, one.wins) == (0, 0, 0, 0.5)
        assert one.verdict == "no evidence"
        assert one.first_value == one.second_value


def test_values_are_those_of_the_metrics_on_observed_rows_averaged_over_seeds():
    tasks, users, logits = _world()
    first, second = [_scores(logits, 0.3, 1)], [_scores(logits, 0.9, seed) for seed in (2, 3)]
    found = compare_scores(tasks, {"one": first, "two": second}, users, resampling=FEW)
    clicks, seen = tasks[0].labels, tasks[1].observed
    one = found.find("ctr", "auc")
    assert one.first_value == pytest.approx(auc(clicks, first[0]["ctr"]))
    expected = np.mean([auc(clicks, scores["ctr"]) for scores in second])
    assert one.second_value == pytest.approx(expected)
    assert one.difference == pytest.approx(one.first_value - one.second_value)
    expected = gauc(clicks, first[0]["ctr"], users).value
    assert found.find("ctr", "gauc").first_value == pytest.approx(expected)
    one = found.find("rating", "rmse")
    ratings = tasks[1].labels
    assert one.first_value == pytest.approx(rmse(ratings[seen], first[0]["rating"][seen]))
    assert one.rows == seen.sum()


def test_bounds_and_wins_are_those_of_a_loop_over_drawn_users():
    tasks, users, logits = _world()
    first, second = _scores(logits, 0.4, 1), _scores(logits, 0.5, 2)
    plan = Resampling(replicates=30, seed=5)
    gaps = []
    codes = users.to_numpy()
    for counts in np.concatenate(list(draws(NUM_USERS, plan))):
        taken = np.repeat(np.arange(NUM_ROWS), counts[codes].astype(int))
        labels = tasks[0].labels[taken]
        gaps.append(auc(labels, first["ctr"][taken]) - auc(labels, second["ctr"][taken]))
    found = compare_scores(
        tasks, {"one": [first], "two": [second]}, users, metrics=["auc"], resampling=plan
    )
    one = found.find("ctr", "auc")
    assert len(found.differences) == 1
    assert (one.low, one.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))
    assert one.wins == pytest.approx(np.mean(np.array(gaps) > 0))


def test_a_useless_task_gives_no_evidence_and_a_hostile_one_is_seen():
    """Beside a useless task a model errs as much, elsewhere; a hostile one makes it err more."""
    tasks, users, logits = _world()
    models = {
        "alone": [_scores(logits, 0.40, seed) for seed in (1, 2, 3)],
        "useless": [_scores(logits, 0.40, seed) for seed in (4, 5, 6)],
        "hostile": [_scores(logits, 0.80, seed) for seed in (7, 8, 9)],
    }
    found = compare_scores(tasks, models, users)
    for task, metric in (("ctr", "auc"), ("ctr", "gauc"), ("rating", "rmse"), ("rating", "mae")):
        assert found.find(task, metric, second="useless").verdict == "no evidence"
        hostile = found.find(task, metric, second="hostile")
        assert hostile.verdict == "better"
        assert hostile.wins > 0.99
    turned = compare_scores(tasks, {"hostile": models["hostile"], "alone": models["alone"]}, users)
    assert turned.find("ctr", "auc").verdict == turned.find("rating", "rmse").verdict == "worse"


def test_pairing_sees_what_two_intervals_that_overlap_do_not():
    from recsys_mtl.metrics import bootstrap_interval

    tasks, users, logits = _world()
    first, second = _scores(logits, 0.3, 1), _scores(logits, 0.45, 1)
    apart = [
        bootstrap_interval("auc", tasks[0].labels, scores["ctr"], users, resampling=FEW)
        for scores in (first, second)
    ]
    assert apart[0].low < apart[1].high
    found = compare_scores(tasks, {"one": [first], "two": [second]}, users, resampling=FEW)
    assert found.find("ctr", "auc").verdict == "better"


def test_equal_models_are_called_different_as_rarely_as_the_level_says():
    called = 0
    for seed in range(60):
        tasks, users, logits = _world(seed)
        models = {"one": [_scores(logits, 0.5, 100)], "two": [_scores(logits, 0.5, 200)]}
        found = compare_scores(
            tasks[:1], models, users, metrics=["auc", "log_loss"], resampling=FEW
        )
        called += sum(one.verdict != "no evidence" for one in found.differences)
    assert called <= 14  # of 120, 6 expected; 15 or more has a chance below 1 in 1,000


def test_models_that_differ_by_their_seeds_alone_are_rarely_called_different():
    """Every seed has a quality of its own: with the users alone drawn again, half would be called."""
    called = {"six": 0, "one": 0}
    for seed in range(60):
        tasks, users, logits = _world(seed)
        noise = np.random.default_rng(seed).uniform(0.2, 0.8, size=12)
        scores = [_scores(logits, level, 7) for level in noise]
        for name, count in (("six", 6), ("one", 1)):
            models = {"a": scores[:count], "b": scores[count : 2 * count]}
            found = compare_scores(tasks[:1], models, users, metrics=["auc"], resampling=FEW)
            called[name] += found.find("ctr", "auc").verdict != "no evidence"
    assert called["six"] <= 10
    assert called["one"] > 30


def test_the_interval_has_the_variance_of_the_mean_of_seeds():
    """Of qualities that users change little, against one that all seeds share."""
    tasks, users, logits = _world()
    levels = np.linspace(0.1, 2.0, 5)
    models = {
        "a": [_scores(logits, level, 7) for level in levels],
        "b": [_scores(logits, 0.5, 7)],
    }
    found = compare_scores(tasks[:1], models, users, metrics=["auc"]).find("ctr", "auc")
    values = [auc(tasks[0].labels, scores["ctr"]) for scores in models["a"]]
    expected = np.std(values, ddof=1) / np.sqrt(5)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(expected, rel=0.15)


def test_the_model_nearer_to_a_pcoc_of_1_is_better_and_the_miscalibrated_one_is_named():
    tasks, users, logits = _world()
    true, high = _chance(logits), np.clip(_chance(logits) * 1.5, 0, 1)
    found = compare_scores(
        tasks[:1], {"true": [{"ctr": true}], "high": [{"ctr": high}]}, users, resampling=FEW
    )
    assert found.find("ctr", "pcoc").verdict == "better"
    assert found.find("ctr", "ece").verdict == "better"
    named = [note for note in found.notes if "miscalibrated" in note]
    assert len(named) == 1
    assert named[0].startswith("high, ctr: ranks well (auc 0.")
    assert "pcoc 1." in named[0]


def test_tasks_that_a_model_lacks_are_left_out_and_named():
    tasks, users, logits = _world()
    scores = _scores(logits, 0.5, 1)
    found = compare_scores(
        tasks, {"both": [scores], "one": [{"ctr": scores["ctr"]}]}, users, resampling=FEW
    )
    assert {one.task for one in found.differences} == {"ctr"}
    assert "rating: not scored by one" in found.notes


def test_a_comparison_prints_and_has_a_frame():
    tasks, users, logits = _world()
    models = {"a": [_scores(logits, 0.2, 1)], "b": [_scores(logits, 0.9, 2)]}
    found = compare_scores(tasks, models, users, resampling=FEW)
    lines = str(found).split("\n")
    assert lines[0].split() == [
        *("task", "metric", "a", "b", "difference", "low", "high", "wins", "verdict")
    ]
    assert lines[1].split()[:2] == ["ctr", "auc"]
    assert lines[1].split()[-1] == "better"
    assert max(map(len, lines)) <= 100
    frame = found.to_frame()
    assert frame.columns == [
        *("task", "metric", "first", "second", "first_value", "second_value"),
        *("difference", "low", "high", "wins", "verdict", "rows"),
    ]
    assert frame.height == len(found.differences) == 8
    assert "<td>better</td>" in found._repr_html_()
    three = compare_scores(tasks, models | {"c": models["b"]}, users, resampling=FEW)
    assert str(three).split("\n")[0].split()[2:5] == ["against", "a", "value"]
    assert str(Comparison(())).startswith("task")


def test_what_is_undefined_is_said():
    tasks, users, logits = _world()
    none = [TaskLabels("ctr", "binary", np.zeros(NUM_ROWS), tasks[0].observed)]
    models = {"a": [_scores(logits, 0.2, 1)], "b": [_scores(logits, 0.9, 2)]}
    found = compare_scores(none, models, users, resampling=FEW)
    one = found.find("ctr", "auc")
    assert one.verdict == "undefined"
    assert all(map(math.isnan, (one.first_value, one.difference, one.low, one.high, one.wins)))
    assert found.find("ctr", "log_loss").verdict != "undefined"
    empty = [TaskLabels("ctr", "binary", np.zeros(NUM_ROWS), np.zeros(NUM_ROWS, dtype=bool))]
    found = compare_scores(empty, models, users, resampling=FEW)
    assert {one.verdict for one in found.differences} == {"undefined"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": {"one": [{"ctr": [0.1, 0.2]}]}}, "two models or more"),
        ({"models": {"one": [{"ctr": [0.1, 0.2]}], "two": []}}, "'two': 0"),
        ({"models": {"one": [{"ctr": [0.1, 0.2]}], "two": [{}]}}, "a task that all models score"),
        (
            {"models": {"one": [{"ctr": [0.1]}], "two": [{"ctr": [0.1, 0.2]}]}},
            "same number of rows",
        ),
        ({"metrics": ["rmse"]}, "metrics must hold one that applies"),
    ],
)
def test_impossible_arguments_are_refused(changed: dict[str, Any], message: str):
    task = TaskLabels("ctr", "binary", np.array([0, 1]), np.ones(2, dtype=bool))
    models = {"one": [{"ctr": [0.1, 0.2]}], "two": [{"ctr": [0.2, 0.1]}]}
    with pytest.raises(ValueError, match=message):
        compare_scores(**({"tasks": [task], "models": models} | changed))


def test_find_lists_what_there_is():
    with pytest.raises(KeyError, match="The comparison has: none"):
        Comparison(()).find("ctr", "auc")
