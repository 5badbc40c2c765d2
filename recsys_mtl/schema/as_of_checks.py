"""Checks of features computed from earlier rows against each other and the rest of a schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from recsys_mtl.schema.as_of import AsOf, AsOfHistory, ComputedFeature, Time
from recsys_mtl.schema.features import Feature
from recsys_mtl.schema.tasks import find_circle


def check_computed(
    context: Sequence[Feature],
    sides: Iterable[Feature],
    clock: Time | None,
    *,
    labels: Iterable[str],
    read: Iterable[str],
) -> None:
    """Check the computed features of a schema.

    Parameters
    ----------
    context, sides
        Features of the context, and of users and items.
    clock
        The schema's time.
    labels
        Columns of labels and sample weights.
    read
        Keys and columns of labels.

    Raises
    ------
    ValueError
        If one stands outside the context, or there is no time; if it takes an outcome for context;
        if its name is a column that is read; if its prior is none.
    """
    outside = [feature.name for feature in sides if isinstance(feature, ComputedFeature)]
    if outside:
        raise ValueError(
            f"feature {outside[0]!r} is computed from earlier rows and changes with time: it must"
            " stand in context"
        )
    computed = [feature for feature in context if isinstance(feature, ComputedFeature)]
    if clock is not None and clock.column in set(labels):
        raise ValueError(f"time must be known at the impression. Found label {clock.column!r}")
    if clock is not None:
        for duration in (clock.offset, clock.slack, clock.warm_up or clock.offset):
            clock.ticks(duration)
    if not computed:
        return
    if clock is None:
        raise ValueError(
            f"feature {computed[0].name!r} is computed from earlier rows: the schema must name their"
            " time, time='timestamp_ms' or Time(...)"
        )
    plain = {c for f in (*context, *sides) if not isinstance(f, ComputedFeature) for c in f.columns}
    taken = {clock.column, *read, *plain, *(c for f in computed for c in f.inputs)}
    for feature in computed:
        _check_one(feature, clock, set(labels), taken)
    _check_priors([feature for feature in computed if isinstance(feature, AsOf)])


def _check_one(feature: ComputedFeature, clock: Time, labels: set[str], taken: set[str]) -> None:
    leaked = labels.intersection((*feature.key_columns, *feature.context_columns))
    if leaked:
        raise ValueError(
            f"feature {feature.name!r} takes column {leaked.pop()!r}, a label or sample weight, for one"
            " that is known at the impression. Name it as label"
        )
    if feature.name in taken:
        raise ValueError(
            f"feature {feature.name!r} is written to a column of its name, which is read as a column of"
            " the table. Give it another name"
        )
    if isinstance(feature, AsOf | AsOfHistory) and feature.period is not None:
        clock.ticks(feature.period)
    if isinstance(feature, AsOf) and feature.window is not None:
        clock.ticks(feature.window)


def _check_priors(features: Sequence[AsOf]) -> None:
    means = {feature.name: feature for feature in features if feature.statistic == "mean"}
    for feature in features:
        if feature.prior is None:
            continue
        other = means.get(feature.prior)
        if other is None or (other.label, other.column) != (feature.label, feature.column):
            raise ValueError(
                f"feature {feature.name!r}: prior must name a mean of the same label or column. Found"
                f" {feature.prior!r}"
            )
        if other.residual:
            raise ValueError(
                f"feature {feature.name!r}: prior must be a whole mean. {other.name!r} is a residual"
                " alone: leave residual=True out there"
            )
    links: Mapping[str, Sequence[str]] = {f.name: [f.prior] if f.prior else [] for f in features}
    circle = find_circle(links)
    if circle is not None:
        raise ValueError(
            f"feature {circle.split(' -> ')[0]!r}: prior must not lead back to itself. Found {circle}"
        )
