"""The data sets of `make results`: rows, schema and settings, the same for every network.

Features of earlier rows are hierarchical: the mean of a label by page and duration, what an item is left
over from that, what a user is left over from both; counts; and what is known of the impressions before,
whose labels are not read. All settings were chosen on validation rows.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl import (
    AsOf,
    Bag,
    Binary,
    Bins,
    Categorical,
    Previous,
    Recency,
    Regression,
    Schema,
    Side,
    Time,
    scan,
)
from recsys_mtl.config import read_config
from recsys_mtl.reading import Rows
from recsys_mtl.schema import Feature, Task

ROW = "row"
"""The interactions' number, by which scores of a teacher find their rows."""
NUMBERS: dict[str, Any] = {"scaling": "piecewise", "num_quantiles": 32, "embedding_dim": 8}


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Scores of test, one column per task, in the order of test; and what they cost beside time."""

    scores: pl.DataFrame
    epochs: int | None = None
    parameters: int | None = None


@dataclass(frozen=True, eq=False)
class DataSet:
    """One data set.

    Parameters
    ----------
    name
        Of its folder.
    title
        In prose.
    rows
        All interactions, with a column ``split``.
    schema
        What the columns mean, features of earlier rows included.
    columns
        Per table, the columns that baselines read as they are.
    """

    name: str
    title: str
    rows: Rows
    schema: Schema
    columns: dict[str, tuple[str, ...]]

    def split(self, *names: str) -> Rows:
        """Return the rows of these splits."""
        listed = ", ".join(f"'{name}'" for name in names)
        return self.rows.filter(f"split IN ({listed})")

    def frame(self, *names: str) -> pl.DataFrame:
        """Return the interactions of these splits, all columns."""
        rows = self.split(*names)
        return rows.frame(rows.columns)

    def joined(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns that baselines read as they are."""
        found = frame.select(self.columns["interactions"])
        schema = self.schema
        sides = (("users", schema.user, self.rows.users), ("items", schema.item, self.rows.items))
        for name, side, table in sides:
            if side is not None and table is not None and name in self.columns:
                known = table.frame(side.key, self.columns[name])
                found = found.join(known, on=side.key, how="left", maintain_order="left")
        return found


def label_of(frame: pl.DataFrame, task: Task) -> Floats:
    """Return a task's labels, NaN where missing."""
    return frame[task.label].cast(pl.Float64).to_numpy()


def bounded(task: Task, scores: Floats) -> Floats:
    """Clip a rating's scores to its bounds."""
    if isinstance(task, Regression) and task.bounds is not None:
        return np.clip(scores, *task.bounds)
    return scores


def kuairand(folder: Path) -> DataSet:
    """Return the cut of KuaiRand-Pure: click, long view, share watched, like."""
    os.environ.setdefault("RECSYS_MTL_DATA", str(folder))
    schema = read_config(Path(__file__).with_name("kuairand.toml")).schema
    edges = [1.0, *(round(math.exp(8 + step / 4)) for step in range(20))]
    duration = Bins("duration_ms", edges=edges)
    smoothing = {"like": (100.0, 10.0)}
    context: list[Feature] = list(schema.context)
    for task in schema.tasks:
        context.append(
            AsOf(
                f"{task.name}_author_alone",
                key="author_id",
                label=task.label,
                prior=f"{task.name}_page",
                residual=True,
                **NUMBERS,
            )
        )
        context += _levels(task, ("tab", duration), *smoothing.get(task.name, (20.0, 5.0)))
        chosen: dict[str, Any] = {
            "label": task.label,
            "prior": f"{task.name}_user",
            "residual": True,
        } | NUMBERS
        of_user = smoothing.get(task.name, (20.0, 5.0))[1]
        for name, key in (("page", "tab"), ("duration", duration)):
            context.append(
                AsOf(f"{task.name}_user_{name}", key=("user_id", key), smoothing=of_user, **chosen)
            )
    context += [
        *_raw(schema.tasks),
        *_watched(duration),
        *_meetings(),
        *_counts(),
        AsOf(
            "user_session", key="user_id", statistic="count", period=None, window="20m", **NUMBERS
        ),
        Recency("gap", key="user_id", **NUMBERS),
        Recency("gap_after_end", key="user_id", minus="duration_ms", **NUMBERS),
        Previous("last_duration", key="user_id", column="duration_ms", **NUMBERS),
    ]
    # the split follows the local date, which the time leaves by up to 44 minutes
    time = Time("timestamp_ms", offset="8h", warm_up="1d", slack="1h")
    place = folder / "kuairand_pure"
    # features of earlier rows read the interactions alone: the author comes along
    authors = pl.scan_parquet(place / "items.parquet").select("item_id", "author_id")
    interactions = pl.scan_parquet(place / "interactions.parquet").with_row_index(ROW)
    rows = scan(
        interactions.join(authors, on="item_id", how="left", maintain_order="left"),
        users=str(place / "users.parquet"),
        items=str(place / "items.parquet"),
    )
    static = {
        "interactions": ("user_id", "item_id", "tab", "hour", "duration_ms"),
        "users": _columns(schema.user),
        "items": tuple(name for name in _columns(schema.item) if name != "tags"),
    }
    full = dataclasses.replace(schema, context=context, time=time, tasks=_binned(schema.tasks))
    return DataSet("kuairand_pure", "KuaiRand-Pure (cut)", rows, full, static)


def movielens(folder: Path) -> DataSet:
    """Return MovieLens-100K as ``data/movielens.py`` prepares it: no features of earlier rows."""
    place = folder / "movielens_100k"
    os.environ["MOVIELENS"] = str(place)
    config = read_config(Path(__file__).with_name("movielens.toml"))
    static = {
        "interactions": ("user_id", "item_id"),
        "users": _columns(config.schema.user),
        "items": tuple(name for name in _columns(config.schema.item) if name != "genres"),
    }
    rows = scan(
        str(place / "interactions.parquet"),
        users=str(place / "users.parquet"),
        items=str(place / "items.parquet"),
    )
    return DataSet("movielens_100k", "MovieLens-100K", rows, config.schema, static)


def movietweetings(folder: Path) -> DataSet:
    """Return MovieTweetings 100k: stars, and whether they are 8 or more."""
    place = folder / "movietweetings_100k"
    tasks: list[Task] = [
        Binary("interest", label="label_interest"),
        Regression("rating", label="label_rating", bounds=(0.0, 10.0)),
    ]
    context: list[Feature] = []
    for task in tasks:
        context += _levels(task, None, 5.0, 3.0)
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id", min_count=2)]),
        item=Side(
            "item_id",
            features=[
                Categorical("item_id", min_count=2),
                Bag("genres", separator="|"),
                Categorical("year", min_count=2),
            ],
        ),
        context=[*context, *_counts()],
        tasks=tasks,
        time=Time("timestamp", unit="s", warm_up="1d"),
    )
    interactions = pl.scan_parquet(place / "ratings.parquet").with_row_index(ROW)
    rows = scan(interactions, items=str(place / "movies.parquet"))
    static: dict[str, tuple[str, ...]] = {
        "interactions": ("user_id", "item_id"),
        "items": ("year", "genres"),
    }
    return DataSet("movietweetings_100k", "MovieTweetings 100k", rows, schema, static)


def _binned(tasks: Sequence[Task]) -> list[Task]:
    """Learn the share watched as a distribution: with three seeds RMSE on valid was .001 to .004 lower."""
    return [
        dataclasses.replace(task, loss="bins", num_bins=9) if isinstance(task, Regression) else task
        for task in tasks
    ]


def _levels(
    task: Task, page: Sequence[Any] | None, of_item: float, of_user: float
) -> list[Feature]:
    """Return a label's means by page, item and user, each shrunk towards the one before."""
    name = task.name
    made: list[Feature] = []
    prior: dict[str, Any] = {}
    chosen: dict[str, Any] = {"label": task.label} | NUMBERS
    if page is not None:
        made.append(AsOf(f"{name}_page", key=tuple(page), smoothing=50.0, **chosen))
        prior = {"prior": f"{name}_page"}
    made.append(AsOf(f"{name}_item", key="item_id", smoothing=of_item, **prior, **chosen))
    if page is not None:
        left = prior | {"residual": True} | chosen
        made.append(AsOf(f"{name}_item_alone", key="item_id", smoothing=of_item, **left))
    above = {"prior": f"{name}_item"} | chosen
    made.append(AsOf(f"{name}_user", key="user_id", smoothing=of_user, **above))
    alone = above | {"residual": True}
    made.append(AsOf(f"{name}_user_alone", key="user_id", smoothing=of_user, **alone))
    return made


def _counts() -> list[Feature]:
    """Return how many earlier rows a user and an item have: of days before, in all, of late."""
    made: list[Feature] = []
    for side in ("user", "item"):
        key = f"{side}_id"
        made += [
            AsOf(f"{side}_days", key=key, statistic="count", **NUMBERS),
            AsOf(f"{side}_rows", key=key, statistic="count", period=None, **NUMBERS),
            AsOf(f"{side}_late", key=key, statistic="count", period=None, window="6h", **NUMBERS),
        ]
    return made


def _raw(tasks: Sequence[Task]) -> list[Feature]:
    """Return a user's and an item's means as they are, whatever was shown."""
    made: list[Feature] = []
    for task in tasks:
        for side, smoothing in (("user", 3.0), ("item", 10.0)):
            named = f"{task.name}_{side}_raw"
            made.append(
                AsOf(named, key=f"{side}_id", label=task.label, smoothing=smoothing, **NUMBERS)
            )
    return made


def _watched(duration: Bins) -> list[Feature]:
    """Return how long earlier videos were watched: an outcome, known from the days before."""
    chosen: dict[str, Any] = {"label": "play_time_ms"} | NUMBERS
    item: dict[str, Any] = {"key": "item_id", "prior": "watched_page", "smoothing": 20.0} | chosen
    user: dict[str, Any] = {"key": "user_id", "prior": "watched_item", "smoothing": 5.0} | chosen
    return [
        AsOf("watched_page", key=("tab", duration), smoothing=50.0, **chosen),
        AsOf("watched_item", **item),
        AsOf("watched_item_alone", residual=True, **item),
        AsOf("watched_user", **user),
        AsOf("watched_user_alone", residual=True, **user),
        AsOf("watched_user_raw", key="user_id", smoothing=3.0, **chosen),
        AsOf("watched_item_raw", key="item_id", smoothing=10.0, **chosen),
    ]


def _meetings() -> list[Feature]:
    """Return when and how often the user met the author, the page, and anyone the item."""
    of_page: dict[str, Any] = {"key": ("user_id", "tab")} | NUMBERS
    of_author: dict[str, Any] = {"key": ("user_id", "author_id")} | NUMBERS
    return [
        Previous("last_page", key="user_id", column="tab", **NUMBERS),
        Recency("item_gap", key="item_id", **NUMBERS),
        Recency("author_gap", **of_author),
        AsOf("author_met", statistic="count", period=None, **of_author),
        Recency("page_gap", **of_page),
        AsOf("page_met", statistic="count", period=None, **of_page),
        AsOf("page_days", statistic="count", **of_page),
    ]


def _columns(side: Side | None) -> tuple[str, ...]:
    features = () if side is None else side.features
    key = "" if side is None else side.key
    return tuple(dict.fromkeys(name for one in features for name in one.columns if name != key))
