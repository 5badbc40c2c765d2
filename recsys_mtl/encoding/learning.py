"""What an encoder learns from training rows: which buckets exist, how numbers are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.batch import FloatArray, IntArray
from recsys_mtl.encoding.columns import IdType, id_type, read_tokens
from recsys_mtl.encoding.kernels import NUM_RESERVED
from recsys_mtl.encoding.layout import EncodedNumber
from recsys_mtl.encoding.maps import RowMap, map_from_state
from recsys_mtl.encoding.sources import Source, Words, number_source
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import PIECEWISE_REACH, IdFeature, Numeric, Schema

Array = npt.NDArray[Any]
_MAX_DEVIATIONS = 5.0


@dataclass(frozen=True)
class NumericScale:
    """How the numbers of one feature become inputs.

    Parameters
    ----------
    scaling
        As in `Numeric`.
    mean, std
        Of the training values, after the logarithm if there is one.
    edges
        Ascending quantile edges, those of ``"piecewise"`` with the smallest and the largest value;
        empty for the scalings without.
    """

    scaling: str
    mean: float
    std: float
    edges: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, feature: Numeric, values: npt.NDArray[np.float64]) -> NumericScale:
        """Learn the scale from training values, NaN where missing."""
        known = _transform(feature.scaling, values[~np.isnan(values)])
        if feature.scaling == "quantile":
            steps = np.linspace(0, 1, feature.num_quantiles + 1)[1:-1]
            edges = np.unique(np.quantile(known, steps)) if known.size else np.empty(0)
            return cls(feature.scaling, 0.0, 1.0, edges)
        if feature.scaling == "piecewise":
            return cls(feature.scaling, 0.0, 1.0, _bin_edges(known, feature.num_quantiles))
        mean = float(known.mean()) if known.size else 0.0
        # The deviation of a constant is not 0 when its mean is rounded.
        varies = known.size > 0 and known.min() < known.max()
        return cls(feature.scaling, mean, float(known.std()) if varies else 1.0, np.empty(0))

    @property
    def num_rows(self) -> int:
        """Rows of the bucket table of ``"quantile"``: the reserved ones and one per bucket."""
        return NUM_RESERVED + int(self.edges.size) + 1

    def source(self, values: npt.NDArray[np.float64]) -> Source:
        """Prepare values, NaN where missing, for `table_rows`: missing ones have the null row."""
        return number_source(values, self._padded_edges)

    @cached_property
    def _padded_edges(self) -> npt.NDArray[np.float64]:
        """The edges as the kernel wants them: infinite ones up to a length of 2**k - 1."""
        length = (1 << int(self.edges.size).bit_length()) - 1
        return np.concatenate([self.edges, np.full(length - self.edges.size, np.inf)])

    def encoded(self, feature: Numeric) -> EncodedNumber:
        """Return what the network must know of a feature that it makes a vector of."""
        bins = max(int(self.edges.size) - 1, 1)
        size = bins if feature.scaling == "piecewise" else feature.num_frequencies
        return EncodedNumber(
            feature.name, feature.scaling, size, feature.embedding_dim, feature.frequency_scale
        )

    def dense(self, values: npt.NDArray[np.float64]) -> FloatArray:
        """Return shape (n, 2): the scaled number (0 where missing, at most 5 off), and a missing flag.

        That of ``"piecewise"`` is its place among the edges, from 0 at the first to the number of bins
        at the last: large numbers, such as times, keep their digits in float32.
        """
        missing = np.isnan(values)
        if self.scaling == "piecewise":
            scaled = self._places(values)
        else:
            scaled = (_transform(self.scaling, values) - self.mean) / self.std
            scaled = scaled.clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return np.stack([np.where(missing, 0.0, scaled), missing], axis=1).astype(np.float32)

    def _places(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each value's bin, plus the share of the bin below the value."""
        bins = np.searchsorted(self.edges[1:-1], values, side="right")
        lower, upper = self.edges[bins], self.edges[bins + 1]
        with np.errstate(over="ignore"):  # far off is far off
            share = (values - lower) / (upper - lower)
        places: npt.NDArray[np.float64] = bins + share.clip(-PIECEWISE_REACH, 1 + PIECEWISE_REACH)
        return places


def _bin_edges(known: npt.NDArray[np.float64], num_bins: int) -> npt.NDArray[np.float64]:
    """Return quantiles from the smallest to the largest value, each once, two at least."""
    if not known.size:
        return np.array([0.0, 1.0])
    edges = np.unique(np.quantile(known, np.linspace(0, 1, num_bins + 1)))
    if edges.size > 1:
        return edges
    return np.array([edges[0], edges[0] + max(1.0, abs(edges[0]))])


def _transform(scaling: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values)) if scaling == "log" else values


@dataclass(frozen=True)
class Sample:
    """Rows to learn from, and how many training interactions refer to each."""

    frame: pl.DataFrame
    uses: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Learned:
    """All that an encoder has learned.

    Parameters
    ----------
    maps
        A map from hashes to rows per table.
    scales
        A scale per numeric feature.
    families
        What kind of ids each table was learned from; tables that saw only nulls have none.
    """

    maps: dict[str, RowMap]
    scales: dict[str, NumericScale]
    families: dict[str, IdType]

    def check_family(self, feature: IdFeature, column: pl.Series) -> None:
        """Refuse ids of another kind than the trained ones: all of them would be unknown."""
        trained, found = self.families.get(feature.table_name), id_type(feature, column)
        if trained is not None and found is not None and trained.family != found.family:
            raise EncodingError(
                f"Feature {feature.name!r} was trained on {trained}. Found {found.dtype}: cast the"
                f" column {column.name!r}."
            )

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return JSON values and named arrays."""
        values = {
            "tables": {name: found.state()[0] for name, found in self.maps.items()},
            "numerics": {
                name: {"scaling": scale.scaling, "mean": scale.mean, "std": scale.std}
                for name, scale in self.scales.items()
            },
            "families": {name: asdict(family) for name, family in self.families.items()},
        }
        arrays: dict[str, Array] = {
            f"{found.kind}.{name}": found.state()[1] for name, found in self.maps.items()
        }
        return values, arrays | {f"edges.{name}": s.edges for name, s in self.scales.items()}

    @classmethod
    def from_state(cls, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Learned:
        """Rebuild from what `state` returned."""
        maps = {
            name: map_from_state(found, arrays[f"{found['kind']}.{name}"])
            for name, found in values["tables"].items()
        }
        scales = {
            name: NumericScale(**scale, edges=arrays[f"edges.{name}"])
            for name, scale in values["numerics"].items()
        }
        families = {name: IdType(**family) for name, family in values["families"].items()}
        return cls(maps, scales, families)


def read_uses(schema: Schema, feature: IdFeature, piece: Sample) -> tuple[Words, IntArray]:
    """Hash all ids of a feature to tokens; tell how many training interactions refer to each."""
    tokens, lengths = read_tokens(schema, feature, piece.frame)
    return tokens, piece.uses if lengths is None else np.repeat(piece.uses, lengths)
