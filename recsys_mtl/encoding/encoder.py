"""Encoder: tables in, numbers out; the same numbers in training, batch scoring and serving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from recsys_mtl.encoding.batch import Batch, Block, FloatArray, Ragged
from recsys_mtl.encoding.chunk import Chunk, WholePart
from recsys_mtl.encoding.columns import read_numbers, read_several, read_source, read_vectors
from recsys_mtl.encoding.growth import check_growth
from recsys_mtl.encoding.keys import ABSENT, KeyIndex
from recsys_mtl.encoding.labels import read_groups, read_labels
from recsys_mtl.encoding.layout import EncodedNumber, InputLayout, TableSize
from recsys_mtl.encoding.learner import Learner
from recsys_mtl.encoding.learning import Array, Learned, Sample
from recsys_mtl.encoding.profile import PROFILE_ROWS, Profile
from recsys_mtl.encoding.sides import EncodedSide, UsedSide, only_keys
from recsys_mtl.encoding.sources import Source, table_rows
from recsys_mtl.errors import EncodingError, NotFittedError
from recsys_mtl.reading import Rows, SideTable, require, scan
from recsys_mtl.schema import (
    Feature,
    History,
    IdFeature,
    ListFeature,
    Numeric,
    Schema,
    Side,
    Vector,
)

Labels = Literal["required", "taught", "none"]


class Encoder:
    """Turn rows into a `Batch` by what the schema says and training rows have taught.

    Parameters
    ----------
    schema
        What the columns mean.

    Examples
    --------
    >>> import polars as pl
    >>> from recsys_mtl.schema import Binary, Categorical, Schema
    >>> schema = Schema(context=[Categorical("hour")], tasks=[Binary("ctr", label="click")])
    >>> table = pl.DataFrame({"hour": [7, 8, 7, None], "click": [1, 0, 0, 1]})
    >>> seven, eight, again, null = Encoder(schema).fit_encode(table).parts[0].block.ids.tolist()
    >>> seven == again, seven == eight, null
    (True, False, [0])
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._learned: Learned | None = None
        self._profile: Profile | None = None

    def fit(self, rows: Any, *, known: Encoder | None = None, chunk_rows: int = 1 << 17) -> Self:
        """Learn bucket maps and number scales from training rows; return self.

        Memory is needed for `chunk_rows` rows, the distinct ids, the side tables, and a sample of the
        numbers (`SAMPLED_NUMBERS`).

        Parameters
        ----------
        rows
            `Rows`, or any table `scan` takes.
        known
            A fitted encoder to go on from: its tables grow by the ids that are new, which leaves all
            others in their buckets, and its number scales stay.
        chunk_rows
            Rows read at a time; what is learned does not depend on it.

        Raises
        ------
        SchemaError
            If a known feature or table would silently mean something else.
        """
        opened = scan(rows)
        frames = opened.frames(self._columns(opened, "none"), chunk_rows=chunk_rows)
        self._learn(opened, frames, opened.count(), known)
        return self

    def fit_encode(self, rows: Any, *, known: Encoder | None = None) -> Batch:
        """Learn from training rows, as `fit`, and encode them with their labels, reading them once.

        Raises
        ------
        EncodingError
            If there are no rows, a column is missing or holds what the schema does not allow.
        SchemaError
            As in `fit`.
        """
        opened = scan(rows)
        frame = opened.frame(self._columns(opened, "taught"))
        self._learn(opened, [frame], frame.height, known)
        return self._encode(opened, frame, "taught", {}).batch()

    def encode(self, rows: Any, *, labels: Labels = "required") -> Batch:
        """Encode all rows at once.

        Parameters
        ----------
        rows
            `Rows`, or any table `scan` takes.
        labels
            ``"none"`` leaves the columns of labels and groups unread: scoring needs none.
            ``"taught"`` is for training: labels are mixed with the scores of tasks' teachers.
        """
        opened = scan(rows)
        frame = opened.frame(self._columns(opened, labels))
        return self._encode(opened, frame, labels, {}).batch()

    def batches(
        self,
        rows: Any,
        *,
        chunk_rows: int = 1 << 18,
        labels: Labels = "none",
        sides: dict[str, EncodedSide] | None = None,
    ) -> Iterator[Batch]:
        """Encode rows in order, at most `chunk_rows` at a time; an empty table gives one batch.

        `sides` keeps side tables, encoded, for a later call with the same ones.
        """
        for chunk in self.chunks(rows, chunk_rows=chunk_rows, labels=labels, sides=sides):
            yield chunk.batch()

    def chunks(
        self,
        rows: Any,
        *,
        chunk_rows: int = 1 << 18,
        labels: Labels = "none",
        sides: dict[str, EncodedSide] | None = None,
    ) -> Iterator[Chunk]:
        """Encode rows as `batches` does, side tables left whole."""
        opened = scan(rows)
        sides = {} if sides is None else sides
        start = 0
        for frame in opened.frames(self._columns(opened, labels), chunk_rows=chunk_rows):
            try:
                chunk = self._encode(opened, frame, labels, sides, first_row=start)
            except EncodingError as error:
                raise EncodingError(f"In the chunk that begins at row {start}: {error}") from error
            start += frame.height
            yield chunk

    def samples(self, rows: Any) -> list[tuple[Sequence[Feature], list[Sample]]]:
        """Read rows as `fit` does: for each group of features the frames it learns from."""
        opened = scan(rows)
        frame, used = opened.frame(self._columns(opened, "none")), dict[str, UsedSide]()
        found = [(features, [piece]) for features, piece in self._samples(opened, frame, used)]
        return found + [(side.features, [side.sample()]) for side in used.values()]

    @property
    def learned(self) -> Learned:
        """What training rows have taught."""
        if self._learned is None:
            raise NotFittedError("The encoder must be fitted first: call fit or fit_encode.")
        return self._learned

    @property
    def profile(self) -> Profile | None:
        """What training rows looked like; None if it was fitted before profiles were kept."""
        return self._profile

    @property
    def layout(self) -> InputLayout:
        """What the columns of encoded blocks are."""
        learned = self.learned
        tables: dict[str, TableSize] = {}
        ids: list[tuple[str, str, float]] = []
        lists: list[tuple[str, str, tuple[float, int]]] = []
        dense: list[tuple[str, int]] = []
        histories: list[int] = []
        numbers: list[EncodedNumber] = []
        item = self.schema.item
        of_item = [] if item is None else [feature.name for feature in item.features]
        for feature in self.schema.features:
            if isinstance(feature, IdFeature):
                name, rows = feature.table_name, learned.maps[feature.table_name].num_rows
                if isinstance(feature, History):
                    histories.append(len(lists))
                if _has_several(feature):
                    lists.append((feature.name, name, (feature.dropout, feature.num_lookups)))
                else:
                    ids.append((feature.name, name, feature.dropout))
                tables[name] = TableSize(name, rows, feature.embedding_dim)
            elif isinstance(feature, Numeric) and feature.scaling == "quantile":
                name = f"{feature.name}.quantiles"
                ids.append((feature.name, name, 0.0))
                rows = learned.scales[feature.name].num_rows
                tables[name] = TableSize(name, rows, feature.embedding_dim)
            else:
                dense.append((feature.name, feature.dim if isinstance(feature, Vector) else 2))
                if isinstance(feature, Numeric) and feature.is_encoded:
                    numbers.append(learned.scales[feature.name].encoded(feature))
        return InputLayout(
            tuple(tables.values()),
            id_tables=tuple(table for _, table, _ in ids),
            list_tables=tuple(table for _, table, _ in lists),
            dense_dim=sum(width for _, width in dense),
            id_names=tuple(name for name, _, _ in ids),
            list_names=tuple(name for name, _, _ in lists),
            dense_names=tuple(dense),
            histories=tuple(histories),
            items=tuple(place for place, (name, _, _) in enumerate(ids) if name in of_item),
            numbers=tuple(numbers),
            id_dropout=tuple(share for _, _, share in ids),
            list_dropout=tuple(drawn for _, _, drawn in lists),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what was learned as JSON values and named arrays, for `from_state`."""
        values, arrays = self.learned.state()
        profile = None if self._profile is None else self._profile.to_dict()
        return values | {"profile": profile}, arrays

    @classmethod
    def from_state(
        cls, schema: Schema, values: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> Self:
        """Rebuild a fitted encoder from what `state` returned."""
        made = cls(schema)
        made._learned = Learned.from_state(values, arrays)
        profile = values.get("profile")
        made._profile = None if profile is None else Profile.from_dict(profile)
        return made

    def _sides(self, rows: Rows) -> Iterator[tuple[str, Side, SideTable | None]]:
        if self.schema.user is not None:
            yield "user", self.schema.user, rows.users
        if self.schema.item is not None:
            yield "item", self.schema.item, rows.items

    def _columns(self, rows: Rows, labels: Labels) -> list[str]:
        """List the columns of the interactions that must be read."""
        wanted = list(self.schema.keys)
        for name, side, table in self._sides(rows):
            if table is not None:
                continue
            columns = _columns_of(side.features)
            theirs = [column for column in columns if column not in self.schema.keys]
            require(
                rows.columns,
                theirs,
                "interactions",
                f"They are features of the {name}: give its table, scan(..., {name}s=...), or join"
                " the columns.",
            )
            wanted += columns
        wanted += _columns_of(self.schema.context)
        if labels == "none":
            return wanted
        group = self.schema.group
        wanted += [*self.schema.label_columns, *([] if group is None else [group])]
        return [*wanted, *self.schema.teacher_columns] if labels == "taught" else wanted

    def _learn(
        self, rows: Rows, frames: Iterable[pl.DataFrame], num_rows: int, known: Encoder | None
    ) -> None:
        if num_rows == 0:
            raise EncodingError(
                "The interactions must hold rows to train on. Found an empty table."
            )
        if known is not None:
            check_growth(self.schema, known.schema, known.learned)
        learner = Learner(self.schema, num_rows, None if known is None else known.learned)
        used: dict[str, UsedSide] = {}
        stride, read, sampled = max(1, num_rows // PROFILE_ROWS), 0, list[pl.DataFrame]()
        for frame in frames:
            for features, piece in self._samples(rows, frame, used):
                learner.add(features, piece)
            offset = -read % stride
            if offset < frame.height:
                sampled.append(frame.gather_every(stride, offset))
            read += frame.height
        for side in used.values():
            learner.add(side.features, side.sample())
        self._learned = learner.finish()
        batch = self._encode(rows, pl.concat(sampled), "none", {}).batch()
        self._profile = Profile.of(self.schema, self.layout, batch)

    def _samples(
        self, rows: Rows, frame: pl.DataFrame, used: dict[str, UsedSide]
    ) -> Iterator[tuple[Sequence[Feature], Sample]]:
        """Yield what features read of these interactions; count in `used` the rows of side tables."""
        once = np.ones(frame.height, dtype=np.int64)
        for name, side, table in self._sides(rows):
            if table is None:
                yield side.features, Sample(frame, once)
                continue
            if name not in used:
                used[name] = UsedSide(side, table.frame(side.key, _columns_of(side.features)))
            lost = used[name].count(frame[side.key])
            yield side.features, Sample(lost, once[: lost.height])
        if self.schema.context:
            yield self.schema.context, Sample(frame, once)

    def _encode(
        self,
        rows: Rows,
        frame: pl.DataFrame,
        labels: Labels,
        sides: dict[str, EncodedSide],
        *,
        first_row: int = 0,
    ) -> Chunk:
        parts: list[WholePart] = []
        absent: dict[str, int] = {}
        for name, side, table in self._sides(rows):
            if table is None:
                parts.append(WholePart(self._block(side.features, frame)))
                continue
            if name not in sides:
                known = table.frame(side.key, _columns_of(side.features))
                block = self._block(side.features, known)
                sides[name] = EncodedSide(known, KeyIndex(known[side.key]), block)
            part, absent[name] = self._place(side, sides[name], frame[side.key])
            parts.append(part)
        if self.schema.context:
            parts.append(WholePart(self._block(self.schema.context, frame)))
        keys = frame.select(self.schema.keys)
        if labels == "none":
            return Chunk(tuple(parts), Batch(frame.height, (), keys, absent=absent))
        read = read_labels(frame, self.schema.tasks, taught=labels == "taught")
        group = self.schema.group
        groups = None if group is None else read_groups(frame[group], first_row=first_row)
        return Chunk(tuple(parts), Batch(frame.height, (), keys, *read, absent, groups))

    def _place(self, side: Side, encoded: EncodedSide, keys: pl.Series) -> tuple[WholePart, int]:
        """Refer each key to its row; keys the side table lacks get rows of their own at the end."""
        places = encoded.index.locate(keys)
        lost = places == ABSENT
        count = int(lost.sum())
        if count == 0:
            return WholePart(encoded.block, places), 0
        extra = self._block(side.features, only_keys(encoded.frame, keys.filter(lost)))
        places[lost] = len(encoded.block) + np.arange(count)
        return WholePart(encoded.block, places, extra), count

    def _block(self, features: Sequence[Feature], frame: pl.DataFrame) -> Block:
        learned = self.learned
        sources: list[Source] = []
        lists: list[Ragged] = []
        dense: list[FloatArray] = []
        for feature in features:
            column = frame[feature.source]
            if isinstance(feature, IdFeature):
                rows = learned.maps[feature.table_name]
                learned.check_family(feature, column)
                if _has_several(feature):
                    lists.append(read_several(self.schema, feature, frame, rows))
                else:
                    sources.append(read_source(self.schema, feature, column, rows))
            elif isinstance(feature, Vector):
                dense.append(read_vectors(column, feature))
            else:
                scale = learned.scales[feature.name]
                numbers = read_numbers(column, feature.name)
                if scale.scaling == "quantile":
                    sources.append(scale.source(numbers))
                else:
                    dense.append(scale.dense(numbers))
        return Block(
            table_rows(sources) if sources else np.empty((frame.height, 0), np.int32),
            tuple(lists),
            np.concatenate(dense, axis=1) if dense else np.empty((frame.height, 0), np.float32),
        )


def _has_several(feature: IdFeature) -> bool:
    """Tell whether a row looks up several rows of the feature's table."""
    return isinstance(feature, ListFeature) or feature.num_lookups > 1


def _columns_of(features: Sequence[Feature]) -> list[str]:
    """List the columns that features read."""
    return [column for feature in features for column in feature.columns]
