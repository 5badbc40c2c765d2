"""Embedding tables: all features of one width in one matrix, looked up outside of autograd.

The graph begins at the pooled vectors. Training differentiates down to them, and a row-wise
optimizer (`recsys_mtl.training.tables`) carries that gradient to the rows the batch touched: a step
costs the rows of the batch, not the rows of the table.

Shape letters: B rows, C lookups per row (one-id features, then list features), D embedding dim,
R table rows, K ids looked up in a batch.
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
        Row of the pooled matrix, seen as (B * C, D), that each contributed to.
    weights_K
        Factor of each contribution; None means 1.
    """

    rows_K: Tensor
    slots_K: Tensor
    weights_K: Tensor | None


@dataclass(frozen=True)
class Embedded:
    """Pooled vectors of a batch, one tensor (B, C, D) per table width, and the rows behind them."""

    pooled: tuple[Tensor, ...]
    touched: tuple[Touched, ...]


class EmbeddingTable(nn.Module):
    """All tables of one width, one under the other in a single matrix.

    Parameters
    ----------
    names, num_rows
        The tables.
    id_columns, list_columns
        Which lookups of a batch are its own: (position, table name).
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
    ) -> None:
        super().__init__()
        ends = torch.tensor([0, *num_rows]).cumsum(0).tolist()
        self.bases = dict(zip(names, ends[:-1], strict=True))
        self.num_rows = dict(zip(names, num_rows, strict=True))
        self.dim = dim
        self.num_lookups = len(id_columns) + len(list_columns)
        self.weight_RD = nn.Parameter(torch.empty(ends[-1], dim), requires_grad=False)
        self._all_ids = [position for position, _ in id_columns]
        self._lists = [(position, self.bases[name]) for position, name in list_columns]
        bases = torch.tensor([self.bases[name] for _, name in id_columns], dtype=torch.int64)
        self.register_buffer("id_columns", torch.tensor(self._all_ids, dtype=torch.int64), False)
        self.register_buffer("id_bases_F", bases, False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all vectors from a normal distribution of deviation `INIT_STD`."""
        nn.init.normal_(self.weight_RD, std=INIT_STD)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Touched]:
        """Return pooled vectors (B, C, D), cut off from the graph, and the rows touched."""
        num_rows = len(inputs)
        ids_BF = inputs.ids_BF
        if len(self._all_ids) != ids_BF.shape[1]:
            ids_BF = ids_BF.index_select(1, self.id_columns)
        ids_BF = ids_BF + self.id_bases_F
        vectors_BFD = F.embedding(ids_BF, self.weight_RD)
        if not self._lists:
            slots_K = torch.arange(ids_BF.numel(), device=ids_BF.device)
            return vectors_BFD, Touched(ids_BF.flatten(), slots_K, None)
        pooled, rows, weights = [vectors_BFD], [ids_BF.flatten()], []
        places_B = torch.arange(num_rows, device=ids_BF.device) * self.num_lookups
        first = torch.arange(ids_BF.shape[1], device=ids_BF.device)
        slots = [(places_B[:, None] + first).flatten()]
        weights.append(torch.ones_like(slots[0], dtype=inputs.dense_BN.dtype))
        for number, (position, base) in enumerate(self._lists):
            found = inputs.lists[position]
            values_M = found.values_M.to(torch.int64) + base
            pooled_BD = F.embedding_bag(
                values_M,
                self.weight_RD,
                found.offsets_B,
                mode="sum",
                per_sample_weights=found.weights_M.to(self.weight_RD.dtype),
            )
            pooled.append(pooled_BD[:, None])
            ends_B = torch.cat(
                [found.offsets_B[1:], found.offsets_B.new_tensor([values_M.numel()])]
            )
            slots_B = places_B + ids_BF.shape[1] + number
            slots.append(torch.repeat_interleave(slots_B, (ends_B - found.offsets_B)[:num_rows]))
            rows.append(values_M)
            weights.append(found.weights_M)
        touched = Touched(torch.cat(rows), torch.cat(slots), torch.cat(weights))
        return torch.cat(pooled, dim=1), touched

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
    """

    def __init__(self, layout: InputLayout, *, embedding_dim: int) -> None:
        super().__init__()
        width = {table.name: table.dim or embedding_dim for table in layout.tables}
        size = {table.name: table.num_rows for table in layout.tables}
        self.tables = nn.ModuleList()
        for dim in sorted(set(width.values())):
            names = [name for name in width if width[name] == dim]
            ids = [(i, name) for i, name in enumerate(layout.id_tables) if width[name] == dim]
            lists = [(i, name) for i, name in enumerate(layout.list_tables) if width[name] == dim]
            self.tables.append(EmbeddingTable(names, [size[n] for n in names], ids, lists, dim))

    @property
    def output_dim(self) -> int:
        """Width of all pooled vectors side by side."""
        return sum(table.num_lookups * table.dim for table in self.each())

    def each(self) -> list[EmbeddingTable]:
        """Return the tables, by rising width."""
        return [table for table in self.tables if isinstance(table, EmbeddingTable)]

    def forward(self, inputs: Inputs) -> Embedded:
        """Look up and pool the vectors of all features."""
        found = [table(inputs) for table in self.each()]
        return Embedded(tuple(pooled for pooled, _ in found), tuple(rows for _, rows in found))
