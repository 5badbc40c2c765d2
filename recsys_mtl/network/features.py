"""FeatureLayer: from looked-up vectors and given numbers to the input of sharing.

Histories are encoded, given vectors go through their extractors, features interact.

Shape letters: B rows, V views, N rows of all views (B * V), C vectors per row of one width, D embedding
dim, L sequence length, M events, I input width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import InputLayout
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.embedding import Embedded, Embeddings
from recsys_mtl.network.extractor import Extractor, output_width
from recsys_mtl.network.inputs import Inputs, ListInput
from recsys_mtl.network.interaction import Interaction
from recsys_mtl.network.numbers import NumberLayer, number_layers
from recsys_mtl.network.sequence import Mean, SequenceEncoder
from recsys_mtl.network.sharded import WHOLE, Shard
from recsys_mtl.network.sharing import Columns


@dataclass(frozen=True)
class _History:
    """Where a history's vectors are: its table (by number), list column, and target among the ids."""

    table: int
    position: int
    target: int | None
    pooled: bool


class FeatureLayer(nn.Module):
    """Turn a batch into the input of sharing, (B, V, output_dim).

    The features stand in this order: for every table width, rising, one-id features, bags and
    histories; then the dense numbers; then the outputs of extractors; then encoded numbers.

    Parameters
    ----------
    layout
        Tables and columns, from the encoder.
    embedding_dim
        Width of tables that name none.
    embedding_dropout
        Share of the numbers of all vectors (of ids, bags, histories, encoded numbers) that training sets
        to 0, 0 <= embedding_dropout < 1; the others are scaled up. Given numbers and those of
        extractors stay.
    num_views
        Vectors of every value, V.
    sequences
        Encoders of histories; the mean for those that none is for.
    interaction
        How features meet.
    extractors
        Networks that replace given vectors.
    shard
        Which rows of the embedding tables this process holds.

    Attributes
    ----------
    columns
        Where each feature's numbers lie in the output.
    output_dim
        Width of each view.

    Raises
    ------
    SchemaError
        If an encoder or extractor is for a feature that is not there or has one already.
    """

    kept_columns: Tensor

    def __init__(
        self,
        layout: InputLayout,
        *,
        embedding_dim: int,
        num_views: int,
        sequences: Sequence[SequenceEncoder],
        interaction: Interaction,
        extractors: Sequence[Extractor],
        embedding_dropout: float = 0.0,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        self.num_views = num_views
        self.dropout = nn.Dropout(embedding_dropout)
        names = [layout.list_names[position] for position in layout.histories]
        chosen = [_encoder_of(name, sequences) for name in names]
        check_features("sequences", [one.feature for one in sequences], names)
        self.embeddings = Embeddings(
            layout,
            embedding_dim=embedding_dim,
            num_views=num_views,
            events=[
                position
                for position, spec in zip(layout.histories, chosen, strict=True)
                if not spec.pooled_first
            ],
            shard=shard,
        )
        self._take_histories(layout, chosen)
        runs = self._vector_runs(layout)
        vector_dims = [(len(names), dim) for names, dim in runs]
        widths = [(name, dim) for names, dim in runs for name in names]
        widths += self._take_numbers(layout, extractors, embedding_dim)
        stops = list(accumulate(width for _, width in widths))
        self.columns = Columns(
            {
                name: slice(stop - width, stop)
                for (name, width), stop in zip(widths, stops, strict=True)
                if name
            }
        )
        self.interaction = interaction.build(stops[-1] if stops else 0, vector_dims)
        self.output_dim = self.interaction.output_dim

    def _take_histories(self, layout: InputLayout, chosen: Sequence[SequenceEncoder]) -> None:
        """Build the encoders of histories, table by table."""
        self._histories: list[_History] = []
        self.sequences = nn.ModuleList()
        for number, table in enumerate(self.embeddings.each()):
            for position in (*table.list_positions, *table.event_positions):
                if position in layout.histories:
                    spec = chosen[layout.histories.index(position)]
                    target = _target(layout, position, table.id_positions, spec)
                    self._histories.append(_History(number, position, target, spec.pooled_first))
                    self.sequences.append(spec.build(table.dim // self.num_views))

    def _vector_runs(self, layout: InputLayout) -> list[tuple[list[str], int]]:
        """List for every table the names of its features, empty where not known, and their width."""
        runs = []
        for table in self.embeddings.each():
            lists = (*table.list_positions, *table.event_positions)
            names = [layout.id_names[n] if layout.id_names else "" for n in table.id_positions]
            names += [layout.list_names[n] if layout.list_names else "" for n in lists]
            runs.append((names, table.dim // self.num_views))
        return runs

    def _take_numbers(
        self, layout: InputLayout, extractors: Sequence[Extractor], embedding_dim: int
    ) -> list[tuple[str, int]]:
        """Build what turns numbers into vectors; list features and widths of all numbers, those kept first."""
        runs = layout.dense_names or (("", layout.dense_dim),)
        encoded = [feature.name for feature in layout.numbers]
        free = [name for name, _ in runs if name not in encoded]
        check_features("extractors", [e.feature for e in extractors], free)
        by_feature = {extractor.feature: extractor for extractor in extractors}
        self._extracted: list[slice] = []
        self.extractors = nn.ModuleList()
        places: list[int] = []
        kept: list[tuple[str, int]] = []
        made: list[tuple[str, int]] = []
        columns: dict[str, int] = {}
        start = 0
        for name, run in runs:
            if name in by_feature:
                module = by_feature[name].build(run)
                self.extractors.append(module)
                self._extracted.append(slice(start, start + run))
                made.append((name, output_width(module, run, feature=name)))
            elif name in encoded:
                columns[name] = start
            else:
                places += range(start, start + run)
                kept.append((name, run))
            start += run
        self.register_buffer("kept_columns", torch.tensor(places, dtype=torch.int64), False)
        found = [columns[feature.name] for feature in layout.numbers]
        self.numbers = number_layers(layout.numbers, found, embedding_dim)
        return (
            kept + made + [(one.name, la.dim) for la in self.number_layers() for one in la.features]
        )

    def number_layers(self) -> list[NumberLayer]:
        """Return the layers that encode numbers."""
        return [layer for layer in self.numbers.values() if isinstance(layer, NumberLayer)]

    @property
    def apart(self) -> bool:
        """Whether a feature's columns of the output, of which there is one view, hang on it alone."""
        met = not self.interaction.identity
        met |= any(history.target is not None for history in self._histories)
        return self.num_views == 1 and not met

    def forward(self, embedded: Embedded, inputs: Inputs) -> Tensor:
        """Return the input of sharing from looked-up vectors, where the graph of training begins."""
        num_rows, views = len(inputs), self.num_views
        vectors: list[Tensor] = []
        events: dict[int, Tensor] = {}
        for table, vectors_SD in zip(self.embeddings.each(), embedded.vectors, strict=True):
            pooled_BCD, apart = table.split(vectors_SD, inputs)
            vectors.append(_per_view(pooled_BCD, views))
            events |= dict(zip(table.event_positions, apart, strict=True))
        encoded: list[list[Tensor]] = [[] for _ in vectors]
        for history, encoder in zip(self._histories, self.sequences, strict=True):
            vectors_NCD = vectors[history.table]
            found = inputs.lists[history.position]
            if history.pooled:
                # those encoded so far are the first of the pooled histories, which come last
                place = self._first_pooled(history.table) + len(encoded[history.table])
                history_NLD = vectors_NCD[:, place : place + 1]
                mask_BL = (found.lengths_B > 0)[:, None]
            else:
                history_BLD, mask_BL = pad(events[history.position], found)
                history_NLD = _per_view(history_BLD, views)
            target_ND = None if history.target is None else vectors_NCD[:, history.target]
            mask_NL = mask_BL if views == 1 else mask_BL.repeat_interleave(views, dim=0)
            encoded[history.table].append(encoder(history_NLD, mask_NL, target_ND))
        for number, found_ND in enumerate(encoded):
            if found_ND:
                plain = vectors[number][:, : self._first_pooled(number)]
                vectors[number] = torch.cat([plain, torch.stack(found_ND, dim=1)], dim=1)
        vectors = [self.dropout(found_NCD) for found_NCD in vectors]
        dense_BN = inputs.dense_BN
        given = [
            extract(dense_BN[:, place])
            for extract, place in zip(self.extractors, self._extracted, strict=True)
        ]
        given += [self.dropout(layer(inputs.dense_BN)) for layer in self.number_layers()]
        if given:
            dense_BN = dense_BN.index_select(1, self.kept_columns)
        numbers = [dense_BN, *given]
        if views > 1:
            numbers = [one.repeat_interleave(views, dim=0) for one in numbers]
        x_NI = torch.cat([*(one.flatten(1) for one in vectors), *numbers], dim=1)
        x_NI = self.interaction(x_NI, tuple(vectors))
        return cast("Tensor", x_NI).view(num_rows, views, self.output_dim)

    def _first_pooled(self, table: int) -> int:
        """Return where the pooled histories of a table begin among its pooled vectors."""
        pooled = sum(one.table == table and one.pooled for one in self._histories)
        return self.embeddings.each()[table].num_lookups - pooled


def pad(events_MD: Tensor, found: ListInput) -> tuple[Tensor, Tensor]:
    """Lay events out as (B, L, D), each row's at the front and 0 behind, with their mask (B, L)."""
    num_rows, dim = found.offsets_B.numel(), events_MD.shape[1]
    lengths_B = found.lengths_B
    length = int(lengths_B.max()) if num_rows else 0
    starts_B = torch.arange(num_rows, device=lengths_B.device) * length - found.offsets_B
    places_M = torch.arange(events_MD.shape[0], device=lengths_B.device)
    places_M = places_M + torch.repeat_interleave(
        starts_B, lengths_B, output_size=events_MD.shape[0]
    )
    padded = events_MD.new_zeros(num_rows * length, dim).index_copy(0, places_M, events_MD)
    mask_BL = torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
    return padded.view(num_rows, length, dim), mask_BL


def _per_view(vectors_BCW: Tensor, num_views: int) -> Tensor:
    """Turn rows of V vectors side by side into V rows: (B, C, V * D) -> (B * V, C, D)."""
    if num_views == 1:
        return vectors_BCW
    num_rows, count, width = vectors_BCW.shape
    apart = vectors_BCW.view(num_rows, count, num_views, width // num_views)
    return apart.transpose(1, 2).flatten(0, 1)


def _encoder_of(name: str, sequences: Sequence[SequenceEncoder]) -> SequenceEncoder:
    """Return the encoder for a history: its own, else the one for all, else the mean."""
    own = [spec for spec in sequences if spec.feature == name]
    common = [spec for spec in sequences if spec.feature is None]
    return (own or common or [Mean()])[0]


def check_features(what: str, wanted: Sequence[str | None], known: Sequence[str]) -> None:
    """Check that encoders or extractors are for features that are there, one for each.

    Parameters
    ----------
    what
        ``"sequences"`` or ``"extractors"``.
    wanted
        The feature that each is for; None: all that have none of their own.
    known
        Names of the features that there are.

    Raises
    ------
    SchemaError
        If one is for no feature, or two are for the same.
    """
    kind = "History" if what == "sequences" else "Vector (or standard or log Numeric)"
    left = [name for name in known if name not in wanted]
    for number, name in enumerate(wanted):
        if name in wanted[:number]:
            place = "every history" if name is None else repr(name)
            raise SchemaError(
                f"{what} must hold one for each feature. Found two for {place}: remove one, or give it"
                " another feature=."
            )
        if (name is None and not left) or (name is not None and name not in known):
            found = "one for every history that has none" if name is None else repr(name)
            raise SchemaError(
                f"{what} must each be for a {kind} feature. Found {found}; such features of the"
                f" schema: {list(known)}."
            )


def _target(
    layout: InputLayout, position: int, id_positions: Sequence[int], spec: SequenceEncoder
) -> int | None:
    """Return which of a table's one-id vectors is the item that a history's encoder looks for."""
    if not spec.needs_target:
        return None
    table = layout.list_tables[position]
    history = layout.list_names[position]
    found = [n for n, column in enumerate(id_positions) if layout.id_tables[column] == table]
    if len(found) > 1:
        found = [place for place in found if id_positions[place] in layout.items] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = [layout.id_names[id_positions[place]] for place in found]
        raise SchemaError(
            f"{spec.kind} needs one item to be scored in the table {table!r} of history {history!r}."
            f" Found {names}: give all but the item another table=, or put the item's into"
            " Schema(item=Side(...))."
        )
    raise SchemaError(
        f"{spec.kind} needs the item to be scored: a Categorical feature that shares table {table!r}"
        f" with history {history!r}. Give both features the same table=. Tables"
        f" of one-id features: {sorted(set(layout.id_tables))}."
    )
