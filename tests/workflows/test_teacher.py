"""Training on another model's scores beside the labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl import (
    Adam,
    Binary,
    Categorical,
    MultiTaskRanker,
    Regression,
    Schema,
    SharedBottom,
    Towers,
)
from recsys_mtl.encoding.batch import MISSING, OBSERVED
from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.errors import EncodingError, SchemaError

CLICK = Binary("click", label="click", teacher="click_trees", teacher_share=0.25)
STARS = Regression("stars", label="stars", teacher="star_trees", bounds=(1, 5))


def _table(num_rows: int = 3000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 5, num_rows)
    chance = np.linspace(0.1, 0.9, 5)[item]
    stars = np.clip(1 + item + rng.integers(-1, 2, num_rows), 1, 5).astype(float)
    return pl.DataFrame(
        {
            "item": item,
            "click": (rng.random(num_rows) < chance).astype(int),
            "stars": np.where(rng.random(num_rows) < 0.5, stars, np.nan),
            "click_trees": chance,
            "star_trees": np.clip(1.0 + item, 1, 5),
        }
    )


def _ranker(*tasks: Any) -> MultiTaskRanker:
    return MultiTaskRanker(
        Schema(context=[Categorical("item")], tasks=tasks),
        sharing=SharedBottom((16,)),
        heads=Towers((8,)),
        optimizer=Adam(1e-2),
        batch_size=128,
        max_epochs=4,
        random_state=0,
        progress=False,
    )


def test_a_label_is_mixed_with_the_teachers_score_and_either_stands_in_for_the_other():
    table = pl.DataFrame(
        {
            "stars": [1.0, None, 3.0, None],
            "star_trees": [2.0, 4.5, None, None],
        }
    )
    task = replace(STARS, teacher_share=0.25)
    labels, states, _ = read_labels(table, [task], taught=True)
    assert labels[:, 0].tolist() == [1.25, 4.5, 3.0, 0.0]
    assert states[:, 0].tolist() == [OBSERVED, OBSERVED, OBSERVED, MISSING]
    plain, _, _ = read_labels(table, [task])
    assert plain[:, 0].tolist() == [1.0, 0.0, 3.0, 0.0]


def test_a_score_beyond_a_ratings_bounds_counts_as_the_bound():
    table = pl.DataFrame({"stars": [5.0], "star_trees": [9.0]})
    assert read_labels(table, [STARS], taught=True)[0].item() == 5.0


def test_training_is_that_on_the_mixed_labels_themselves():
    table = _table()
    taught = _ranker(STARS).fit(table)
    mixed = (
        pl.when(pl.col("stars").is_nan())
        .then("star_trees")
        .otherwise(0.5 * pl.col("stars") + 0.5 * pl.col("star_trees"))
    )
    plain = _ranker(Regression("stars", label="stars", bounds=(1, 5)))
    plain.fit(table.with_columns(mixed.alias("stars")))
    assert taught.predict(table).equals(plain.predict(table))


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_teacher_alone_hands_on_its_probabilities(tmp_path, on_disk: bool):
    table = _table().with_columns(click=pl.Series(np.arange(3000) % 2))  # labels that say nothing
    table.write_parquet(tmp_path / "rows.parquet")
    ranker = _ranker(replace(CLICK, teacher_share=1.0))
    ranker.fit(str(tmp_path / "rows.parquet"), cache=tmp_path / "cache" if on_disk else None)
    scores = ranker.predict(table)["click"].to_numpy()
    assert np.abs(scores - table["click_trees"].to_numpy()).max() < 0.02


def test_rows_for_validation_and_scoring_need_no_teacher():
    table = _table()
    bare = table.drop("click_trees", "star_trees")
    ranker = _ranker(CLICK, STARS).fit(table, valid=bare)
    assert ranker.predict(bare).height == table.height
    assert ranker.evaluate(bare).value("click", "auc") > 0.7
    with pytest.raises((EncodingError, SchemaError), match="click_trees"):
        _ranker(CLICK, STARS).fit(bare)


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([replace(CLICK, loss="bce"), Binary("c", label="c", within="click")], "within it"),
        ([Binary("c", label="c"), replace(CLICK, within="c")], "within no other"),
    ],
)
def test_a_teacher_of_tasks_within_each_other_is_refused(tasks: Any, text: str):
    with pytest.raises(SchemaError, match=text):
        Schema(context=[Categorical("item")], tasks=tasks)


@pytest.mark.parametrize(
    ("task", "changes", "text"),
    [
        (CLICK, {"loss": "focal"}, "loss of labels between 0 and 1"),
        (CLICK, {"ranking": "pairwise"}, "loss of labels between 0 and 1"),
        (STARS, {"loss": "bins"}, "no distribution"),
    ],
)
def test_a_loss_that_cannot_learn_from_it_is_refused(task: Any, changes: Any, text: str):
    with pytest.raises(SchemaError, match=text):
        replace(task, **changes)


@pytest.mark.parametrize(
    ("task", "scores", "text"),
    [
        (CLICK, [0.5, 1.5], r"probabilities, or null. Found 1.5 in row 1 \(1 such rows\)"),
        (STARS, [float("inf"), 1.0], r"finite numbers, or null. Found inf in row 0"),
        (CLICK, ["high", "low"], "must hold floats"),
    ],
)
def test_scores_that_are_none_are_named(task: Any, scores: Any, text: str):
    table = pl.DataFrame({"click": [0, 1], "stars": [1.0, 2.0], task.teacher: scores})
    with pytest.raises(EncodingError, match=text):
        read_labels(table, [task], taught=True)


def test_a_feature_may_not_read_the_teachers_scores():
    with pytest.raises(SchemaError, match="teacher's score"):
        Schema(context=[Categorical("click_trees")], tasks=[CLICK])
