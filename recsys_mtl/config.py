"""A training run as a TOML file: tables, schema, model, training."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Container, Iterator, Sequence
from dataclasses import KW_ONLY, fields
from pathlib import Path
from typing import Any

import polars as pl

from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.fitting import DiskCache
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import Binary, Schema
from recsys_mtl.settings import ModelConfig, Settings, check_settings, find_device
from recsys_mtl.spec import Spec, spec
from recsys_mtl.tables import lazy_frame
from recsys_mtl.training import TrainConfig, monitor_parts

_TABLES = ("interactions", "users", "items")


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
    cache
        Where encoded rows are kept on disk, for tables larger than memory. A relative folder starts at
        that of the config.
    """

    _: KW_ONLY
    refit: bool = False
    random_state: int | None = None
    device: str = "auto"
    cache: DiskCache | None = None


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
        chosen = {
            field.name: getattr(part, field.name)
            for part in (self.model, self.training)
            for field in fields(part)
        }
        return MultiTaskRanker(
            self.schema,
            device=self.run.device,
            progress=progress,
            random_state=self.run.random_state,
            **chosen,
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
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SchemaError(f"{file} must be a readable TOML file: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{file} must be TOML: {error}.") from error
    if isinstance(data.get("tables"), dict):
        data["tables"] |= {
            key: _located(data["tables"][key], file.parent, f"tables.{key}")
            for key in _TABLES
            if key in data["tables"]
        }
    run = data.get("run")
    if isinstance(run, dict) and isinstance(run.get("cache"), dict) and "folder" in run["cache"]:
        run["cache"]["folder"] = _located(run["cache"]["folder"], file.parent, "run.cache.folder")
    try:
        config = Config.from_dict(data)
    except SchemaError as error:
        raise SchemaError(str(error).removeprefix("Config.")) from None
    _check_run(config)
    _check_tables(config)
    return config


def where(rows: Rows, condition: str, *, path: str) -> Rows:
    """Filter rows by an SQL condition on the columns of the interactions.

    Raises
    ------
    SchemaError
        If it is no SQL, reads a column that is not there or compares different types.
    """
    try:
        filtered = rows.filter(condition)
        pl.DataFrame(schema=rows.interactions.collect_schema()).filter(pl.sql_expr(condition))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise SchemaError(
            f"{path} must be an SQL condition on the interactions. Found {condition!r}: {error}"
        ) from error
    return filtered


def check_labels(rows: Rows, schema: Schema, *, path: str) -> None:
    """Check that rows are there and their labels are what the tasks allow, before training begins.

    Raises
    ------
    EncodingError
        If there are no rows, or a label is outside its task's domain.
    """
    found = 0
    for labels in rows.frames(schema.label_columns, chunk_rows=1 << 20):
        found += labels.height
        read_labels(labels, schema.tasks)
    if found == 0:
        raise EncodingError(
            f"{path} must select rows. Found none: an empty table, or a condition never true."
        )


def _check_run(config: Config) -> None:
    """Check the settings against each other."""
    try:
        task, _ = monitor_parts(config.training.monitor, config.schema)
    except SchemaError as error:
        raise SchemaError(f"training.{error}") from None
    try:
        find_device(config.run.device)
    except SchemaError as error:
        raise SchemaError(f"run.{error}") from None
    _check_settings(config)
    if config.run.refit and config.tables.valid is None:
        raise SchemaError("run.refit needs tables.valid: those rows choose the number of epochs.")
    if task and config.tables.valid is None:
        raise SchemaError("training.monitor needs tables.valid: that is what is monitored.")


def _check_settings(config: Config) -> None:
    """Check the model and the training against the schema; an error begins with its section."""
    chosen = {
        field.name: getattr(part, field.name)
        for part in (config.model, config.training)
        for field in fields(part)
    }
    try:
        check_settings(config.schema, Settings(**chosen))
    except SchemaError as error:
        key = "model.heads: "
        if str(error).startswith(("tower_optimizers", "balance", "accumulate")):
            key = "training."
        elif str(error).startswith(("sequences", "extractors")):
            key = "model."
        raise SchemaError(f"{key}{error}") from None


def _check_tables(config: Config) -> None:
    """Check that all tables and the columns read are there; no row is read."""
    found: dict[str, list[str]] = {}
    for name in _TABLES:
        place = getattr(config.tables, name)
        if place is None:
            continue
        try:
            found[name] = lazy_frame(place, what=f"{name} table").collect_schema().names()
        except EncodingError as error:
            raise SchemaError(f"tables.{name}: {error}") from error
    for side in ("user", "item"):
        if f"{side}s" in found and getattr(config.schema, side) is None:
            raise SchemaError(f"tables.{side}s needs schema.{side}: the key of that table.")
    for path, table, columns in _reads(config.schema, found):
        for column in columns:
            if column not in found[table]:
                raise SchemaError(
                    f"{path} reads column {column!r}, which the {table} table lacks."
                    f" Columns found: {found[table]}."
                )
    config.rows()


def _reads(schema: Schema, tables: Container[str]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """List the key of the config, the table and the columns of all that is read."""
    for name, side in (("user", schema.user), ("item", schema.item)):
        if side is None:
            continue
        own = f"{name}s" if f"{name}s" in tables else "interactions"
        yield f"schema.{name}.key", "interactions", [side.key]
        yield f"schema.{name}.key", own, [side.key]
        for number, feature in enumerate(side.features):
            yield f"schema.{name}.features[{number}]", own, feature.columns
    for number, feature in enumerate(schema.context):
        yield f"schema.context[{number}]", "interactions", feature.inputs
    if schema.clock is not None:
        yield "schema.time", "interactions", [schema.clock.column]
    for number, task in enumerate(schema.tasks):
        yield f"schema.tasks[{number}].label", "interactions", [task.label]
        if task.sample_weight is not None:
            yield f"schema.tasks[{number}].sample_weight", "interactions", [task.sample_weight]
        if isinstance(task, Binary) and task.group is not None:
            yield f"schema.tasks[{number}].group", "interactions", [task.group]


def _located(value: Any, folder: Path, key: str) -> Any:
    """Expand variables, and start relative paths at the config's folder."""
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise SchemaError(f"{key} names an environment variable that is not set: {value!r}.")
    return str(folder / expanded)
