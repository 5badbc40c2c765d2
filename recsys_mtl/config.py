"""A training run as a TOML file: tables, schema, model, training."""

from __future__ import annotations

import os
import tomllib
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from recsys_mtl.errors import SchemaError
from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.network import Heads, MMoE, Sharing, Towers
from recsys_mtl.reading import Rows, require, scan
from recsys_mtl.schema import Schema
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training import TrainConfig, monitor_parts


@spec
class TablesConfig(Spec):
    """Where the rows are, and which of them are for what.

    Parameters
    ----------
    interactions, users, items
        Parquet paths. Relative ones start at the folder of the config; ``$NAME`` and ``${NAME}`` are
        taken from the environment.
    train, valid, test
        SQL conditions on the interactions, such as ``"split = 'train'"`` or ``"day < '2022-05-03'"``.
        Without `train` all rows are for training.
    """

    _: KW_ONLY
    interactions: str
    users: str | None = None
    items: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None


@spec
class ModelConfig(Spec):
    """The network: the arguments of `MultiTaskRanker` of the same names."""

    _: KW_ONLY
    sharing: Sharing = MMoE()
    heads: Heads = Towers()
    embedding_dim: Annotated[int, Field(ge=1)] = 16


@spec
class RunConfig(Spec):
    """How the model is run.

    Parameters
    ----------
    refit
        Train again on train and valid rows, as in `MultiTaskRanker.fit`.
    random_state
        Seed.
    device
        As in `MultiTaskRanker`.
    """

    _: KW_ONLY
    refit: bool = False
    random_state: int | None = None
    device: str = "auto"


@spec
class Config(Spec):
    """A whole training run; the sections of the TOML file.

    Parameters
    ----------
    tables, schema, model, training, run
        Each a section; the last three may be left out.
    """

    _: KW_ONLY
    tables: TablesConfig
    schema: Schema
    model: ModelConfig = ModelConfig()
    training: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()

    def ranker(self, *, progress: bool | None = None) -> MultiTaskRanker:
        """Make the ranker that the config describes, not fitted."""
        training = self.training
        return MultiTaskRanker(
            self.schema,
            sharing=self.model.sharing,
            heads=self.model.heads,
            embedding_dim=self.model.embedding_dim,
            batch_size=training.batch_size,
            max_epochs=training.max_epochs,
            optimizer=training.optimizer,
            table_optimizer=training.table_optimizer,
            monitor=training.monitor,
            patience=training.patience,
            reset_tables=training.reset_tables,
            device=self.run.device,
            progress=progress,
            random_state=self.run.random_state,
        )

    def rows(self) -> dict[str, Rows]:
        """Open the tables; return the rows for "train", and "valid" and "test" where they are named."""
        tables = self.tables
        everything = scan(tables.interactions, users=tables.users, items=tables.items)
        conditions = {"train": tables.train, "valid": tables.valid, "test": tables.test}
        rows = {
            name: where(everything, condition, path=f"tables.{name}")
            for name, condition in conditions.items()
            if condition is not None
        }
        return {"train": everything} | rows


def read_config(path: str | Path) -> Config:
    """Read and check a TOML file, before any work.

    Raises
    ------
    SchemaError
        If the file is no TOML, a key is unknown, a value breaks a rule or a table or column is
        missing. The text begins with the path of the key.
    """
    file = Path(path)
    try:
        data = tomllib.loads(file.read_text())
    except OSError as error:
        raise SchemaError(f"{file} must be a readable TOML file: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"{file} must be TOML: {error}.") from error
    if isinstance(data.get("tables"), dict):
        data["tables"] |= {
            key: _located(data["tables"][key], file.parent, f"tables.{key}")
            for key in ("interactions", "users", "items")
            if key in data["tables"]
        }
    config = Config.from_dict(data)
    _check(config)
    return config


def where(rows: Rows, condition: str, *, path: str) -> Rows:
    """Filter rows by an SQL condition on the columns of the interactions."""
    try:
        return rows.filter(pl.sql_expr(condition))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise SchemaError(f"{path} must be an SQL condition: {error}") from error


def _check(config: Config) -> None:
    """Check what can be known before any row is read."""
    task, _ = monitor_parts(config.training.monitor, config.schema)
    if config.run.refit and config.tables.valid is None:
        raise SchemaError("run.refit needs tables.valid: those rows choose the number of epochs.")
    if task and config.tables.valid is None:
        raise SchemaError("training.monitor needs tables.valid: that is what is monitored.")
    rows = config.rows()["train"]
    tables = {"user": rows.users, "item": rows.items}
    wanted = [*config.schema.keys, *config.schema.label_columns]
    for name, side in (("user", config.schema.user), ("item", config.schema.item)):
        own = tables[name]
        if own is not None and side is None:
            raise SchemaError(f"tables.{name}s needs schema.{name}: the key of that table.")
        if side is None:
            continue
        columns = [column for feature in side.features for column in feature.columns]
        if own is None:
            wanted += columns
        else:
            require(own.columns, [side.key, *columns], f"{name}s table (schema.{name})")
    wanted += [column for feature in config.schema.context for column in feature.columns]
    require(rows.columns, wanted, "interactions")


def _located(value: Any, folder: Path, key: str) -> Any:
    """Expand variables, and start relative paths at the config's folder."""
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise SchemaError(f"{key} names an environment variable that is not set: {value!r}.")
    return str(folder / expanded)
