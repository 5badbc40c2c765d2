"""Forward: scores of encoded rows, by threads that each compute whole blocks of rows.

A block's products are computed by one thread. So scores depend neither on how many threads there are
nor on the order in which they finish, and no thread waits for another within a layer, which costs most
where other processes share the cores.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import Batch
from recsys_mtl.network import Factored, MultiTaskModel, RowTensors
from recsys_mtl.network.ensemble import mean_logits, members_of
from recsys_mtl.network.factored import TABLE_BYTES
from recsys_mtl.network.model import SCORE_ROWS

Precision = Literal["float32", "bfloat16"]

# By process as well, because a forked child inherits executors whose threads did not survive.
_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Pending:
    """Scores that are being computed, block by block."""

    blocks: Sequence[Future[tuple[Tensor, ...]]]

    def scores(self) -> list[Tensor]:
        """Wait for them: on the CPU, one tensor per task and joint score."""
        found = [block.result() for block in self.blocks]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    def cancel(self) -> None:
        """Give up the blocks that have not begun, and wait for those that have."""
        for block in self.blocks:
            block.cancel()
        for block in self.blocks:
            if not block.cancelled():
                block.exception()


class Forward:
    """Compute scores in evaluation mode; any number of threads may call it.

    Parameters
    ----------
    model
        Trained.
    precision
        ``"bfloat16"`` computes features and sharing in half precision (autocast), heads in float32:
        they are small, and scores that were rounded to 3 digits would tie.
    parts
        Names of the features of each part of a batch. What pairs of a user or an item have in common is
        then computed once where it pays (`Factored`); in half precision it never does.
    num_pairs
        Rows of the whole run, where that is known: scores then depend on nothing but their batch.
    num_threads
        By default as many as the process has CPUs; 1 on a GPU.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        precision: Precision = "float32",
        parts: Sequence[Sequence[str]] = (),
        num_pairs: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.device = next(model.parameters()).device
        self._half = precision == "bfloat16"
        self._outputs = model.eval().outputs
        members = members_of(model)
        self._members = [_half_weights(one) if self._half else one for one in members]
        self._factored: list[Factored] = []
        if parts and not self._half:
            share = TABLE_BYTES // len(members)
            self._factored = [
                Factored(one, parts, num_pairs=num_pairs, table_bytes=share) for one in members
            ]
        self.num_threads = _threads(num_threads) if self.device.type == "cpu" else 1

    def start(self, batch: Batch) -> Pending:
        """Begin to score rows, `SCORE_ROWS` to a block; no rows make one empty block.

        With `parts`, one thread at a time may call it.
        """
        pool = _pool(self.num_threads)
        plans = [one.plan(batch) for one in self._factored] or [None] * len(self._members)
        rows = RowTensors(batch, self.device) if None in plans else None
        blocks = [
            plan or partial(self._logits, model, cast("RowTensors", rows))
            for model, plan in zip(self._members, plans, strict=True)
        ]
        starts = range(0, max(batch.num_rows, 1), SCORE_ROWS)
        return Pending([pool.submit(self._scores, blocks, start) for start in starts])

    @torch.inference_mode()
    def _scores(self, blocks: Sequence[Callable[[int], Tensor]], start: int) -> tuple[Tensor, ...]:
        logits = mean_logits(self._outputs, [block(start) for block in blocks])
        return tuple(scores.cpu() for scores in self._outputs(logits))

    def _logits(self, model: MultiTaskModel, rows: RowTensors, start: int) -> Tensor:
        stop = min(start + SCORE_ROWS, rows.num_rows)
        inputs = rows.take(torch.arange(start, stop, device=self.device))
        if not self._half:
            return cast("Tensor", model(inputs).logits_BZ)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            shared = model.sharing(model.features(model.embeddings(inputs), inputs))
        headed = model.heads(tuple(one.float() for one in shared.tasks))
        return cast("Tensor", headed.logits_BZ)


def _half_weights(model: MultiTaskModel) -> MultiTaskModel:
    """Return a model that shares the tables and has cast linear weights once, not at every block."""
    tables = model.embeddings
    made: MultiTaskModel = copy.deepcopy(model, {id(tables): tables}).eval()
    for module in (*made.features.modules(), *made.sharing.modules()):
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return made


def _threads(number: int | None) -> int:
    if number is not None:
        return number
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pool(num_threads: int) -> ThreadPoolExecutor:
    key = os.getpid(), num_threads
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = ThreadPoolExecutor(num_threads, "scoring", initializer=_alone)
        return _POOLS[key]


def _alone() -> None:
    """Have torch compute in this thread alone; others keep as many threads as they had."""
    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        # The number is this thread's own, but it also becomes that of threads to come.
        restore = threading.Thread(target=torch.set_num_threads, args=(before,))
        restore.start()
        restore.join()
