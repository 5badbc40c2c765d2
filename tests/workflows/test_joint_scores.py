"""Tasks within tasks: the joint score from the schema to the scored table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema, SharedBottom, Towers, load
from recsys_mtl.network import Heads
from recsys_mtl.network.heads.esmm import ESMM


def _table(num_rows: int = 3000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 12, num_rows)
    click = rng.random(num_rows) < 0.1 + 0.05 * item
    buy = rng.random(num_rows) < 0.8 - 0.06 * item
    return pl.DataFrame(
        {
            "item": item,
            "click": click.astype(np.int8),
            "buy": pl.Series(np.where(click, buy, np.nan)).fill_nan(None),
        }
    )


def _ranker(heads: Heads, **choices: object) -> MultiTaskRanker:
    schema = Schema(
        context=[Categorical("item")],
        tasks=[
            Binary("ctr", label="click"),
            Binary("cvr", label="buy", within="ctr", joint="ctcvr"),
        ],
    )
    settings = {"sharing": SharedBottom((8,)), "max_epochs": 3, "batch_size": 256}
    return MultiTaskRanker(schema, heads=heads, random_state=0, device="cpu", **settings | choices)


@pytest.mark.parametrize("heads", [Towers(()), ESMM(())])
def test_the_joint_score_is_the_product_and_never_above_its_parent(
    heads: Heads, tmp_path: Path
) -> None:
    table = _table()
    ranker = _ranker(heads).fit(table[:2000], valid=table[2000:])
    scored = ranker.predict(table)
    assert scored.columns == ["ctr", "cvr", "ctcvr"]
    assert (scored["ctcvr"] <= scored["ctr"]).all()
    product = (scored["ctr"] * scored["cvr"]).to_numpy()
    np.testing.assert_allclose(scored["ctcvr"].to_numpy(), product, rtol=1e-6)
    ranker.save(tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").predict(table).equals(scored)


def test_the_joint_score_is_measured_on_all_impressions() -> None:
    """A row without a click counts as no purchase; a click of unknown outcome does not count."""
    table = _table().with_columns(
        buy=pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise(pl.col("buy"))
    )
    ranker = _ranker(ESMM(())).fit(table)
    scored = ranker.predict(table)
    known = ((table["click"] == 0) | table["buy"].is_not_null()).to_numpy()
    label = ((table["click"] == 1) & (table["buy"] == 1)).fill_null(False).to_numpy()
    expected = roc_auc_score(label[known], scored["ctcvr"].to_numpy()[known])
    found = ranker.evaluate(table)
    assert found.value("ctcvr", "auc") == pytest.approx(expected, abs=1e-6)
    assert "valid.ctcvr.auc" not in ranker.history_.columns
    assert 0.5 < expected < 1


@pytest.mark.parametrize("weighing", [("ctr", "cvr"), ("ctr",), ("cvr",)])
def test_sample_weights_of_a_joint_score_are_those_of_the_label_that_decides(
    weighing: tuple[str, ...],
) -> None:
    """No click decides with the weight of the click, a click with the weight of the purchase."""
    rng = np.random.default_rng(1)
    table = _table().with_columns(
        w_ctr=pl.Series(rng.uniform(0, 3, 3000)),
        w_cvr=pl.Series(rng.choice([0.0, 0.5, 4.0], 3000)),
        buy=pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise(pl.col("buy")),
    )
    named = {task: f"w_{task}" for task in weighing}
    schema = Schema(
        context=[Categorical("item")],
        tasks=[
            Binary("ctr", label="click", sample_weight=named.get("ctr")),
            Binary("cvr", label="buy", within="ctr", joint="ctcvr", sample_weight=named.get("cvr")),
        ],
    )
    ranker = MultiTaskRanker(
        schema, sharing=SharedBottom((8,)), heads=ESMM(()), max_epochs=1, device="cpu",
        random_state=0,
    ).fit(table)  # fmt: skip
    click, bought = table["click"].to_numpy() == 1, table["buy"].fill_null(0).to_numpy() == 1
    known = ~click | table["buy"].is_not_null().to_numpy()
    weights_of = {
        task: table[named[task]].to_numpy() if task in named else np.ones(3000)
        for task in ("ctr", "cvr")
    }
    weights = np.where(click, weights_of["cvr"], weights_of["ctr"])[known]
    label = (click & bought)[known]
    scores = ranker.predict(table)["ctcvr"].to_numpy()[known].astype(float)
    found = ranker.evaluate(table)
    expected = roc_auc_score(label, scores, sample_weight=weights)
    assert found.value("ctcvr", "auc") == pytest.approx(expected, abs=1e-6)
    assert abs(expected - roc_auc_score(label, scores)) > 1e-3
    loss = log_loss(label, scores, sample_weight=weights)
    assert found.value("ctcvr", "log_loss") == pytest.approx(loss, rel=1e-5)


def test_validation_may_be_judged_by_the_joint_score() -> None:
    table = _table()
    ranker = _ranker(ESMM(()), monitor="ctcvr.auc").fit(table[:2000], valid=table[2000:])
    assert "valid.ctcvr.auc" in ranker.history_.columns
    kept = ranker.history_["valid.ctcvr.auc"].max()
    assert ranker.evaluate(table[2000:]).value("ctcvr", "auc") == pytest.approx(kept, abs=1e-9)
