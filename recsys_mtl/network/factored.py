"""Factored: score pairs, with the first layers' part of each user and each item computed once.

The layers that read the input of sharing are linear, ``x W^T + b``, and x is the features of the user,
the item and the context side by side. So the product is a sum over these parts, and the summand of a
user is the same in all pairs of that user. It is computed once for each row of a side table and kept;
a pair looks its summands up and adds them. What is not kept in a side table is multiplied pair by pair.

Shape letters: B rows, P parts kept in tables, I input width, H outputs of a first layer, R table rows, Z
logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.encoding import Batch, Block, Part, Ragged
from recsys_mtl.network.inputs import RowTensors
from recsys_mtl.network.layers import FirstLinear
from recsys_mtl.network.model import SCORE_ROWS, MultiTaskModel, predict_logits

TABLE_BYTES = 1 << 29
"""Most memory for the summands of users and items."""

GATHER_COLUMNS = 16
"""Columns of the input whose product costs as much as to look a summand up, with a margin of 2.

Measured on one core in float32: a look-up of one summand took as long as the product of 6 to 8 columns.
Both grow with the number of outputs, so these do not matter.
"""

FILL_ROWS = 64
"""Rows of a side table whose summands are computed together."""

_Places = npt.NDArray[np.int64]


@dataclass
class _Kept:
    """Summands of one part, in rows from `base` on of the tables.

    Parameters
    ----------
    block
        Encoded features, one row for each summand.
    base
        Row of the tables at which the part's begin.
    passing
        Whether the block is the batch's own, not that of a whole side table.
    done
        Which runs of `FILL_ROWS` summands have been computed.
    skipped
        Pairs scored without them so far.
    """

    block: Block
    base: int
    passing: bool
    done: npt.NDArray[np.bool_]
    skipped: int = 0


class Factored:
    """Score encoded rows, using what rows of side tables have in common where that pays.

    Scores equal those of `score_rows` up to the order of sums in float32 (1e-6). They are those of
    `score_rows` where the model does not allow more (histories that look at the item, features that
    interact, several views, a sharing structure that names no `first_linears`), and under autocast
    and on other devices than CPUs, where products cost too little to be saved.

    A part is kept if the products saved exceed those it costs: ``pairs * (width - GATHER_COLUMNS) > width
    * rows to be computed``. Of a run whose length is known these are all its pairs and all rows of the
    side table; else the pairs since the table was first met, and the rows still missing. With `num_pairs`
    scores so depend on nothing but the batch they are in. Tables are kept until other side tables come,
    so give it the batches of one run. One thread at a time may ask it for plans; any may follow them.

    Parameters
    ----------
    model
        In evaluation mode.
    parts
        Names of the features of each part of a batch, in order.
    num_pairs
        Pairs of the whole run, where that is known.
    table_bytes
        Most memory for summands. Where all rows of the side tables need more, only those that a batch
        refers to are computed, and forgotten with the batch.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        parts: Sequence[Sequence[str]],
        *,
        num_pairs: int | None = None,
        table_bytes: int = TABLE_BYTES,
    ) -> None:
        self._model = model
        self._num_pairs = num_pairs
        self._device = next(model.parameters()).device
        self._columns = [_columns(model, names) for names in parts]
        self._layers = _first_linears(model, sum(map(len, self._columns)))
        filled = [number for number, columns in enumerate(self._columns) if columns]
        self._with_bias = filled[0] if filled else None
        outputs = sum(layer.weight_HI.shape[0] for layer in self._layers)
        each = outputs * next(model.parameters()).element_size()
        self._capacity = table_bytes // each if each else 0
        self._kept: dict[int, _Kept] = {}
        self._tables: list[Tensor] = []

    def score(self, batch: Batch) -> list[Tensor]:
        """Do what `score_rows` does."""
        with torch.inference_mode():
            return [scores.cpu() for scores in self._model.outputs(self.logits(batch))]

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (n, Z) of encoded rows."""
        block = self.plan(batch)
        if block is None:
            return predict_logits(self._model, RowTensors(batch, self._device))
        return torch.cat([block(start) for start in range(0, batch.num_rows, SCORE_ROWS)])

    @torch.inference_mode()
    def plan(self, batch: Batch) -> Callable[[int], Tensor] | None:
        """Compute what the pairs of a batch have in common.

        Returns
        -------
        block
            Gives the logits of up to `SCORE_ROWS` rows from the one with that number on, in inference
            mode and by any thread. None where nothing is gained: see the class.
        """
        placed = [number for number, part in enumerate(batch.parts) if part.rows is not None]
        other = self._device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if not self._layers or not placed or other or batch.num_rows == 0:
            return None
        batch = self._meet(batch, placed)
        chosen = [number for number in self._kept if self._pays(number, batch)]
        if not chosen:
            return None
        for number in chosen:
            self._fill(number, batch)
        return self._from_tables(batch, chosen)

    def _meet(self, batch: Batch, placed: Sequence[int]) -> Batch:
        """Keep room for the side tables of a batch, whole or those of their rows that it refers to."""
        blocks = {number: batch.parts[number].block for number in placed}
        passing = sum(map(len, blocks.values())) > self._capacity
        if passing:
            batch = replace(batch, parts=tuple(map(_narrow, batch.parts)))
            blocks, room = {}, self._capacity
            for number in sorted(placed, key=lambda one: len(batch.parts[one].block)):
                block = batch.parts[number].block
                if len(block) <= room:
                    blocks[number], room = block, room - len(block)
        known = {number: kept.block for number, kept in self._kept.items()}
        if known.keys() != blocks.keys() or any(known[n] is not blocks[n] for n in blocks):
            self._kept, self._tables, base = {}, [], 0
            for number, block in blocks.items():
                done = np.zeros(-(-len(block) // FILL_ROWS), np.bool_)
                self._kept[number] = _Kept(block, base, passing, done)
                base += len(block)
        return batch

    def _pays(self, number: int, batch: Batch) -> bool:
        """Tell whether to use the summands of a part; see the class."""
        kept, width = self._kept[number], len(self._columns[number])
        if width <= GATHER_COLUMNS:
            return False
        if self._num_pairs is None:
            kept.skipped += batch.num_rows
            pairs, rows = kept.skipped, self._missing(number, batch).size * FILL_ROWS
        else:
            pairs = batch.num_rows if kept.passing else self._num_pairs
            rows = len(kept.block)
        pays = pairs * (width - GATHER_COLUMNS) > width * min(rows, len(kept.block))
        if pays:
            kept.skipped = 0
        return pays

    def _missing(self, number: int, batch: Batch) -> _Places:
        """Return the runs of `FILL_ROWS` rows that a batch refers to and that are not computed yet."""
        kept, rows = self._kept[number], batch.parts[number].rows
        used = np.zeros(len(kept.done), np.bool_)
        if rows is not None:
            used[rows // FILL_ROWS] = True
        return np.flatnonzero(used & ~kept.done)

    def _fill(self, number: int, batch: Batch) -> None:
        """Compute the summands that a batch needs, always in the same runs, so that no bit can differ."""
        kept = self._kept[number]
        if not self._tables:
            rows = sum(len(one.block) for one in self._kept.values())
            # memory is taken up where it is written to
            self._tables = [_empty(layer.weight_HI, rows) for layer in self._layers]
        layers = self._sliced([number])
        for run in self._missing(number, batch):
            places = np.arange(run * FILL_ROWS, min((run + 1) * FILL_ROWS, len(kept.block)))
            own = [_absent(part.block, places.size) for part in batch.parts]
            own[number] = Part(kept.block.take(places))
            found = RowTensors(_alone(batch, own, places.size), self._device)
            x_BI = self._input(found, 0)[:, self._columns[number]]
            lines = slice(kept.base + int(places[0]), kept.base + int(places[-1]) + 1)
            for table_RH, layer in zip(self._tables, layers, strict=True):
                table_RH[lines] = F.linear(x_BI, layer.weight_HI, layer.bias_H)
            kept.done[run] = True

    def _from_tables(self, batch: Batch, chosen: Sequence[int]) -> Callable[[int], Tensor]:
        """Return what gives the logits of pairs whose chosen parts are in the tables."""
        places_PB = [
            torch.from_numpy(rows + self._kept[number].base)
            for number in chosen
            if (rows := batch.parts[number].rows) is not None
        ]
        places_BP = torch.stack(places_PB, dim=1).to(self._device)
        rest = [number for number in range(len(batch.parts)) if number not in chosen]
        columns = [place for number in rest for place in self._columns[number]]
        layers = self._sliced(rest) if columns else []
        parts = [
            _absent(part.block, batch.num_rows) if number in chosen else part
            for number, part in enumerate(batch.parts)
        ]
        given = RowTensors(_alone(batch, parts, batch.num_rows), self._device)
        tables = self._tables  # other side tables bring others

        def block(start: int) -> Tensor:
            places = places_BP[start : start + SCORE_ROWS]
            x_BI = self._input(given, start)[:, columns] if columns else None
            shared = self._model.sharing.from_linears(_sums(tables, places, x_BI, layers))
            logits_BZ: Tensor = self._model.heads(shared.tasks).logits_BZ
            return logits_BZ

        return block

    def _input(self, rows: RowTensors, start: int) -> Tensor:
        """Return the input of sharing of up to `SCORE_ROWS` rows from one on."""
        stop = min(start + SCORE_ROWS, rows.num_rows)
        inputs = rows.take(torch.arange(start, stop, device=self._device))
        x_BVI: Tensor = self._model.features(self._model.embeddings(inputs), inputs)
        return x_BVI[:, 0]

    def _sliced(self, parts: Sequence[int]) -> list[FirstLinear]:
        """Return the layers' part that reads these parts; the bias goes with the first that has any."""
        columns = [place for number in parts for place in self._columns[number]]
        return [
            FirstLinear(
                layer.weight_HI[:, columns], layer.bias_H if self._with_bias in parts else None
            )
            for layer in self._layers
        ]


def _sums(
    tables: Sequence[Tensor],
    places_BP: Tensor,
    x_BI: Tensor | None,
    layers: Sequence[FirstLinear],
) -> Iterator[Tensor]:
    """Yield the output of each first layer: summands looked up, and the product of the rest."""
    for number, table_RH in enumerate(tables):
        sum_BH = F.embedding_bag(places_BP, table_RH, mode="sum")
        if x_BI is not None:
            layer = layers[number]
            sum_BH.addmm_(x_BI, layer.weight_HI.T)
            if layer.bias_H is not None:
                sum_BH += layer.bias_H
        yield sum_BH


def _columns(model: MultiTaskModel, names: Sequence[str]) -> list[int]:
    """Return where the numbers of these features lie in the input, none where that is not known."""
    known = model.features.columns.slices
    return model.features.columns.of(names) if all(name in known for name in names) else []


def _first_linears(model: MultiTaskModel, num_columns: int) -> tuple[FirstLinear, ...]:
    """Return the first layers of a model whose input is a sum over features; none of another."""
    whole = num_columns == model.features.output_dim and model.embeddings.shard.world == 1
    if not (whole and model.features.apart):
        return ()
    found = model.sharing.first_linears()
    return tuple(
        FirstLinear(
            layer.weight_HI.detach(), None if layer.bias_H is None else layer.bias_H.detach()
        )
        for layer in found
    )


def _narrow(part: Part) -> Part:
    """Return a part whose block holds only rows that are referred to."""
    if part.rows is None:
        return part
    used, places = np.unique(part.rows, return_inverse=True)
    return Part(part.block.take(used), places)


def _absent(block: Block, num_rows: int) -> Part:
    """Return so many rows of nulls for a part whose columns are not looked at."""
    none = Ragged(np.zeros(0, np.int32), np.zeros(2, np.int64), np.zeros(0, np.float32))
    one = Block(
        np.zeros((1, block.ids.shape[1]), np.int32),
        (none,) * len(block.lists),
        np.zeros((1, block.dense.shape[1]), np.float32),
    )
    return Part(one, np.zeros(num_rows, np.int64))


def _alone(batch: Batch, parts: Sequence[Part], num_rows: int) -> Batch:
    """Return features of a batch without its keys."""
    return replace(batch, num_rows=num_rows, parts=tuple(parts), keys=pl.DataFrame())


def _empty(weight_HI: Tensor, rows: int) -> Tensor:
    return weight_HI.new_empty(rows, weight_HI.shape[0])
