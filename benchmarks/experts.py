"""Blocks of experts against one dense MLP of equal FLOPs, forward and backward.

The block is PERFORMANCE's: batch 4096, input 328, 8 experts [256, 128], 3 tasks; alone, and with towers
[64] behind it on both sides. Usage: ``make bench``, or ``python benchmarks/experts.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks.measure import Timing, interleave, print_machine, print_table, times_faster
from recsys_mtl.network import MMoE
from recsys_mtl.network.heads.towers import Tower
from recsys_mtl.network.layers import MLP, Gate, gate_all, mix
from recsys_mtl.network.sharing import CGC, Columns, OMoE, Shared, Sharing

BATCH, INPUT_DIM = 4096, 328
NUM_EXPERTS, (FIRST_DIM, LAST_DIM) = 8, (256, 128)
TOWER_DIM = 64
TASKS = ("click", "like", "rating")
BAR = 1.5


class Ours(nn.Module):
    """A sharing structure of the package."""

    def __init__(self, sharing: Sharing) -> None:
        super().__init__()
        self.sharing = sharing.build(INPUT_DIM, TASKS, Columns())

    def forward(self, x_BI: Tensor) -> Sequence[Tensor]:
        """Return the tasks' representations."""
        shared: Shared = self.sharing(x_BI[:, None])
        return shared.tasks


class RunningSums(nn.Module):
    """The same MMoE with a running sum for each gate instead of one product for all."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            MLP(INPUT_DIM, (FIRST_DIM, LAST_DIM)) for _ in range(NUM_EXPERTS)
        )
        self.gates = nn.ModuleList(Gate(INPUT_DIM, NUM_EXPERTS) for _ in TASKS)

    def forward(self, x_BI: Tensor) -> Sequence[Tensor]:
        """Return the tasks' mixtures."""
        experts = [expert(x_BI) for expert in self.experts]
        gates_BTE = gate_all(self.gates, x_BI)
        return [mix(experts, gate_BE) for gate_BE in gates_BTE.unbind(1)]


class FusedFirst(nn.Module):
    """The first layers of all experts as one product; slices of its output go on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MLP(INPUT_DIM, (NUM_EXPERTS * FIRST_DIM,))
        self.last = nn.ModuleList(MLP(FIRST_DIM, (LAST_DIM,)) for _ in range(NUM_EXPERTS))
        self.gates = nn.Linear(INPUT_DIM, len(TASKS) * NUM_EXPERTS, bias=False)

    def forward(self, x_BI: Tensor) -> Sequence[Tensor]:
        """Return the tasks' mixtures."""
        slices = self.first(x_BI).chunk(NUM_EXPERTS, dim=1)
        experts = [layer(h_BH) for layer, h_BH in zip(self.last, slices, strict=True)]
        return _mixed(experts, self.gates(x_BI))


class Batched(nn.Module):
    """Both layers of all experts as batched products, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(NUM_EXPERTS, INPUT_DIM, FIRST_DIM) / INPUT_DIM**0.5)
        self.first_bias = nn.Parameter(torch.zeros(NUM_EXPERTS, 1, FIRST_DIM))
        self.last = nn.Parameter(torch.randn(NUM_EXPERTS, FIRST_DIM, LAST_DIM) / FIRST_DIM**0.5)
        self.last_bias = nn.Parameter(torch.zeros(NUM_EXPERTS, 1, LAST_DIM))
        self.gates = nn.Linear(INPUT_DIM, len(TASKS) * NUM_EXPERTS, bias=False)

    def forward(self, x_BI: Tensor) -> Sequence[Tensor]:
        """Return the tasks' mixtures."""
        x_EBI = x_BI.expand(NUM_EXPERTS, -1, -1)
        h_EBH = torch.baddbmm(self.first_bias, x_EBI, self.first).relu_()
        h_EBH = torch.baddbmm(self.last_bias, h_EBH, self.last).relu_()
        return _mixed(h_EBH.unbind(0), self.gates(x_BI))


class Dense(nn.Module):
    """One MLP with as many multiplications as the experts; tasks share its output."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(INPUT_DIM, (NUM_EXPERTS * FIRST_DIM, LAST_DIM))

    def forward(self, x_BI: Tensor) -> Sequence[Tensor]:
        """Return one representation for all tasks."""
        return (self.mlp(x_BI),) * len(TASKS)


class Step(nn.Module):
    """Forward and backward of a block, with towers or a plain sum behind it."""

    def __init__(self, block: nn.Module, x_BI: Tensor, *, towers: bool, bfloat16: bool) -> None:
        super().__init__()
        self.block, self.x_BI, self.narrow = block, x_BI, bfloat16
        self.towers = nn.ModuleList(Tower(LAST_DIM, (TOWER_DIM,), 1) for _ in TASKS if towers)

    def run(self) -> None:
        """Take one step; gradients go to the input too, where embeddings are."""
        self.zero_grad(set_to_none=True)
        x_BI = self.x_BI.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.narrow):
            tasks = self.block(x_BI)
            if self.towers:
                tasks = [tower(task) for tower, task in zip(self.towers, tasks, strict=True)]
        torch.autograd.backward(torch.stack([task.float().sum() for task in tasks]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time blocks of experts.")
    parser.add_argument("--threads", type=int, help="threads of torch; on a busy machine take 1")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each table")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print_machine("torch", "numpy")
    print(f"torch threads: {torch.get_num_threads()}")
    for bfloat16 in (False, True):
        for towers in (False, True):
            _race(towers=towers, bfloat16=bfloat16, rounds=arguments.rounds)


def _race(*, towers: bool, bfloat16: bool, rounds: int) -> None:
    torch.manual_seed(0)
    x_BI = torch.randn(BATCH, INPUT_DIM)
    dims = (FIRST_DIM, LAST_DIM)
    blocks: dict[str, nn.Module] = {
        "dense MLP of equal FLOPs": Dense(),
        "MMoE": Ours(MMoE(NUM_EXPERTS, expert_dims=dims)),
        "OMoE": Ours(OMoE(NUM_EXPERTS, expert_dims=dims)),
        "CGC, 2 shared and 2 x 3 own experts": Ours(CGC(2, 2, expert_dims=dims)),
        "MMoE by running sums": RunningSums(),
        "MMoE, first layers as one product": FusedFirst(),
        "MMoE by batched products": Batched(),
    }
    timings = interleave(
        {
            name: Step(block, x_BI, towers=towers, bfloat16=bfloat16).run
            for name, block in blocks.items()
        },
        rounds=rounds,
    )
    kind = "bfloat16 autocast" if bfloat16 else "float32"
    _print(f"8 experts, {kind}{', with towers' if towers else ''}", timings)


def _print(title: str, timings: dict[str, Timing]) -> None:
    dense = timings["dense MLP of equal FLOPs"]
    rows = [
        [
            name,
            f"{1e3 * found.cpu_median:.1f}",
            f"{times_faster(dense.cpu, found.cpu):.2f}",
            f"{times_faster(dense.wall, found.wall):.2f}",
            f"<= {BAR}" if name == "MMoE" else "",
        ]
        for name, found in timings.items()
    ]
    print_table(title, ["block", "CPU ms", "x dense, CPU", "x dense, clock", "bar"], rows)


def _mixed(experts: Sequence[Tensor], logits_BX: Tensor) -> Sequence[Tensor]:
    logits_BTE = logits_BX.view(-1, len(TASKS), NUM_EXPERTS)
    gates_BTE = torch.softmax(logits_BTE, dim=-1, dtype=torch.float32)
    experts_BEH = torch.stack(list(experts), dim=1)
    return torch.bmm(gates_BTE.to(experts_BEH.dtype), experts_BEH).unbind(1)


if __name__ == "__main__":
    main()
