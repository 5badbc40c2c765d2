"""Summary: what a scoring run read and wrote, and how far its rows are from the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recsys_mtl.encoding import absent_notes
from recsys_mtl.encoding.profile import Counts, Profile, stability_index

MOVED = 0.05
"""A feature has drifted if the share of nulls, or of unseen ids, is higher than in training by more."""
SHIFTED = 0.25
"""A number has drifted if its population stability index is above this."""


@dataclass(frozen=True)
class FeatureSummary:
    """One feature of the rows scored beside the training rows.

    Parameters
    ----------
    name
        The feature.
    null, unseen
        Share of rows without a value; share of ids that the model has no row for.
    trained_null, trained_unseen
        The same of the training rows; None where the model does not tell.
    stability
        Population stability index of a number; None for other features.
    """

    name: str
    null: float
    unseen: float
    trained_null: float | None
    trained_unseen: float | None
    stability: float | None

    @property
    def drifted(self) -> str | None:
        """Say what has moved beyond its threshold, or None."""
        found = []
        for what, now, then in (
            ("null", self.null, self.trained_null),
            ("unseen", self.unseen, self.trained_unseen),
        ):
            if then is not None and now - then > MOVED:
                found.append(f"{now:.1%} {what}, {then:.1%} in training")
        if self.stability is not None and self.stability > SHIFTED:
            found.append(f"stability index {self.stability:.2f}, above {SHIFTED}")
        return f"{self.name}: {'; '.join(found)}" if found else None


@dataclass(frozen=True)
class ScoringSummary:
    """What a run of `score_parquet` read and wrote.

    Parameters
    ----------
    output
        The file or folder.
    rows_in, rows_out
        Rows of the files scored; rows written, fewer only by a condition.
    parts, resumed
        Parts of the output; those that an earlier run had finished.
    seconds
        On the clock.
    features
        By feature.
    quarantined
        Files left out, and why.
    notes
        What else should be known.
    """

    output: Path
    rows_in: int
    rows_out: int
    parts: int
    resumed: int
    seconds: float
    features: tuple[FeatureSummary, ...]
    quarantined: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def drift(self) -> list[str]:
        """Say which features have drifted."""
        return [text for one in self.features if (text := one.drifted) is not None]

    def to_frame(self) -> pl.DataFrame:
        """Return a row per feature."""
        names = ("name", "null", "unseen", "trained_null", "trained_unseen", "stability")
        types = {name: pl.String if name == "name" else pl.Float64 for name in names}
        return pl.DataFrame([{n: getattr(one, n) for n in names} for one in self.features], types)

    def __str__(self) -> str:
        lines = [f"{self.rows_out:,} rows: {self.output}"]
        if self.rows_in != self.rows_out:
            lines.append(f"{self.rows_in:,} rows read")
        if self.resumed:
            lines.append(f"{self.resumed} of {self.parts} parts were there from an earlier run")
        lines += [f"left out: {reason}" for _, reason in self.quarantined]
        lines += self.notes
        if self.features:
            lines.append("feature, null, unseen, stability index (training in brackets)")
            lines += [
                f"  {one.name}: {_share(one.null, one.trained_null)}"
                f" {_share(one.unseen, one.trained_unseen)}"
                f" {'' if one.stability is None else f'{one.stability:.3f}'}".rstrip()
                for one in self.features
            ]
        return "\n".join([*lines, *(f"drift: {text}" for text in self.drift)])


def features_of(
    counts: Mapping[str, Counts], profile: Profile | None
) -> tuple[FeatureSummary, ...]:
    """Compare the features of the rows scored with those of the training rows."""
    known = {} if profile is None else profile.counts
    made = []
    for name, found in counts.items():
        trained = known.get(name)
        made.append(
            FeatureSummary(
                name,
                found.null_share,
                found.unseen_share,
                None if trained is None else trained.null_share,
                None if trained is None else trained.unseen_share,
                None if trained is None else stability_index(trained, found),
            )
        )
    return tuple(made)


def sum_counts(records: Sequence[Mapping[str, Any]]) -> dict[str, Counts]:
    """Add up the features of several parts."""
    total: dict[str, Counts] = {}
    for record in records:
        for name, values in record["counts"].items():
            total[name] = total.get(name, Counts()) + Counts.from_dict(values)
    return total


def sum_absent(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Add up the rows whose user or item its side table lacks."""
    total: dict[str, int] = {}
    for record in records:
        for side, rows in record["absent"].items():
            total[side] = total.get(side, 0) + rows
    return total


def notes_of(absent: Mapping[str, int]) -> tuple[str, ...]:
    """Say what should be known of the rows."""
    return tuple(absent_notes(absent))


def _share(now: float, then: float | None) -> str:
    return f"{now:.2%}" + ("" if then is None else f" ({then:.2%})")
