"""A step of several processes: rows of the tables dealt out, against DistributedDataParallel.

The model is that of ``benchmarks/training.py``; its 20 id columns look up one matrix of 5M rows of 16
numbers, each process has batches of 2048. Usage: ``torchrun --nproc-per-node 2
benchmarks/distributed.py``, with ``OMP_NUM_THREADS=1`` where processes share the cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks.measure import interleave, print_machine, print_table, times_faster
from benchmarks.peers import NUM_TASKS, PlainMMoE
from recsys_mtl.encoding import InputLayout, TableSize
from recsys_mtl.network import Inputs, MMoE, MultiTaskModel, Shard, Towers
from recsys_mtl.schema import Binary
from recsys_mtl.training import RowWiseAdagrad
from recsys_mtl.training.distributed import Processes, start_processes, sum_gradients

COLUMNS, ROWS_PER_TABLE, DIM, NUMBERS = 20, 250_000, 16, 8
BATCH, BATCHES, ROUNDS = 2048, 4, 9
LARGEST = 100_000_000
NUM_EXPERTS, EXPERT_DIMS, TOWER_DIM = 8, (256, 128), 64
BAR = 0.35


class Step:
    """Our step: gradients of dense weights summed, those of rows sent to the rows' owners."""

    def __init__(self, processes: Processes | None, rows: int = ROWS_PER_TABLE) -> None:
        names = tuple(f"id_{place}" for place in range(COLUMNS))
        tables = tuple(TableSize(name, rows, None) for name in names)
        self.processes = processes
        self.model = MultiTaskModel(
            InputLayout(tables, names, (), NUMBERS),
            [Binary(f"task_{number}", label=f"label_{number}") for number in range(NUM_TASKS)],
            sharing=MMoE(NUM_EXPERTS, expert_dims=EXPERT_DIMS),
            heads=Towers((TOWER_DIM,)),
            embedding_dim=DIM,
            shard=Shard() if processes is None else processes.shard,
        )
        self.dense = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.Adagrad(self.dense)
        self.tables = RowWiseAdagrad().build(self.model.embeddings.each())

    def run(self, inputs: Inputs, labels_BT: Tensor) -> None:
        """Take one step on the rows of this process."""
        embedded = self.model.embeddings(inputs)
        (vectors_SD,) = embedded.vectors
        vectors_SD.requires_grad_()
        logits_BT = self.model.from_embedded(embedded, inputs).logits_BZ
        self.optimizer.zero_grad()
        torch.autograd.backward(F.binary_cross_entropy_with_logits(logits_BT, labels_BT))
        sum_gradients(self.dense, self.processes)
        self.optimizer.step()
        if vectors_SD.grad is not None:
            self.tables.step(*self.model.embeddings.exchange(embedded.touched, [vectors_SD.grad]))


class PeerStep:
    """The network by hand in DistributedDataParallel, with a gradient for every table row or not."""

    def __init__(self, *, sparse: bool) -> None:
        plain = PlainMMoE(
            [ROWS_PER_TABLE] * COLUMNS,
            NUMBERS,
            dim=DIM,
            num_experts=NUM_EXPERTS,
            expert_dims=EXPERT_DIMS,
            tower_dim=TOWER_DIM,
        )
        # else torch warns that it does not check
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
        for table in plain.tables:
            if isinstance(table, nn.Embedding):
                table.sparse = sparse
        self.model = DistributedDataParallel(plain)
        self.optimizer = torch.optim.Adagrad(self.model.parameters())

    def run(self, inputs: Inputs, labels_BT: Tensor) -> None:
        """Take one step on the rows of this process."""
        logits_BT = self.model(inputs.ids_BF, inputs.dense_BN)
        self.optimizer.zero_grad()
        torch.autograd.backward(F.binary_cross_entropy_with_logits(logits_BT, labels_BT))
        self.optimizer.step()


def main() -> None:
    processes = start_processes("cpu")
    if processes is None:
        raise SystemExit("Start it with: torchrun --nproc-per-node 2 benchmarks/distributed.py")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", action="store_true", help="only ours, with 100M table rows")
    if parser.parse_args().largest:
        _largest(processes)
        return
    ours, alone = Step(processes), Step(None)
    batches = [
        _batch(seed) for seed in range(processes.rank, processes.world * BATCHES, processes.world)
    ]
    timings = interleave(
        {
            "recsys_mtl": _over(batches, ours.run),
            "one process alone": _over(batches, alone.run if processes.rank == 0 else _nothing),
            "DDP, sparse gradients": _over(batches, PeerStep(sparse=True).run),
            "DDP, dense gradients": _over(batches, PeerStep(sparse=False).run),
        },
        rounds=ROUNDS,
    )
    if processes.rank > 0:
        return
    print_machine("torch")
    dense = timings["DDP, dense gradients"]
    bars = {"recsys_mtl": f"<= {BAR}"}
    lines = [
        [
            name,
            f"{1e3 * found.wall_median:.1f}",
            f"{times_faster(dense.wall, found.wall):.3f}",
            f"{times_faster(dense.cpu, found.cpu):.3f}",
            bars.get(name, ""),
        ]
        for name, found in timings.items()
    ]
    title = f"a step of {processes.world} processes, {BATCH} rows each"
    print_table(title, ["way", "ms", "x clock of dense", "x CPU", "bar"], lines)
    one = timings["one process alone"]
    gain = processes.world * times_faster(timings["recsys_mtl"].wall, one.wall)
    print(
        f"rows/s of {processes.world} processes against one, a thread each: {gain:.2f}x (bar 1.4x)"
    )
    held, total = (step.model.embeddings.each()[0].weight_RD.nbytes for step in (ours, alone))
    print(f"table: {held / 1e6:.0f} MB in each process, of {total / 1e6:.0f} MB")


def _largest(processes: Processes) -> None:
    """Take steps with a table that a process holds only a share of, beside one of 5M rows."""
    rows = LARGEST // COLUMNS
    large, small = Step(processes, rows), Step(processes)
    batches = [_batch(seed, rows) for seed in range(processes.rank, ROUNDS + 1, processes.world)]
    few = [_batch(seed) for seed in range(processes.rank, ROUNDS + 1, processes.world)]
    timings = interleave(
        {"100M rows": _over(batches, large.run), "5M rows": _over(few, small.run)}, rounds=ROUNDS
    )
    if processes.rank == 0:
        growth = times_faster(timings["5M rows"].wall, timings["100M rows"].wall)
        held = large.model.embeddings.each()[0].weight_RD.nbytes
        print(f"a step with 100M rows against 5M: {growth:.2f}x; {held / 1e6:.0f} MB a process")


def _nothing(inputs: Inputs, labels_BT: Tensor) -> None:
    """Leave the machine to the other process."""


def _batch(seed: int, rows: int = ROWS_PER_TABLE) -> tuple[Inputs, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids_BF = torch.randint(rows, (BATCH, COLUMNS), generator=draw)
    labels_BT = torch.randint(2, (BATCH, NUM_TASKS), generator=draw).float()
    return Inputs(ids_BF, (), torch.randn(BATCH, NUMBERS, generator=draw)), labels_BT


def _over(
    batches: list[tuple[Inputs, Tensor]], run: Callable[[Inputs, Tensor], None]
) -> Callable[[], None]:
    """Return a function that takes a step on every batch in turn, once all processes are there."""
    number = 0

    def step() -> None:
        nonlocal number
        dist.barrier()
        run(*batches[number % len(batches)])
        number += 1

    return step


if __name__ == "__main__":
    main()
