"""Several networks as one model: its scores are the mean of theirs, wherever it scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl import (
    Adam,
    Binary,
    Categorical,
    Multiclass,
    MultiTaskRanker,
    Regression,
    Schema,
    SharedBottom,
    Side,
    Towers,
    load,
    score_parquet,
)
from recsys_mtl.describe import describe_model
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.ensemble import mean_logits, members_of
from recsys_mtl.network.outputs import Outputs
from recsys_mtl.serving import Scorer
from recsys_mtl.training import Trained, Trainer

TASKS = (
    Binary("ctr", label="click"),
    Binary("cvr", label="buy", within="ctr", joint="ctcvr"),
    Multiclass("genre", label="genre", num_classes=3),
    Regression("time", label="stars"),
    Regression("clipped", label="stars", bounds=(1, 5)),
    Regression("binned", label="stars", bounds=(1, 5), loss="bins", num_bins=5),
)
NAMES = [task.name for task in TASKS]


def _table(num_rows: int = 900) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 20, num_rows), rng.integers(0, 12, num_rows)
    click = (rng.random(num_rows) < 0.1 + 0.06 * item).astype(int)
    columns = {
        "user": user,
        "item": item,
        "click": click,
        "buy": click * rng.integers(0, 2, num_rows),
    }
    stars = np.clip(item / 2 + rng.normal(size=num_rows), 1, 5)
    return pl.DataFrame(columns | {"genre": (user + item) % 3, "stars": stars})


def _ranker(num_members: int = 3, **settings: Any) -> MultiTaskRanker:
    schema = Schema(
        user=Side("user", features=[Categorical("user")]),
        item=Side("item", features=[Categorical("item")]),
        tasks=TASKS,
    )
    given = {"sharing": SharedBottom((8,)), "heads": Towers((4,)), "max_epochs": 2}
    given |= {"batch_size": 64, "random_state": 0, "device": "cpu", "num_members": num_members}
    return MultiTaskRanker(schema, **given | settings)


def _members(ranker: MultiTaskRanker) -> list[Scorer]:
    scorer = ranker.scorer
    return [Scorer(scorer.schema, scorer.encoder, one) for one in members_of(scorer.model)]


@pytest.fixture(scope="module")
def ranker() -> MultiTaskRanker:
    table = _table()
    return _ranker().fit(table[:700], valid=table[700:])


def test_every_score_is_the_mean_of_the_members_scores(ranker: MultiTaskRanker) -> None:
    table = _table()
    whole, each = ranker.predict(table), [one.score(table) for one in _members(ranker)]
    assert len(each) == 3
    for name in NAMES:
        scores = np.stack([one[name].to_numpy() for one in each])
        assert (scores[0] != scores[1]).any()
        np.testing.assert_allclose(whole[name].to_numpy(), scores.mean(axis=0), rtol=2e-5)
    product = whole["ctr"].to_numpy() * whole["cvr"].to_numpy()
    np.testing.assert_allclose(whole["ctcvr"].to_numpy(), product, rtol=1e-6)
    half = ranker.scorer.forward(precision="bfloat16")
    frame = pl.DataFrame(ranker.scorer.scores(ranker.scorer.encoder.encode(table), half))
    np.testing.assert_allclose(frame["ctr"].to_numpy(), whole["ctr"].to_numpy(), atol=0.02)


def test_parquet_and_empty_tables_are_scored_alike(ranker: MultiTaskRanker, tmp_path: Path) -> None:
    table = _table()
    table.write_parquet(tmp_path / "rows.parquet")
    score_parquet(ranker, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found, direct = pl.read_parquet(tmp_path / "scores.parquet"), ranker.predict(table)
    for name in [*NAMES, "ctcvr"]:
        np.testing.assert_allclose(found[name].to_numpy(), direct[name].to_numpy(), rtol=2e-5)
    assert ranker.predict(table[:0]).columns == direct.columns
    assert ranker.predict(table[5:6])["ctr"].item() == pytest.approx(direct["ctr"][5], rel=2e-5)


def test_metrics_are_those_of_the_scores(ranker: MultiTaskRanker) -> None:
    table = _table()
    scores = ranker.predict(table)["binned"].to_numpy()
    expected = np.sqrt(np.mean((scores - table["stars"].to_numpy()) ** 2))
    assert ranker.evaluate(table).value("binned", "rmse") == pytest.approx(expected, rel=1e-5)
    report = ranker.evaluate(table[700:])
    assert ranker.valid_report_ is not None
    assert ranker.valid_report_.value("ctr", "auc") == report.value("ctr", "auc")


def test_a_folder_holds_all_members_bit_for_bit(ranker: MultiTaskRanker, tmp_path: Path) -> None:
    table = _table()
    ranker.save(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    assert again.predict(table).equals(ranker.predict(table))
    assert again.num_members == 3
    assert again.history_["member"].unique().sort().to_list() == [0, 1, 2]
    with pytest.raises(SchemaError, match=r"model of a warm start needs num_members=1.*=3"):
        _ranker(1).fit(table, warm_start=tmp_path / "model")


def test_the_first_member_is_the_model_of_that_seed_and_all_share_its_size(
    ranker: MultiTaskRanker,
) -> None:
    table = _table()
    alone = _ranker(1).fit(table[:700], valid=table[700:])
    assert _members(ranker)[0].score(table).equals(alone.predict(table))
    said = [
        re.findall(r"([\d,]+) dense, ([\d,]+) in", describe_model(r))[0] for r in (alone, ranker)
    ]
    one, three = ([int(number.replace(",", "")) for number in found] for found in said)
    assert three == [3 * number for number in one]
    assert "members: 3, whose scores are averaged" in describe_model(ranker)
    assert "members" not in describe_model(alone)


def test_a_refit_trains_each_member_as_long_as_valid_chose_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, chosen = [], []

    class Watched(Trainer):
        def fit(self, *rows: Any, **options: Any) -> Trained:
            trained = super().fit(*rows, **options)
            asked.append(self.config.max_epochs)
            chosen.append(trained.best_epoch)
            return trained

    monkeypatch.setattr("recsys_mtl.fitting.Trainer", Watched)
    table = _table()
    fast = Adam(learning_rate=0.05)
    made = _ranker(3, max_epochs=6, optimizer=fast, random_state=1)
    made.fit(table[:700], valid=table[700:], refit=True)
    assert asked[:3] == [6, 6, 6]
    assert asked[3:] == chosen[:3]
    assert len(set(chosen[:3])) > 1
    assert made.best_epoch_ == chosen[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"checkpoints": "state"}, "A checkpoint"), ({"warm_start": None}, "A warm start")],
)
def test_what_needs_one_network_is_refused(
    options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    table = _table(200)
    if "warm_start" in options:
        options = {"warm_start": _ranker(1).fit(table)}
    else:
        options = {"checkpoints": tmp_path}
    with pytest.raises(SchemaError, match=rf"{text} needs num_members=1: .* Found num_members=2"):
        _ranker(2).fit(table, **options)
    with pytest.raises(SchemaError, match="partial_fit needs num_members=1"):
        _ranker(2).partial_fit(table)


def test_means_of_far_off_logits_stay_finite_and_in_order() -> None:
    outputs = Outputs([TASKS[0]])
    found = mean_logits(
        outputs, [torch.tensor([[90.0], [-200], [0]]), torch.tensor([[95.0], [-300], [2]])]
    )
    assert found.isfinite().all()
    # 1 - p is the mean of e**-90 and e**-95; p that of e**-200 and e**-300
    expected = [90 - np.log((1 + np.exp(-5)) / 2), -200 + np.log(0.5)]
    assert found[:2, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[2].sigmoid().item() == pytest.approx((0.5 + 1 / (1 + np.exp(-2))) / 2)
