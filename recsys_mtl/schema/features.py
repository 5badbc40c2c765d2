"""Features: the role each column plays as an input."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field

from recsys_mtl.spec import Spec, spec

Name = Annotated[str, Field(min_length=1)]
NumBuckets = Annotated[int, Field(ge=2, le=2**30)]
NumHashes = Annotated[int, Field(ge=1, le=2)]
Positive = Annotated[int, Field(ge=1)]

PIECEWISE_REACH = 4.0
"""How far a ``"piecewise"`` number may lie outside its bins, in widths of the outermost bin."""
_MOST_BINS = 1024


@spec
class Feature(Spec):
    """What all features share: a name that is unique in the schema, and the column it reads.

    Parameters
    ----------
    name
        Name of the feature.
    column
        Column it reads; by default the column of the same name.
    """

    name: Name
    _: KW_ONLY
    column: Name | None = None

    @property
    def source(self) -> str:
        """The column read."""
        return self.column or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns read."""
        return (self.source,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a table must have for it."""
        return self.columns


@spec
class IdFeature(Feature):
    """A feature whose values are hashed and looked up in an embedding table.

    Parameters
    ----------
    num_buckets
        Hash range. By default 32 times the number of distinct training values, rounded up to a power
        of two, at least 65,536: about 3 % of the ids then share a bucket. A bucket costs 2 bits; only
        buckets that training rows hit get a row in the table. With a vocabulary, the rows of the
        ids that it lacks: by default an eighth of its size, at least 1,024.
    embedding_dim
        Width of its vectors; by default the model's.
    min_count
        A value (strictly: its bucket) seen in fewer training rows shares the `unknown` row, or a
        hashed row where there is a vocabulary.
    vocabulary
        Most values to give a row of their own, the most frequent first; all others are hashed into
        `num_buckets` rows, unseen ones too. By default there is no such list.
    table
        Name of the table; features that name the same one share buckets and vectors.
        By default the feature's own name. The hash seed is derived from it.
    dropout
        Share of the ids that are taken for unknown ones while the network is trained,
        0 <= dropout < 1: the `unknown` row is then trained, and less is learned of ids by heart. Lists
        lose ids one by one. Features of one table may differ in it, and so may a model and one that
        goes on from it.
    """

    _: KW_ONLY
    num_buckets: NumBuckets | None = None
    embedding_dim: Positive | None = None
    min_count: Positive = 1
    vocabulary: Positive | None = None
    table: Name | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def table_name(self) -> str:
        """The table its values are looked up in."""
        return self.table or self.name

    @property
    def num_lookups(self) -> int:
        """Rows of the table that one value looks up."""
        return 1


@spec
class Categorical(IdFeature, kind="categorical"):
    """One id per row: strings, integers, booleans, dates, bytes or dictionary-encoded values.

    Null, the empty string and values unseen in training each have a row of their own.
    The integer 5 and the string "5" are different values.

    Parameters
    ----------
    num_hashes
        Rows that each value looks up, 1 or 2, by independent hashes; their vectors are averaged. Two
        values that share one row then still differ in the other, which makes a table far smaller
        than its ids usable (Zhang et al., "Model Size Reduction Using Frequency Based Double
        Hashing for Recommender Systems", RecSys 2020).
    """

    _: KW_ONLY
    num_hashes: NumHashes = 1

    @property
    def num_lookups(self) -> int:
        """Rows of the table that one value looks up."""
        return self.num_hashes


@spec
class ListFeature(IdFeature):
    """Several ids per row: a list column, or a string to be split.

    Parameters
    ----------
    separator
        If given, the column holds strings that are split at it. White space around a piece is no
        part of it, so ``"a, b"`` split at ``","`` holds the id ``"b"``; empty pieces are dropped.
    max_length
        Ids kept per row; None keeps all.
    """

    _: KW_ONLY
    separator: Name | None = None
    max_length: Positive | None = None


@spec
class Bag(ListFeature, kind="bag"):
    """An unordered set of ids per row; their vectors are pooled. Null and empty bags give zeros.

    Parameters
    ----------
    weights
        Column of float lists, as long as the bag's, that weigh the ids.
    pooling
        ``"mean"`` divides by the number (or the weights' sum) of the ids; ``"sum"`` does not.
    max_length
        Ids kept per row: the first ones. None keeps all.
    num_hashes
        As for `Categorical`.
    """

    _: KW_ONLY
    weights: Name | None = None
    pooling: Literal["mean", "sum"] = "mean"
    num_hashes: NumHashes = 1

    @property
    def num_lookups(self) -> int:
        """Rows of the table that one value looks up."""
        return self.num_hashes

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns read: the ids' and the weights'."""
        return (self.source,) if self.weights is None else (self.source, self.weights)


@spec
class History(ListFeature, kind="history"):
    """An ordered list of ids per row, oldest first, such as the items a user saw last.

    Parameters
    ----------
    max_length
        Ids kept per row: the last, most recent ones.
    """

    _: KW_ONLY
    max_length: Positive | None = 50


@spec
class Numeric(Feature, kind="numeric"):
    """A number per row. Null and NaN are a value of their own, never a number.

    Parameters
    ----------
    scaling
        ``"quantile"`` looks up a vector per quantile bucket (missing has its own).
        ``"standard"`` subtracts the training mean and divides by the deviation; ``"log"`` does the
        same after ``sign(x) * log(1 + |x|)``. These two give two inputs: the number, cut at 5
        deviations and 0 where missing, and a flag that is 1 where missing.
        ``"piecewise"`` and ``"periodic"`` give a vector that changes with the number without jumps;
        missing has a learned one. The first is piecewise linear in the number, with bends at
        training quantiles (PLE-LR): below the first and above the last it goes on as a line for
        `PIECEWISE_REACH` times the width of the outermost bin, and is constant from there. The second
        takes sine and cosine of trained frequencies of the number, scaled as by ``"standard"`` (PLR).
        Both end in a linear map of the feature's own and ReLU.
    num_quantiles
        Buckets of ``"quantile"`` and bins of ``"piecewise"`` (at most 1,024); equal edges are merged.
    embedding_dim
        Width of the vectors; by default the model's.
    num_frequencies
        Frequencies of ``"periodic"``.
    frequency_scale
        Deviation of the normal distribution that they are drawn from, in periods per deviation of the
        number, above 0. Large ones can follow a jagged dependence, and overfit.

    References
    ----------
    Y. Gorishniy, I. Rubachev, A. Babenko, "On Embeddings for Numerical Features in Tabular Deep
    Learning", NeurIPS 2022: sections 3.2 (piecewise linear), 3.3 (periodic).
    """

    _: KW_ONLY
    scaling: Literal["quantile", "standard", "log", "piecewise", "periodic"] = "quantile"
    num_quantiles: Annotated[int, Field(ge=2, le=65536)] = 32
    embedding_dim: Positive | None = None
    num_frequencies: Annotated[int, Field(ge=1, le=1024)] = 48
    frequency_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01

    def __post_init__(self) -> None:
        if self.scaling == "piecewise" and self.num_quantiles > _MOST_BINS:
            raise ValueError(
                f"num_quantiles must be at most {_MOST_BINS:,} with scaling='piecewise'. Found"
                f" {self.num_quantiles:,}: lower it, or choose scaling='quantile'"
            )

    @property
    def is_encoded(self) -> bool:
        """Whether the network makes a vector of the number, which is no look-up in a table."""
        return self.scaling in {"piecewise", "periodic"}


@spec
class Vector(Feature, kind="vector"):
    """A given list of numbers per row, such as an image embedding. A null vector gives zeros.

    Parameters
    ----------
    dim
        Its length in every row.
    """

    _: KW_ONLY
    dim: Positive
