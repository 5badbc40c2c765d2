"""What each balance costs over the plain sum of losses, and torchjd's full Jacobian beside it.

Two models on one table of 20 id columns and 8 numbers, 3 tasks: PERFORMANCE's (MMoE of 8 experts
[256, 128], batches of 4096) and a smaller one (4 experts [128, 64], batches of 1024), in which what
does not grow with the network weighs more. Usage: ``make bench``, or ``python benchmarks/balancing.py``.

The full Jacobian is taken by `torchjd.autojac` of the same network written by hand, with dense
`nn.Embedding` tables and dense Adam: torchjd knows no sparse gradients.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks import table
from benchmarks.measure import interleave, optional, print_machine, print_table, times_faster
from benchmarks.peers import PlainMMoE
from recsys_mtl.encoding import Encoder, InputLayout
from recsys_mtl.network import Inputs, MMoE, MultiTaskModel, RowTensors, Targets, Towers
from recsys_mtl.schema import Schema
from recsys_mtl.spec import Spec
from recsys_mtl.training import TrainConfig, task_losses
from recsys_mtl.training.balancing import Balance, Balancer, Boundary, PCGrad

ROWS = 100_000
ROUNDS = 7
DIM, TOWER_DIM = 16, 64
CPU = torch.device("cpu")
LOSS_KINDS = ("uncertainty", "dwa", "famo", "random")
LOSS_BAR, GRADIENT_BAR = 1.15, 2.5


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    num_experts: int
    expert_dims: tuple[int, int]
    batch: int


SIZES = (Size(8, (256, 128), 4096), Size(4, (128, 64), 1024))


class Step:
    """The trainer's step under a balance, without history."""

    def __init__(self, model: MultiTaskModel, schema: Schema, balance: Balance) -> None:
        self.model, self.schema = model.train(), schema
        config = TrainConfig()
        self.dense = tuple(one for one in model.parameters() if one.requires_grad)
        self.optimizer = config.optimizer.build(self.dense)
        self.table_optimizer = config.table_optimizer.build(model.embeddings.each())
        self.balancer: Balancer = balance.build(schema.tasks, seed=0, device="cpu")

    def run(self, inputs: Inputs, targets: Targets) -> None:
        """Take one step."""
        outputs = self.model.outputs
        embedded = self.model.embeddings(inputs)
        for vectors_SD in embedded.vectors:
            vectors_SD.requires_grad_()
        headed = self.model.from_embedded(embedded, inputs).headed
        losses_T = task_losses(
            headed, targets, self.schema.tasks, outputs.mean_T, outputs.std_T, self.model.heads
        ).means_T
        self.optimizer.zero_grad(set_to_none=True)
        present_T = targets.weights_BT.gt(0).any(dim=0)
        self.balancer.backward(losses_T, present_T, Boundary(embedded.vectors, self.dense))
        self.optimizer.step()
        gradients = [one.grad for one in embedded.vectors if one.grad is not None]
        self.table_optimizer.step(embedded.touched, gradients)


class PlainStep:
    """A step of the network written by hand, all tables dense; by torchjd where it is given."""

    def __init__(self, model: PlainMMoE, autojac: Any = None, aggregator: Any = None) -> None:
        self.model, self.autojac, self.aggregator = model, autojac, aggregator
        self.optimizer = torch.optim.Adam(model.parameters())

    def run(self, inputs: Inputs, targets: Targets) -> None:
        """Take one step."""
        logits_BT = self.model(inputs.ids_BF, inputs.dense_BN)
        labels_BT, weights_B = targets.labels_BT, targets.weights_BT[:, 2]
        errors_B = (logits_BT[:, 2] - labels_BT[:, 2]).square() * weights_B
        losses = [
            F.binary_cross_entropy_with_logits(logits_BT[:, 0], labels_BT[:, 0]),
            F.binary_cross_entropy_with_logits(logits_BT[:, 1], labels_BT[:, 1]),
            errors_B.sum() / weights_B.sum().clamp(min=1),
        ]
        self.optimizer.zero_grad()
        if self.autojac is None:
            torch.autograd.backward(losses[0] + losses[1] + losses[2])
        else:
            self.autojac.backward(losses, parallel_chunk_size=1)
            self.autojac.jac_to_grad(self.model.parameters(), self.aggregator)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time balances against the plain sum.")
    parser.add_argument("--threads", type=int, help="threads of torch; on a busy machine take 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print_machine("torch", "numpy")
    print(f"torch threads: {torch.get_num_threads()}")
    schema = table.schema()
    encoder = Encoder(schema)
    rows = RowTensors(encoder.fit_encode(table.impressions(ROWS)), CPU)
    print(f"rows of all tables: {sum(one.num_rows for one in encoder.layout.tables):,}")
    for size in SIZES:
        _race(size, schema, encoder.layout, rows, rounds=arguments.rounds)


def _race(
    size: Size, schema: Schema, layout: InputLayout, rows: RowTensors, *, rounds: int
) -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(
        layout,
        schema.tasks,
        sharing=MMoE(size.num_experts, expert_dims=size.expert_dims),
        heads=Towers((TOWER_DIM,)),
        embedding_dim=DIM,
    )
    kinds = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Balance))
    specs = {kind: Balance.from_dict({"kind": kind} | _window(kind)) for kind in kinds}
    # pcgrad as it is offered, at vectors and parameters, and at one of them alone
    specs["pcgrad at embeddings"] = PCGrad(measured_at="embeddings")
    specs["pcgrad at dense"] = PCGrad(measured_at="dense")
    plain = specs.pop("fixed")
    contenders = {"fixed": _over(Step(model, schema, plain).run, rows, size.batch)}
    for name, balance in specs.items():
        contenders[name] = _over(Step(model, schema, balance).run, rows, size.batch)
    bars = {kind: f"<= {LOSS_BAR if kind in LOSS_KINDS else GRADIENT_BAR}" for kind in specs}
    contenders |= _by_hand(size, layout, rows)
    timings = interleave(contenders, rounds=rounds)
    first = timings["fixed"]
    lines = [
        [
            name,
            f"{1e3 * found.wall_median:.1f}",
            f"{times_faster(first.wall, found.wall):.2f}",
            f"{times_faster(first.cpu, found.cpu):.2f}",
            bars.get(name, ""),
        ]
        for name, found in timings.items()
    ]
    experts = f"{size.num_experts} experts {list(size.expert_dims)}, batch {size.batch}"
    print_table(f"a step, {experts}", ["balance", "ms", "x clock", "x CPU", "bar"], lines)


def _by_hand(size: Size, layout: InputLayout, rows: RowTensors) -> dict[str, Callable[[], None]]:
    """Return steps of the network written by hand: the plain sum, and torchjd if it is there."""
    model = PlainMMoE(
        [one.num_rows for one in layout.tables],
        layout.dense_dim,
        dim=DIM,
        num_experts=size.num_experts,
        expert_dims=size.expert_dims,
        tower_dim=TOWER_DIM,
    )
    steps = {"by hand, dense tables, plain sum": PlainStep(model)}
    autojac = optional("torchjd.autojac", "torchjd's full Jacobian")
    aggregation = optional("torchjd.aggregation", "torchjd's full Jacobian")
    if autojac is not None and aggregation is not None:
        theirs = PlainStep(model, autojac, aggregation.PCGrad())
        steps["by hand, torchjd's full Jacobian, pcgrad"] = theirs
    return {name: _over(step.run, rows, size.batch) for name, step in steps.items()}


def _window(kind: str) -> dict[str, int]:
    """Close windows at once, so that what is timed is the work of later steps."""
    return {"window": 1} if kind in {"dwa", "gradnorm"} else {}


def _over(
    run: Callable[[Inputs, Targets], None], rows: RowTensors, batch: int
) -> Callable[[], None]:
    """Return a function that takes a step on the next batch at each call."""
    order = torch.randperm(rows.num_rows, generator=torch.Generator().manual_seed(0))
    batches: itertools.cycle[Tensor] = itertools.cycle(torch.split(order, batch)[:-1])

    def step() -> None:
        rows_B = next(batches)
        run(rows.take(rows_B), rows.targets(rows_B))

    return step


if __name__ == "__main__":
    main()
