"""The README's section on the whole family, word for word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys_mtl import Vector

README = Path(__file__).parents[2] / "README.md"
SECTION = README.read_text().split("## The whole family")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)


def _table(num_rows: int) -> pl.DataFrame:
    """A user clicks on items she has seen before, and buys the even ones."""
    rng = np.random.default_rng(num_rows)
    item, length = rng.integers(0, 9, num_rows), rng.integers(0, 4, num_rows)
    seen = [rng.integers(0, 9, n).tolist() for n in length]
    click = np.array([int(i in found) for i, found in zip(item, seen, strict=True)])
    bought = np.where(click == 1, item % 2 == 0, np.nan)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 50, num_rows),
            "item_id": item,
            "seen": pl.Series(seen, dtype=pl.List(pl.Int64)),
            "click": click,
            "bought": pl.Series(bought).fill_nan(None),
        }
    )


def test_the_example_of_the_family_runs_as_it_stands() -> None:
    names: dict[str, Any] = {"train": _table(3000), "valid": _table(600), "test": _table(601)}
    exec(compile(BLOCKS[0], "family", "exec"), names)
    scores = names["scores"]
    assert scores.columns == ["user_id", "item_id", "ctr", "cvr", "ctcvr"]
    assert (scores["ctcvr"] <= scores["ctr"]).all()
    assert names["ranker"].evaluate(names["test"]).value("ctr", "auc") > 0.7


def test_a_network_of_ones_own_is_made_as_the_readme_says() -> None:
    from recsys_mtl import Binary, MultiTaskRanker, Schema

    schema = Schema(context=[Vector("image", dim=512)], tasks=[Binary("ctr", label="click")])
    names: dict[str, Any] = {
        "schema": schema,
        "MultiTaskRanker": MultiTaskRanker,
        "__name__": __name__,
    }
    exec(compile(BLOCKS[1], "tiny", "exec", dont_inherit=True), names)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(64, 512)).astype(np.float32)
    table = pl.DataFrame(
        {"image": pl.Series(image, dtype=pl.Array(pl.Float32, 512)), "click": [0, 1] * 32}
    )
    ranker = names["ranker"].set_params(max_epochs=1, device="cpu").fit(table)
    extractors = ranker.scorer.model.features.extractors
    assert [tuple(layer.weight.shape) for layer in [extractors[0][0]]] == [(64, 512)]
    assert ranker.predict(table).columns == ["ctr"]
