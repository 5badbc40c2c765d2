"""Three parquet files of interactions, users and items, and their encoded rows on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys_mtl.encoding import Batch, Block, EncodedCache, Part
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    History,
    Multiclass,
    Numeric,
    Regression,
    Schema,
    Side,
    Vector,
)

NUM_ROWS = 120
SCHEMA = Schema(
    user=Side(
        "user_id",
        features=[
            Categorical("user_id", num_hashes=2),
            Categorical("city"),
            Numeric("age", scaling="standard"),
            History("seen", table="words", max_length=2),
        ],
    ),
    item=Side(
        "item_id",
        features=[
            Categorical("item_id"),
            Numeric("price", num_quantiles=5),
            Bag("tags", table="words", separator="|", pooling="sum"),
            Vector("image", dim=3),
        ],
    ),
    context=[Categorical("hour"), Bag("words", table="words")],
    tasks=[
        Binary("ctr", label="click", sample_weight="weight"),
        Regression("rating", label="stars", within="ctr"),
        Multiclass("genre", label="genre", num_classes=4),
    ],
)
FLAT = Schema(context=[Categorical("hour"), Bag("words")], tasks=[Binary("ctr", label="click")])


@dataclass
class Star:
    """Three parquet files and what is found in them."""

    folder: Path
    interactions: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    schema: Schema = SCHEMA
    flat: Schema = FLAT

    def scan(self) -> Rows:
        return scan(
            str(self.folder / "rows.parquet"),
            users=str(self.folder / "users.parquet"),
            items=self.folder / "items.parquet",
        )

    def cache(self) -> EncodedCache:
        return EncodedCache(self.folder / "cache")

    def entries(self) -> list[Path]:
        return sorted(self.cache().folder.iterdir()) if self.cache().folder.exists() else []

    @staticmethod
    def assert_same(found: Batch, whole: Batch) -> None:
        _assert_same(found, whole)


@pytest.fixture
def star(tmp_path: Path) -> Star:
    """Write interactions, some with users and items that their tables lack."""
    rng = np.random.default_rng(5)

    def holes(values: Any) -> pl.Series:
        return pl.Series(values).set(pl.Series(rng.random(len(values)) < 0.15), None)

    users = pl.DataFrame(
        {
            "user_id": rng.permutation(40),
            "city": holes([f"c{i}" for i in rng.integers(0, 6, 40)]),
            "age": holes(rng.normal(40, 9, 40)),
            "seen": [[f"t{k}" for k in range(i % 4)] for i in range(40)],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in rng.permutation(30)],
            "price": holes(rng.lognormal(1, 1, 30)),
            "tags": holes(["|".join(f"t{k}" for k in range(i % 5)) for i in range(30)]),
            "image": holes(rng.normal(size=(30, 3)).tolist()),
        }
    )
    interactions = pl.DataFrame(
        {
            "user_id": holes(rng.integers(0, 45, NUM_ROWS)),
            "item_id": [f"i{i}" for i in rng.integers(0, 33, NUM_ROWS)],
            "hour": holes(rng.integers(0, 24, NUM_ROWS)),
            "words": [[f"t{k}" for k in range(i % 6)] for i in range(NUM_ROWS)],
            "click": holes(rng.integers(0, 2, NUM_ROWS)),
            "weight": rng.random(NUM_ROWS),
            "stars": holes(rng.normal(size=NUM_ROWS)),
            "genre": holes(rng.integers(0, 4, NUM_ROWS)),
        }
    )
    for name, frame in (("users", users), ("items", items), ("rows", interactions)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    return Star(tmp_path, interactions, users, items)


def _by_row(part: Part) -> Block:
    return part.block if part.rows is None else part.block.take(part.rows)


def _assert_same(found: Batch, whole: Batch) -> None:
    """Compare all values and types; side tables are looked up, as their rows may stand elsewhere."""
    assert found.num_rows == whole.num_rows
    assert found.absent == whole.absent
    assert_frame_equal(found.keys, whole.keys)
    pairs = [(getattr(found, name), getattr(whole, name)) for name in ("labels", "states")]
    pairs.append((found.weights, whole.weights))
    for one, other in zip(found.parts, whole.parts, strict=True):
        assert (one.rows is None) == (other.rows is None)
        mine, its = _by_row(one), _by_row(other)
        pairs += [(mine.ids, its.ids), (mine.dense, its.dense)]
        for ragged, other_ragged in zip(mine.lists, its.lists, strict=True):
            for name in ("values", "offsets", "weights"):
                pairs.append((getattr(ragged, name), getattr(other_ragged, name)))
    for array, other_array in pairs:
        if other_array is None:
            assert array is None
            continue
        assert array.dtype == other_array.dtype
        np.testing.assert_array_equal(array, other_array, strict=True)
