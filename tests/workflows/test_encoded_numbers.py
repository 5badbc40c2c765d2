"""Numbers that the network makes vectors of: fitted, saved, cut off, gone on from, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl import (
    Binary,
    Categorical,
    Checkpoints,
    MultiTaskRanker,
    Numeric,
    Regression,
    Schema,
    SharedBottom,
    load,
)
from recsys_mtl.config import read_config
from recsys_mtl.training import CheckpointFile

CONFIG = """
[tables]
interactions = "rows.parquet"
[schema]
context = [
    { kind = "numeric", name = "x", scaling = "piecewise", num_quantiles = 8, embedding_dim = 6 },
    { kind = "numeric", name = "z", scaling = "periodic", num_frequencies = 4, frequency_scale = 0.5 },
]
tasks = [{ kind = "binary", name = "ctr", label = "click" }]
[model]
embedding_dropout = 0.1
"""


def _table(num_rows: int = 2000, seed: int = 0) -> pl.DataFrame:
    """A click that depends on x by a hat and on z by a wave."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=num_rows), rng.normal(size=num_rows)
    logit = 4 * (np.abs(x) < 0.6) - 2 + 2 * np.sin(4 * z)
    table = pl.DataFrame(
        {
            "user": rng.integers(0, 30, num_rows),
            "x": x,
            "z": z,
            "click": (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "stars": logit + rng.normal(size=num_rows),
        }
    )
    hole = pl.Series(rng.random(num_rows) < 0.1)
    return table.with_columns(x=pl.when(~hole).then("x"))


def _ranker(**settings: Any) -> MultiTaskRanker:
    schema = Schema(
        context=[
            Categorical("user", dropout=0.2),
            Numeric("x", scaling="piecewise", num_quantiles=12),
            Numeric("z", scaling="periodic", num_frequencies=8, frequency_scale=0.5),
        ],
        tasks=[Binary("ctr", label="click"), Regression("stars", label="stars")],
    )
    small: dict[str, Any] = {"sharing": SharedBottom((16,)), "embedding_dim": 8, "batch_size": 256}
    small["embedding_dropout"] = 0.05
    fixed = {"schema": schema, "max_epochs": 2, "device": "cpu", "random_state": 0}
    return MultiTaskRanker(**(fixed | small | settings))


@pytest.fixture(scope="module")
def ranker() -> MultiTaskRanker:
    return _ranker(max_epochs=12).fit(_table())


def test_jagged_dependences_are_learned(ranker: MultiTaskRanker) -> None:
    test = _table(seed=1)
    assert ranker.score(test) > 0.5 * (0.8 + 0.5)


def test_a_saved_model_scores_alike_bit_for_bit(ranker: MultiTaskRanker, tmp_path: Path) -> None:
    ranker.save(tmp_path / "model")
    test = _table(300, seed=1).with_columns(pl.col("x") * 3)
    assert load(tmp_path / "model", device="cpu").predict(test).equals(ranker.predict(test))


def test_another_day_goes_on_with_the_bins_of_the_first(ranker: MultiTaskRanker) -> None:
    later = _table(seed=2).with_columns(pl.col("x") * 2)
    again = _ranker().fit(later, warm_start=ranker)
    before, after = (one.scorer.encoder.learned.scales["x"].edges for one in (ranker, again))
    np.testing.assert_array_equal(before, after)
    assert again.history_["train_loss"][0] < _ranker().fit(later).history_["train_loss"][0]


def test_a_run_that_died_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, save = Checkpoints(str(tmp_path), every_steps=3), CheckpointFile.save

    def dying(file: CheckpointFile, snapshot: object) -> None:
        save(file, snapshot)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            _ranker().fit(_table(), checkpoints=kept)
    again = _ranker().fit(_table(), checkpoints=kept)
    assert again.predict(_table(seed=1)).equals(_ranker().fit(_table()).predict(_table(seed=1)))


def test_a_file_names_them(tmp_path: Path) -> None:
    _table(20).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "run.toml").write_text(CONFIG)
    config = read_config(tmp_path / "run.toml")
    assert config.ranker().embedding_dropout == config.model.embedding_dropout == 0.1
    assert config.schema.context == (
        Numeric("x", scaling="piecewise", num_quantiles=8, embedding_dim=6),
        Numeric("z", scaling="periodic", num_frequencies=4, frequency_scale=0.5),
    )
