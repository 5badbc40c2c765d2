"""Embedding tables: all features of one width in one matrix, looked up outside of autograd.

The graph begins at the looked-up vectors. Training differentiates down to them, and a row-wise
optimizer (`recsys_mtl.training.tables`) carries that gradient to the rows the batch touched: a step
costs the rows of the batch, not the rows of the table.

Shape letters: B rows, C lookups per row (one-id features, then list features), D embedding dim,
R table rows, S vectors of a batch, K ids looked up in a batch, M ids of a list column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_mtl.encoding import NUM_RESERVED, InputLayout
from recsys_mtl.network.inputs import Inputs

INIT_STD = 0.01


@dataclass(frozen=True)
class Touched:
    """Which rows of a table a batch looked up, and where each went.

    Parameters
    ----------
    rows_K
        Table rows; duplicates are not merged.
    slots_K
        Row of the looked-up matrix (S, D) that each contributed to.
    weights_K
        Factor of each contribution; None means 1.
    """

    rows_K: Tensor
    slots_K: Tensor
    weights_K: Tensor | None


@dataclass(frozen=True)
class Embedded:
    """What a batch looked up: one matrix (S, D) per table width, and the rows behind it.

    A matrix holds the pooled vectors of all rows, B * C of them, then the events of histories.
    Training differentiates down to these matrices.
    """

    vectors: tuple[Tensor, ...]
    touched: tuple[Touched, ...]


class EmbeddingTable(nn.Module):
    """All tables of one width, one under the other in a single matrix.

    Parameters
    ----------
    names, num_rows
        The tables.
    id_columns, list_columns, event_columns
        Which lookups of a batch are its own: (position, table name). Lists are pooled; event columns
        are lists, too, whose vectors stay apart.
    dim
        Width D.
    """

    id_columns: Tensor
    id_bases_F: Tensor

    def __init__(
        self,
        names: Sequence[str],
        num_rows: Sequence[int],
        id_columns: Sequence[tuple[int, str]],
        list_columns: Sequence[tuple[int, str]],
        dim: int,
        event_columns: Sequence[tuple[int, str]] = (),
    ) -> None:
        super().__init__()
        ends = torch.tensor([0, *num_rows]).cumsum(0).tolist()
        self.bases = dict(zip(names, ends[:-1], strict=True))
        self.num_rows = dict(zip(names, num_rows, strict=True))
        self.dim = dim
        self.num_lookups = len(id_columns) + len(list_columns)
        self.weight_RD = nn.Parameter(torch.empty(ends[-1], dim), requires_grad=False)
        self.id_positions = tuple(position for position, _ in id_columns)
        self.list_positions = tuple(position for position, _ in list_columns)
        self.event_positions = tuple(position for position, _ in event_columns)
        self._lists = [(position, self.bases[name]) for position, name in list_columns]
        self._events = [(position, self.bases[name]) for position, name in event_columns]
        bases = torch.tensor([self.bases[name] for _, name in id_columns], dtype=torch.int64)
        positions = torch.tensor(self.id_positions, dtype=torch.int64)
        self.register_buffer("id_columns", positions, False)
        self.register_buffer("id_bases_F", bases, False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all vectors from a normal distribution of deviation `INIT_STD`."""
        nn.init.normal_(self.weight_RD, std=INIT_STD)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Touched]:
        """Return the looked-up vectors (S, D), cut off from the graph, and the rows touched."""
        ids_BF = inputs.ids_BF
        if len(self.id_positions) != ids_BF.shape[1]:
            ids_BF = ids_BF.index_select(1, self.id_columns)
        ids_BF = ids_BF + self.id_bases_F
        vectors_BFD = F.embedding(ids_BF, self.weight_RD)
        if not self._lists and not self._events:
            slots_K = torch.arange(ids_BF.numel(), device=ids_BF.device)
            return vectors_BFD.flatten(0, 1), Touched(ids_BF.flatten(), slots_K, None)
        num_ids = ids_BF.shape[1]
        places_B = torch.arange(len(inputs), device=ids_BF.device) * self.num_lookups
        first = torch.arange(num_ids, device=ids_BF.device)
        rows, slots = [ids_BF.flatten()], [(places_B[:, None] + first).flatten()]
        weights = [torch.ones_like(slots[0], dtype=self.weight_RD.dtype)]
        pooled = [vectors_BFD]
        for number, (position, base) in enumerate(self._lists):
            found = inputs.lists[position]
            values_M = found.values_M.to(torch.int64) + base
            weights_M = found.weights_M.to(self.weight_RD.dtype)
            pooled_BD = F.embedding_bag(
                values_M,
                self.weight_RD,
                found.offsets_B,
                mode="sum",
                per_sample_weights=weights_M,
            )
            pooled.append(pooled_BD[:, None])
            rows.append(values_M)
            slots_B = places_B + num_ids + number
            slots.append(
                torch.repeat_interleave(slots_B, found.lengths_B, output_size=values_M.numel())
            )
            weights.append(weights_M)
        vectors = [
            torch.cat(pooled, dim=1).flatten(0, 1) if self._lists else vectors_BFD.flatten(0, 1)
        ]
        taken = vectors[0].shape[0]
        for position, base in self._events:
            values_M = inputs.lists[position].values_M.to(torch.int64) + base
            vectors.append(F.embedding(values_M, self.weight_RD))
            rows.append(values_M)
            slots.append(torch.arange(taken, taken + values_M.numel(), device=ids_BF.device))
            weights.append(torch.ones_like(values_M, dtype=self.weight_RD.dtype))
            taken += values_M.numel()
        touched = Touched(torch.cat(rows), torch.cat(slots), torch.cat(weights))
        return torch.cat(vectors) if self._events else vectors[0], touched

    def split(self, vectors_SD: Tensor, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Return the pooled vectors (B, C, D) and those of each event column, (M, D)."""
        sizes = [inputs.lists[position].values_M.numel() for position in self.event_positions]
        pooled, *events = torch.split(vectors_SD, [len(inputs) * self.num_lookups, *sizes])
        return pooled.view(len(inputs), self.num_lookups, self.dim), events

    @torch.no_grad()
    def fill_untrained(self, trained_R: Tensor) -> None:
        """Set reserved rows that no training row touched to the mean of their table's trained rows.

        An unknown id is then scored as an average one; a null or empty value that training rows
        never had, too.

        Parameters
        ----------
        trained_R
            Whether training touched each row of the matrix.
        """
        for name, base in self.bases.items():
            weight_RD = self.weight_RD[base : base + self.num_rows[name]]
            trained = trained_R[base : base + self.num_rows[name]]
            known = weight_RD[NUM_RESERVED:][trained[NUM_RESERVED:]]
            reserved = weight_RD[:NUM_RESERVED]
            mean_D = known.mean(dim=0) if len(known) else torch.zeros_like(weight_RD[0])
            reserved[~trained[:NUM_RESERVED]] = mean_D


class Embeddings(nn.Module):
    """All embedding tables of a model, one `EmbeddingTable` per width.

    Parameters
    ----------
    layout
        Tables and lookups, from the encoder.
    embedding_dim
        Width of tables that name none.
    num_views
        Vectors that every row holds side by side, V: tables are that many times as wide.
    events
        List columns whose vectors are not pooled.
    """

    def __init__(
        self,
        layout: InputLayout,
        *,
        embedding_dim: int,
        num_views: int = 1,
        events: Sequence[int] = (),
    ) -> None:
        super().__init__()
        width = {one.name: (one.dim or embedding_dim) * num_views for one in layout.tables}
        size = {table.name: table.num_rows for table in layout.tables}
        self.tables = nn.ModuleList()
        for dim in sorted(set(width.values())):
            names = [name for name in width if width[name] == dim]
            ids = [(i, name) for i, name in enumerate(layout.id_tables) if width[name] == dim]
            own = [(i, name) for i, name in enumerate(layout.list_tables) if width[name] == dim]
            # histories last, where the layers that turn them into vectors expect them
            bags = [one for one in own if one[0] not in layout.histories]
            pooled = [one for one in own if one[0] in layout.histories and one[0] not in events]
            apart = [one for one in own if one[0] in events]
            sizes = [size[name] for name in names]
            self.tables.append(
                EmbeddingTable(names, sizes, ids, [*bags, *pooled], dim, event_columns=apart)
            )

    def each(self) -> list[EmbeddingTable]:
        """Return the tables, by rising width."""
        return [table for table in self.tables if isinstance(table, EmbeddingTable)]

    def forward(self, inputs: Inputs) -> Embedded:
        """Look up the vectors of all features."""
        found = [table(inputs) for table in self.each()]
        return Embedded(tuple(vectors for vectors, _ in found), tuple(rows for _, rows in found))
