"""The summary of a run tells the shares and the drift that a count by hand gives."""

import numpy as np
import polars as pl
import pytest

from recsys_mtl import (
    Bag,
    Binary,
    Categorical,
    MultiTaskRanker,
    Numeric,
    Schema,
    SharedBottom,
    score_parquet,
)


def _rows(size, *, new, shift, seed):
    """Rows of which a share `new` has an unseen colour and tag, and as many lack a value."""
    chance = np.random.default_rng(seed)
    colours, tags = np.array(["red", "green", "blue"]), np.array(["a", "b", "c", "d"])
    fate = chance.random((3, size))
    known = [chance.choice(tags, 2).tolist() for _ in range(size)]
    return pl.DataFrame(
        {
            "colour": [
                None if draw < new else "mauve" if draw < 2 * new else str(colour)
                for draw, colour in zip(fate[0], chance.choice(colours, size), strict=True)
            ],
            "weight": [
                None if draw < new else value + shift
                for draw, value in zip(fate[1], chance.normal(size=size), strict=True)
            ],
            "tags": [
                [] if draw < new else [*pair, "z"] if draw < 2 * new else pair
                for draw, pair in zip(fate[2], known, strict=True)
            ],
            "click": chance.integers(2, size=size),
        }
    )


@pytest.fixture(scope="module")
def trained():
    return _rows(2000, new=0.0, shift=0.0, seed=0)


@pytest.fixture(scope="module")
def ranker(trained):
    schema = Schema(
        context=[Categorical("colour"), Numeric("weight", scaling="standard"), Bag("tags")],
        tasks=[Binary("ctr", label="click")],
    )
    small = {"sharing": SharedBottom(dims=(4,)), "embedding_dim": 2, "max_epochs": 1}
    return MultiTaskRanker(schema, **small, device="cpu", random_state=0).fit(trained)


def _stability(before, now):
    """Population stability index over the deciles of training."""
    edges = np.quantile(before, np.arange(1, 10) / 10)
    p, q = (
        np.bincount(np.searchsorted(edges, one, "right"), minlength=10) for one in (before, now)
    )
    p, q = np.maximum(p / p.sum(), 1e-4), np.maximum(q / q.sum(), 1e-4)
    return float(((q - p) * np.log(q / p)).sum())


@pytest.mark.parametrize("part_rows", [100, 5000])
def test_shares_and_drift_are_those_of_a_count_by_hand(ranker, trained, tmp_path, part_rows):
    rows = _rows(1500, new=0.1, shift=1.0, seed=1)
    rows.write_parquet(tmp_path / "rows.parquet", row_group_size=400)
    summary = score_parquet(
        ranker, tmp_path / "rows.parquet", tmp_path / "s.parquet", part_rows=part_rows
    )
    found = {one.name: one for one in summary.features}
    ids = [tag for tags in rows["tags"] for tag in tags]
    weights = rows["weight"].drop_nulls().to_numpy()
    assert found["colour"].null == pytest.approx(rows["colour"].null_count() / 1500)
    assert found["colour"].unseen == pytest.approx((rows["colour"] == "mauve").sum() / 1500)
    assert found["weight"].null == pytest.approx(rows["weight"].null_count() / 1500)
    assert found["tags"].null == pytest.approx((rows["tags"].list.len() == 0).sum() / 1500)
    assert found["tags"].unseen == pytest.approx(ids.count("z") / len(ids))
    assert {(one.trained_null, one.trained_unseen) for one in summary.features} == {(0.0, 0.0)}
    expected = _stability(trained["weight"].to_numpy(), weights)
    assert found["weight"].stability == pytest.approx(expected, abs=1e-6)
    assert [text.split(":")[0] for text in summary.drift] == ["colour", "tags", "weight"]


def test_rows_like_those_of_training_have_not_drifted(ranker, tmp_path):
    rows = _rows(1500, new=0.01, shift=0.0, seed=2)
    rows.write_parquet(tmp_path / "rows.parquet")
    summary = score_parquet(ranker, tmp_path / "rows.parquet", tmp_path / "s.parquet")
    assert summary.drift == []
