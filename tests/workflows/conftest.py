"""One log of impressions and one small model that all workflows share; neither is ever changed."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from recsys_mtl import (
    Bag,
    Binary,
    Categorical,
    MultiTaskRanker,
    Numeric,
    Regression,
    Rows,
    Schema,
    SharedBottom,
    Side,
    scan,
)

TASKS = ["interest", "ctr", "rating"]


@dataclass(frozen=True)
class Log:
    """The three tables, and the rows of each part of the split."""

    interactions: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame

    def part(self, name: str) -> pl.DataFrame:
        return self.interactions.filter(pl.col("split") == name)

    def rows(self, interactions: Any) -> Rows:
        return scan(interactions, users=self.users, items=self.items)

    def flat(self, interactions: pl.DataFrame) -> pl.DataFrame:
        joined = interactions.join(self.users, on="user_id", how="left", maintain_order="left")
        return joined.join(self.items, on="item_id", how="left", maintain_order="left")


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "data" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("workflows_synthetic", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def log(synthetic) -> Log:
    return Log(*synthetic.impressions(60, 40, 12_000, seed=1))


@pytest.fixture(scope="session")
def folder(log, tmp_path_factory) -> Path:
    """The tables as parquet; tests read it and write elsewhere."""
    made: Path = tmp_path_factory.mktemp("tables")
    log.interactions.write_parquet(made / "interactions.parquet")
    log.users.write_parquet(made / "users.parquet")
    log.items.write_parquet(made / "items.parquet")
    return made


@pytest.fixture(scope="session")
def schema() -> Schema:
    return Schema(
        user=Side(
            key="user_id",
            features=[Categorical("user_id"), Categorical("city"), Numeric("register_days")],
        ),
        item=Side(key="item_id", features=[Categorical("item_id"), Bag("tags", separator=",")]),
        context=[Categorical("hour"), Numeric("duration_ms")],
        tasks=[
            Binary("interest", label="label_interest"),
            Binary("ctr", label="label_ctr"),
            Regression("rating", label="label_rating"),
        ],
    )


@pytest.fixture(scope="session")
def make(schema) -> Callable[..., MultiTaskRanker]:
    """Make a small ranker that is not fitted; keywords replace its settings."""

    def made(**settings: Any) -> MultiTaskRanker:
        small = {"sharing": SharedBottom(dims=(64, 32)), "embedding_dim": 8, "batch_size": 512}
        fixed = {"schema": schema, "max_epochs": 5, "device": "cpu", "random_state": 0}
        return MultiTaskRanker(**(fixed | small | settings))

    return made


@pytest.fixture(scope="session")
def ranker(make, log) -> MultiTaskRanker:
    return make().fit(log.rows(log.part("train")), valid=log.rows(log.part("valid")))


@pytest.fixture(scope="session")
def model(ranker, tmp_path_factory) -> Path:
    """The shared model's folder; tests read it and change copies."""
    made: Path = tmp_path_factory.mktemp("saved") / "model"
    ranker.save(made)
    return made
