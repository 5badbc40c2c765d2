"""Growth: what an encoder that goes on from another keeps, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_mtl.encoding.learning import Learned
from recsys_mtl.encoding.maps import Origins
from recsys_mtl.errors import SchemaError
from recsys_mtl.schema import (
    Bag,
    Feature,
    IdFeature,
    ListFeature,
    Numeric,
    Regression,
    Schema,
    Side,
    Task,
    Vector,
)


def check_growth(schema: Schema, known: Schema, learned: Learned) -> None:
    """Check that what was learned by one schema means the same in another.

    Parameters
    ----------
    schema
        The new one.
    known, learned
        The old one, and what it learned.

    Raises
    ------
    SchemaError
        If a known feature or task is of another kind or reads another column, or the ids of a known
        table would fall into other rows.
    """
    if schema.hash != known.hash:
        raise SchemaError(
            f"Schema.hash must stay {known.hash!r}: every id would be another. Found"
            f" {schema.hash!r}; keep it, or train afresh."
        )
    features = {feature.name: feature for feature in known.features}
    tables = {f.table_name: f for f in reversed(known.features) if isinstance(f, IdFeature)}
    for feature in schema.features:
        before = features.get(feature.name)
        if before is not None:
            _check_same(feature, "kind", before.kind, feature.kind)
            for name, value in _meaning(before).items():
                _check_same(feature, name, value, _meaning(feature)[name])
            for name, column in _columns(before).items():
                _check_column(f"Feature {feature.name!r}", name, column, _columns(feature)[name])
        if isinstance(feature, IdFeature) and feature.table_name in tables:
            _check_table(feature, tables[feature.table_name], learned)
    tasks = {task.name: task for task in known.tasks}
    for task in schema.tasks:
        if task.name in tasks:
            _check_column(f"Task {task.name!r}", "label", tasks[task.name].label, task.label)
            _check_bins(task, tasks[task.name])


def _columns(feature: Feature) -> dict[str, str | None]:
    """Return the columns that a feature reads, by the setting that names each."""
    weights = {"weights": feature.weights} if isinstance(feature, Bag) else {}
    return {"column": feature.source} | weights


def _meaning(feature: Feature) -> dict[str, Any]:
    """Return what must not change for the network to read a feature as it learned to."""
    if isinstance(feature, IdFeature):
        split = {"separator": feature.separator} if isinstance(feature, ListFeature) else {}
        return {"table": feature.table_name} | split
    if isinstance(feature, Numeric):
        cut = feature.scaling in {"quantile", "piecewise"}
        return {
            "scaling": feature.scaling,
            "num_quantiles": feature.num_quantiles if cut else None,
            "num_frequencies": feature.num_frequencies if feature.scaling == "periodic" else None,
        }
    return {"dim": feature.dim} if isinstance(feature, Vector) else {}


def _check_table(feature: IdFeature, before: IdFeature, learned: Learned) -> None:
    """Check that ids stay in their rows."""
    _check_same(feature, "num_hashes", before.num_lookups, feature.num_lookups)
    if (feature.vocabulary is None) != (before.vocabulary is None):
        _check_same(feature, "vocabulary", before.vocabulary, feature.vocabulary)
    if feature.num_buckets is not None:
        buckets = learned.maps[feature.table_name].num_buckets
        _check_same(feature, "num_buckets", buckets, feature.num_buckets)


def _check_same(feature: Feature, setting: str, known: Any, found: Any) -> None:
    if known != found:
        raise SchemaError(
            f"Feature {feature.name!r}: {setting} must stay {known!r}, as it was learned. Found"
            f" {found!r}: keep it, give the feature another name (and table), or train afresh."
        )


def _check_bins(task: Task, before: Task) -> None:
    """Check that logits that stand for bins go on to stand for the same."""
    if not (isinstance(task, Regression) and isinstance(before, Regression)):
        return
    if task.bins == before.bins:
        return
    settings = ("loss", "num_bins", "bounds")
    changed = [one for one in settings if getattr(task, one) != getattr(before, one)]
    kept = ", ".join(f"{one}={getattr(before, one)!r}" for one in changed)
    found = ", ".join(f"{one}={getattr(task, one)!r}" for one in changed)
    raise SchemaError(
        f"Task {task.name!r} must stay as it was learned: {kept}, which says what its logits stand for."
        f" Found {found}: keep it, give the task another name, or train afresh."
    )


def _check_column(who: str, setting: str, known: str | None, found: str | None) -> None:
    if known == found:
        return
    same = ""
    if known is not None and found is not None:
        names = f"{{{known!r}: {found!r}}}"
        same = f" If it is the same column by a new name, say Renamed(model, columns={names})."
    raise SchemaError(
        f"{who}: {setting} must stay {known!r}, which it was learned from. Found {found!r}.{same} Otherwise"
        " give it another name, or train afresh."
    )


def with_columns(schema: Schema, renamed: Mapping[str, str]) -> Schema:
    """Return a schema that reads the same columns by new names.

    Parameters
    ----------
    schema
        The old one.
    renamed
        New names by old ones: of columns of features and labels.

    Raises
    ------
    SchemaError
        If no feature or label reads a column of an old name.
    """
    read = {column for feature in schema.features for column in feature.columns}
    read |= {*schema.label_columns, *schema.teacher_columns}
    for column in renamed:
        if column not in read:
            raise SchemaError(
                f"Renamed columns must be ones that the model reads: {sorted(read)}. Found {column!r}."
            )

    def feature(one: Feature) -> Feature:
        new = replace(one, column=renamed.get(one.source, one.source))
        if isinstance(new, Bag) and new.weights is not None:
            return replace(new, weights=renamed.get(new.weights, new.weights))
        return new

    def side(one: Side | None) -> Side | None:
        return None if one is None else replace(one, features=[feature(f) for f in one.features])

    def task(one: Task) -> Task:
        weight = one.sample_weight
        known = None if weight is None else renamed.get(weight, weight)
        label, teacher = renamed.get(one.label, one.label), one.teacher
        taught = None if teacher is None else renamed.get(teacher, teacher)
        return replace(one, label=label, sample_weight=known, teacher=taught)

    return replace(
        schema,
        user=side(schema.user),
        item=side(schema.item),
        context=[feature(one) for one in schema.context],
        tasks=[task(one) for one in schema.tasks],
    )


def row_origins(new: Learned, known: Learned) -> dict[str, Origins]:
    """Return for each table of both, and each of its rows, the known row it was; -1 where it is new.

    Parameters
    ----------
    new
        What an encoder has learned on top of `known`.
    known
        What it went on from.
    """
    maps = {
        name: found.origins(known.maps[name])
        for name, found in new.maps.items()
        if name in known.maps
    }
    scales = {
        f"{name}.quantiles": np.arange(scale.num_rows)
        for name, scale in new.scales.items()
        if name in known.scales and scale.scaling == "quantile"
    }
    return maps | scales
