"""A log with ties, nulls and repeats, and a schema with a feature of each sort."""

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from recsys_mtl import AsOf, AsOfHistory, Binary, Bins, Previous, Recency, Schema, Time

HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_650_816_000_000  # midnight in UTC


@pytest.fixture(scope="session")
def twin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("as_of_twin", Path(__file__).with_name("twin.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def schema() -> Schema:
    bins = Bins("duration", edges=[10, 20])
    return Schema(
        context=[
            AsOf("item_ctr", key="item", label="click"),
            AsOf("item_ctr_now", key="item", label="click", period=None, smoothing=3),
            AsOf("item_ctr_2d", key="item", label="click", window="2d", smoothing=1),
            AsOf("item_ctr_5h", key="item", label="click", period=None, window="5h", smoothing=0),
            AsOf("user_ctr_6h", key="user", label="click", period="6h", window="12h"),
            AsOf("user_rating", key="user", label="rating", smoothing=2),
            AsOf("ratings", key="user", label="rating", statistic="count", window="1d"),
            AsOf("rating_sum", key=["user", "item"], label="rating", statistic="sum", period=None),
            AsOf("page_ctr", key=("page", bins), label="click", smoothing=5),
            AsOf("item_left", key="item", label="click", prior="page_ctr", smoothing=2),
            AsOf("user_left", key=["user"], label="click", prior="item_left", residual=True),
            AsOf(
                "user_late", key="user", label="click", prior="item_left", smoothing=0, period="6h"
            ),
            AsOf("seen", key="user", statistic="count", period=None),
            AsOf("seen_today", key="user", statistic="count", period="6h", window="1d"),
            AsOf("seen_3h", key=("user", "page"), statistic="count", period=None, window="3h"),
            AsOf("length", key="user", column="duration", smoothing=1, period=None),
            AsOf("length_known", key=bins, column="duration", statistic="count"),
            Recency("gap", key="user"),
            Recency("watched", key="user", minus="duration"),
            Previous("last_length", key="page", column="duration"),
            AsOfHistory("items", key="user", column="item", max_length=3),
            AsOfHistory(
                "clicked", key="user", column="item", where_label="click", period="1d", max_length=4
            ),
            AsOfHistory("viewers", key="item", column="user", period="6h", max_length=5),
        ],
        tasks=[Binary("ctr", label="click")],
        time=Time("time", offset="8h"),
    )


@pytest.fixture(scope="session")
def make_log() -> Callable[..., pl.DataFrame]:
    """Make a log of some days: times on a grid of half hours, so that many are alike."""

    def made(rows: int, *, seed: int = 0, first: int = 0, days: int = 4) -> pl.DataFrame:
        draw = random.Random(seed)

        def some(values: list[object], nulls: float = 0.1) -> object:
            return None if draw.random() < nulls else draw.choice(values)

        return pl.DataFrame(
            {
                "time": [
                    START + first * DAY + HOUR // 2 * draw.randrange(48 * days) for _ in range(rows)
                ],
                "user": [some(["a", "b", "ü", ""]) for _ in range(rows)],
                "item": [some([2**53 + 1, 2**53, 5, -1]) for _ in range(rows)],
                "page": [some([0, 1]) for _ in range(rows)],
                "duration": [some([5.0, 10.0, 15.0, 25.0]) for _ in range(rows)],
                "click": [some([0, 0, 1]) for _ in range(rows)],
                "rating": [some([1.1, 2.7, 5.0], nulls=0.5) for _ in range(rows)],
            },
            schema_overrides={"time": pl.Int64, "item": pl.Int64, "click": pl.Int8},
        )

    return made
