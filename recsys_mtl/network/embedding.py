"""Embedding tables: all features of one width in one matrix, looked up outside of autograd.

The graph begins at the looked-up vectors. Training differentiates down to them, and a row-wise
optimizer (`recsys_mtl.training.tables`) carries that gradient to the rows the batch touched: a step
costs the rows of the batch, not the rows of the table.

Where processes share the rows of the tables (`recsys_mtl.network.sharded`), a batch first fetches the
rows it needs, each once, and is looked up in those.

Shape letters: B rows, F one-id features, C lookups per row (one-id features, then list features), D
embedding dim, R table rows, S vectors of a batch, K ids looked up in a batch, U fetched rows, M ids of
a list column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_mtl.encoding import NUM_RESERVED, InputLayout
from recsys_mtl.network.id_dropout import IdDropout
from recsys_mtl.network.inputs import Inputs, ListInput
from recsys_mtl.network.sharded import WHOLE, Route, Shard

INIT_STD = 0.01
DRAWN_ROWS = 1 << 16
"""Rows whose initial values are drawn at a time, by processes that keep a share of them."""


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
    route
        Where processes share the rows: how the batch fetched those that it looked up. `rows_K` then
        numbers the fetched rows, until `Embeddings.exchange` has brought gradients to the owners.
    """

    rows_K: Tensor
    slots_K: Tensor
    weights_K: Tensor | None
    route: Route | None = None


@dataclass(frozen=True)
class _Lookups:
    """Rows of a matrix that a batch looks up: one-id columns, lists to be pooled, events."""

    ids_BF: Tensor
    lists: tuple[ListInput, ...]
    events: tuple[Tensor, ...]

    def rows_K(self) -> Tensor:
        """Return all rows, one after another."""
        found = [self.ids_BF.flatten(), *(one.values_M for one in self.lists), *self.events]
        return torch.cat(found) if len(found) > 1 else found[0]

    def at(self, rows_K: Tensor) -> _Lookups:
        """Return the same lookups of other rows, given in the order of `rows_K()`."""
        sizes = [one.values_M.numel() for one in self.lists]
        sizes += [one.numel() for one in self.events]
        ids, *others = torch.split(rows_K, [self.ids_BF.numel(), *sizes])
        lists = [
            ListInput(own, one.offsets_B, one.weights_M)
            for own, one in zip(others, self.lists, strict=False)
        ]
        events = tuple(others[len(self.lists) :])
        return _Lookups(ids.view(self.ids_BF.shape), tuple(lists), events)


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
    shard
        Which rows of the matrix this process holds.

    Attributes
    ----------
    weight_RD
        The rows held.
    all_rows
        Height of the matrix, whoever holds its rows.
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
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        ends = torch.tensor([0, *num_rows]).cumsum(0).tolist()
        self.bases = dict(zip(names, ends[:-1], strict=True))
        self.num_rows = dict(zip(names, num_rows, strict=True))
        self.dim = dim
        self.shard, self.all_rows = shard, ends[-1]
        self.num_lookups = len(id_columns) + len(list_columns)
        held_RD = torch.empty(shard.size(ends[-1]), dim)
        self.weight_RD = nn.Parameter(held_RD, requires_grad=False)
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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all vectors from a normal distribution of deviation `INIT_STD`.

        A process that holds some of the rows draws all, a few at a time: from the same random state
        its rows get the values that the whole matrix has there.
        """
        # torch fills memory by 16 numbers and redraws a shorter rest: no piece ends in one but the last
        edges = [*range(0, max(self.all_rows - 16, 1), DRAWN_ROWS), self.all_rows]
        for start, stop in pairwise(edges):
            held_XD = self.weight_RD[self.shard.places(start, stop)]
            if self.shard.world == 1:
                held_XD.normal_(std=INIT_STD)
            else:
                drawn_XD = held_XD.new_empty(stop - start, self.dim).normal_(std=INIT_STD)
                held_XD.copy_(self.shard.own(drawn_XD, start))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Touched]:
        """Return the looked-up vectors (S, D), cut off from the graph, and the rows touched."""
        lookups = self._lookups(inputs)
        if self.shard.world == 1:
            return _look_up(lookups, self.weight_RD), self._touched(lookups)
        route = self.shard.route(lookups.rows_K(), self.all_rows)
        fetched = lookups.at(route.places_K)
        touched = replace(self._touched(fetched), route=route)
        return _look_up(fetched, route.fetch(self.weight_RD)), touched

    def _lookups(self, inputs: Inputs) -> _Lookups:
        """Return which rows of the matrix a batch looks up."""
        ids_BF = inputs.ids_BF
        if len(self.id_positions) != ids_BF.shape[1]:
            ids_BF = ids_BF.index_select(1, self.id_columns)
        lists = []
        for position, base in self._lists:
            found = inputs.lists[position]
            values_M = found.values_M.to(torch.int64) + base
            weights_M = found.weights_M.to(self.weight_RD.dtype)
            lists.append(ListInput(values_M, found.offsets_B, weights_M))
        events = tuple(
            inputs.lists[position].values_M.to(torch.int64) + base
            for position, base in self._events
        )
        return _Lookups(ids_BF + self.id_bases_F, tuple(lists), events)

    def _touched(self, lookups: _Lookups) -> Touched:
        """Return which row went to which looked-up vector."""
        ids_BF = lookups.ids_BF
        num_rows, num_ids = ids_BF.shape
        if not self._lists and not self._events:
            slots_K = torch.arange(ids_BF.numel(), device=ids_BF.device)
            return Touched(lookups.rows_K(), slots_K, None)
        places_B = torch.arange(num_rows, device=ids_BF.device) * self.num_lookups
        first = torch.arange(num_ids, device=ids_BF.device)
        slots = [(places_B[:, None] + first).flatten()]
        weights = [torch.ones_like(slots[0], dtype=self.weight_RD.dtype)]
        for number, found in enumerate(lookups.lists):
            slots_B = places_B + num_ids + number
            count = found.values_M.numel()
            slots.append(torch.repeat_interleave(slots_B, found.lengths_B, output_size=count))
            weights.append(found.weights_M)
        taken = num_rows * self.num_lookups
        for values_M in lookups.events:
            slots.append(torch.arange(taken, taken + values_M.numel(), device=ids_BF.device))
            weights.append(torch.ones_like(values_M, dtype=self.weight_RD.dtype))
            taken += values_M.numel()
        return Touched(lookups.rows_K(), torch.cat(slots), torch.cat(weights))

    def split(self, vectors_SD: Tensor, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """Return the pooled vectors (B, C, D) and those of each event column, (M, D)."""
        sizes = [inputs.lists[position].values_M.numel() for position in self.event_positions]
        pooled, *events = torch.split(vectors_SD, [len(inputs) * self.num_lookups, *sizes])
        return pooled.view(len(inputs), self.num_lookups, self.dim), events

    @torch.no_grad()
    def fill_untrained(self, trained_R: Tensor) -> None:
        """Set reserved rows that no training row touched to the mean of their table's trained rows.

        An unknown id is then scored as an average one; a null or empty value that training rows
        never had, too. Collective where processes share the rows.

        Parameters
        ----------
        trained_R
            Whether training touched each row that this process holds.
        """
        for name, base in self.bases.items():
            learned = self.shard.places(base + NUM_RESERVED, base + self.num_rows[name])
            reserved = self.shard.places(base, base + NUM_RESERVED)
            mean_D = self.shard.mean(self.weight_RD[learned][trained_R[learned]])
            self.weight_RD[reserved][~trained_R[reserved]] = mean_D


def _look_up(lookups: _Lookups, weight_UD: Tensor) -> Tensor:
    """Return the vectors (S, D) of lookups in a matrix."""
    vectors_BFD = F.embedding(lookups.ids_BF, weight_UD)
    if not lookups.lists and not lookups.events:
        return vectors_BFD.flatten(0, 1)
    pooled = [
        F.embedding_bag(
            found.values_M,
            weight_UD,
            found.offsets_B,
            mode="sum",
            per_sample_weights=found.weights_M,
        )[:, None]
        for found in lookups.lists
    ]
    together_BCD = torch.cat([vectors_BFD, *pooled], dim=1) if pooled else vectors_BFD
    vectors_SD = together_BCD.flatten(0, 1)
    if not lookups.events:
        return vectors_SD
    return torch.cat([vectors_SD, *(F.embedding(one, weight_UD) for one in lookups.events)])


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
    shard
        Which rows of the tables this process holds. From the same random state all processes together
        hold the values of whole tables. Lookups are then collective: every process looks up, exchanges
        and fills equally often, with batches of no rows when its own have run out.
    """

    def __init__(
        self,
        layout: InputLayout,
        *,
        embedding_dim: int,
        num_views: int = 1,
        events: Sequence[int] = (),
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        self.shard = shard
        self.dropout = IdDropout(layout)
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
            lists = [*bags, *pooled]
            self.tables.append(EmbeddingTable(names, sizes, ids, lists, dim, apart, shard))

    def each(self) -> list[EmbeddingTable]:
        """Return the tables, by rising width."""
        return [table for table in self.tables if isinstance(table, EmbeddingTable)]

    def forward(self, inputs: Inputs) -> Embedded:
        """Look up the vectors of all features; in training, of unknown ids in place of some."""
        inputs = self.dropout(inputs)
        found = [table(inputs) for table in self.each()]
        return Embedded(tuple(vectors for vectors, _ in found), tuple(rows for _, rows in found))

    @torch.no_grad()
    def exchange(
        self, touched: Sequence[Touched], gradients: Sequence[Tensor]
    ) -> tuple[tuple[Touched, ...], tuple[Tensor, ...]]:
        """Bring the gradients of looked-up vectors to the processes that hold the rows.

        Whole tables keep what they are given.

        Parameters
        ----------
        touched, gradients
            Per table: what one batch looked up, and the gradient of its vectors, (S, D).

        Returns
        -------
        touched, gradients
            Per table: rows that this process holds, and a gradient for each, of all processes. A row
            that several of them looked up comes several times.
        """
        found = [_to_owners(*one) for one in zip(touched, gradients, strict=True)]
        return tuple(rows for rows, _ in found), tuple(gradient for _, gradient in found)

    def fill_untrained(self, trained: Sequence[Tensor]) -> None:
        """Do `EmbeddingTable.fill_untrained` for every table, given which of its rows were touched."""
        for table, trained_R in zip(self.each(), trained, strict=True):
            table.fill_untrained(trained_R)

    def most(self, count: int) -> int:
        """Return how often this process must look up if it wants to `count` times.

        Where processes share the rows that is the most that any of them wants to; else `count`.
        """
        tables = self.each()
        return self.shard.most(count, tables[0].weight_RD.device) if tables else count

    def gather(self, prefix: str = "") -> dict[str, Tensor] | None:
        """Return the whole tables as the state that unsharded ones load, on the CPU of process 0.

        Collective; others than process 0 get None. Each name begins with `prefix`.
        """
        found = [table.shard.gather(table.weight_RD, table.all_rows) for table in self.each()]
        if self.shard.rank != 0:
            return None
        return {
            f"{prefix}tables.{number}.weight_RD": whole_RD
            for number, whole_RD in enumerate(found)
            if whole_RD is not None
        }


def _to_owners(touched: Touched, gradient_SD: Tensor) -> tuple[Touched, Tensor]:
    """Merge gradients by fetched row and send each to the process that holds it."""
    route = touched.route
    if route is None:
        return touched, gradient_SD
    gradient_KD = gradient_SD[touched.slots_K]
    if touched.weights_K is not None:
        gradient_KD = gradient_KD * touched.weights_K[:, None]
    merged_UD = gradient_KD.new_zeros(sum(route.asked), gradient_KD.shape[1])
    merged_UD.index_add_(0, touched.rows_K, gradient_KD)
    given_GD = route.send(merged_UD)
    slots_G = torch.arange(route.rows_G.numel(), device=route.rows_G.device)
    return Touched(route.rows_G, slots_G, None), given_GD
