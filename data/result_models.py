"""The contenders of `make results`: each chooses on valid, is fitted on train and valid, scores test.

A contender gives a table of scores, one column per task, in the order of test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from baselines import choose_damping, global_mean, user_item_bias
from recsys_mtl import PLE, MMoE, MultiTaskRanker, SharedBottom, Towers
from recsys_mtl.metrics import log_loss, rmse
from recsys_mtl.network import Sharing
from recsys_mtl.schema import Regression, Schema, Task
from recsys_mtl.training import Balance, Fixed
from result_sets import DataSet, Floats, Scored, bounded, label_of
from result_trees import teach

SHARING: dict[str, Sharing] = {
    "SharedBottom": SharedBottom((256, 128), dropout=0.2),
    "MMoE": MMoE(4, expert_dims=(128, 64), dropout=0.2),
    "PLE": PLE(1, num_shared_experts=2, num_task_experts=1, expert_dims=(128, 64), dropout=0.2),
}
SETTINGS: dict[str, Any] = {
    "heads": Towers((32,), dropout=0.2),
    "embedding_dropout": 0.1,
    "batch_size": 1024,
    "max_epochs": 6,
    "patience": 2,
    "reset_tables": True,
    "observe_every": 0,
    "progress": False,
}
HASHED_COLUMNS = 1 << 18
ALPHAS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
RIDGE_ALPHAS = (3.0, 10.0, 30.0, 100.0)


def network(
    data: DataSet,
    sharing: str,
    seed: int,
    *,
    balance: Balance | None = None,
    task: str | None = None,
    num_members: int = 1,
) -> Scored:
    """Train a network; `task` alone is a single-task twin of equal budget."""
    schema = data.schema if task is None else _only(data.schema, task)
    ranker = MultiTaskRanker(
        schema,
        sharing=SHARING[sharing],
        balance=balance or Fixed(),
        num_members=num_members,
        random_state=seed,
        **SETTINGS,
    )
    return _fitted(ranker, data)


def taught(data: DataSet, sharing: str, seed: int, *, num_members: int = 1) -> Scored:
    """Train a network on the labels and on scores of LightGBM, which saw other rows.

    The teacher of the epochs' choice saw no row of valid.
    """
    chosen: dict[str, Any] = {"sharing": SHARING[sharing], "random_state": seed} | SETTINGS
    known = teach(data, "train")
    first = MultiTaskRanker(known.schema, num_members=num_members, **chosen)
    first.fit(known.split("train"), valid=data.split("valid"))
    both = teach(data, "train", "valid")
    epochs = first.best_epoch_
    last = MultiTaskRanker(both.schema, num_members=num_members, **chosen | {"max_epochs": epochs})
    return _scored(last.fit(both.split("train", "valid")), data, epochs)


def defaults(data: DataSet, seed: int) -> Scored:
    """Train what a user gets who sets nothing."""
    return _fitted(MultiTaskRanker(data.schema, random_state=seed, progress=False), data)


def _fitted(ranker: MultiTaskRanker, data: DataSet) -> Scored:
    ranker.fit(data.split("train"), valid=data.split("valid"), refit=True)
    return _scored(ranker, data, ranker.best_epoch_)


def _scored(ranker: MultiTaskRanker, data: DataSet, epochs: int | None) -> Scored:
    scores = ranker.predict(data.split("test")).drop(data.schema.keys)
    model = ranker.scorer.model
    dense = sum(p.numel() for name, p in model.named_parameters() if "weight_RD" not in name)
    return Scored(scores, epochs, dense)


def global_means(data: DataSet, seed: int) -> Scored:
    """Score with the mean label."""
    del seed
    frames = _frames(data)
    fitting = pl.concat([frames["train"], frames["valid"]])
    found = {
        task.name: global_mean(fitting, frames["test"], task.label) for task in data.schema.tasks
    }
    return Scored(pl.DataFrame(found))


def biases(data: DataSet, seed: int) -> Scored:
    """Score with user and item effects whose damping valid chose."""
    del seed
    frames = _frames(data)
    fitting = pl.concat([frames["train"], frames["valid"]])
    found = {}
    for task in data.schema.tasks:
        damping = choose_damping(frames["train"], frames["valid"], task.label)
        found[task.name] = user_item_bias(fitting, frames["test"], task.label, damping=damping)
    return Scored(pl.DataFrame(found))


def hashed_linear(data: DataSet, seed: int) -> Scored:
    """Score with logistic and ridge regression on hashed ids and static columns."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import Ridge, SGDClassifier

    frames = {name: _static(data, name) for name in ("train", "valid", "test")}
    hasher = FeatureHasher(HASHED_COLUMNS, input_type="string", alternate_sign=False)
    x = {name: hasher.transform(_tokens(frame)) for name, frame in frames.items()}
    both = hasher.transform(_tokens(pl.concat([frames["train"], frames["valid"]])))
    found = {}
    for task in data.schema.tasks:
        y = {name: label_of(frame, task) for name, frame in frames.items()}
        regression = isinstance(task, Regression)

        def made(alpha: float, *, regression: bool = regression) -> Any:
            if regression:
                return Ridge(alpha=alpha, solver="lsqr")
            return SGDClassifier("log_loss", alpha=alpha, random_state=seed, average=True)

        errors = []
        grid = RIDGE_ALPHAS if regression else ALPHAS
        for alpha in grid:
            known = ~np.isnan(y["train"])
            model = made(alpha).fit(x["train"][known], y["train"][known])
            errors.append(_error(task, y["valid"], _predicted(model, x["valid"])))
        target = np.concatenate([y["train"], y["valid"]])
        known = ~np.isnan(target)
        model = made(grid[int(np.argmin(errors))]).fit(both[known], target[known])
        found[task.name] = _predicted(model, x["test"])
    return Scored(pl.DataFrame(found))


def _only(schema: Schema, name: str) -> Schema:
    kept = [task for task in schema.tasks if task.name == name]
    return dataclasses.replace(schema, tasks=kept)


def _frames(data: DataSet) -> dict[str, pl.DataFrame]:
    return {name: data.frame(name) for name in ("train", "valid", "test")}


def _static(data: DataSet, name: str) -> pl.DataFrame:
    frame = data.frame(name)
    labels = frame.select([task.label for task in data.schema.tasks])
    return pl.concat([data.joined(frame), labels], how="horizontal")


def _tokens(frame: pl.DataFrame) -> list[list[str]]:
    """Return a row's values as ``column=value``; numbers of many values by 32 quantiles."""
    named = []
    for column in frame.get_columns():
        if column.name.startswith("label_") or column.name == "like":
            continue
        values = column
        if (
            column.dtype.is_numeric()
            and not column.name.endswith("_id")
            and column.n_unique() > 500
        ):
            values = (column.rank("average") / column.len() * 32).floor().cast(pl.Int32)
        named.append((column.name + "=" + values.cast(pl.String).fill_null("")).alias(column.name))
    listed: list[list[str]] = (
        pl.DataFrame(named).select(pl.concat_list(pl.all())).to_series().to_list()
    )
    return listed


def _predicted(model: Any, x: Any) -> Floats:
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(x)[:, 1])
    return np.asarray(model.predict(x))


def _error(task: Task, labels: Floats, scores: Floats) -> float:
    known = ~np.isnan(labels)
    if isinstance(task, Regression):
        return float(rmse(labels[known], bounded(task, scores[known])))
    return float(log_loss(labels[known], scores[known]))
