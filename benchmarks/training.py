"""Training, scoring and requests against a plain torch loop and against matrix products alone.

The model is PERFORMANCE's: MMoE of 8 experts [256, 128], towers [64], vectors of 16, batches of 4096,
20 id columns, 8 numbers, 3 tasks. Usage: ``make bench``, or ``python benchmarks/training.py``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks import table
from benchmarks.measure import (
    Timing,
    interleave,
    optional,
    print_machine,
    print_table,
    second_core,
    times_faster,
)
from benchmarks.peers import PlainLoop, PlainMMoE, RechubLoop
from recsys_mtl.encoding import Batch, Block, Encoder, InputLayout, Part
from recsys_mtl.encoding.chunk import Chunk, WholePart
from recsys_mtl.encoding.entry import read_entry, write_entry
from recsys_mtl.network import (
    Inputs,
    MMoE,
    MultiTaskModel,
    RowTensors,
    Targets,
    Towers,
    score_rows,
)
from recsys_mtl.network.model import SCORE_ROWS
from recsys_mtl.schema import Schema
from recsys_mtl.serving import Scorer
from recsys_mtl.training import TrainConfig, Trainer
from recsys_mtl.training.run import Clock

ROWS = 200_000
BATCH = 4096
STEPS = 11
SCORE_CHUNKS = 8
CANDIDATES = 500
SIZE_ROUNDS = 5
EPOCH_ROUNDS = 3
DIM = 16
NUM_EXPERTS, EXPERT_DIMS, TOWER_DIM = 8, (256, 128), 64
CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "compiled": {"compile": True},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}


class Step:
    """The trainer's step on rows that lie in memory; the seconds of each phase are added up."""

    def __init__(self, model: MultiTaskModel, schema: Schema, **settings: Any) -> None:
        config = TrainConfig(batch_size=BATCH, observe_every=0, **settings)
        self.stepper = Trainer(model.train(), schema, config, seed=0, progress=False).stepper
        self.clock, self.steps = Clock(), 0

    def run(self, rows: RowTensors, rows_B: Tensor) -> None:
        """Take one step on these rows."""
        self.clock.start()
        taken = rows.take(rows_B), rows.targets(rows_B)
        self.clock.lap("take rows and labels")
        self.stepper.take([taken], clock=self.clock)
        self.steps += 1


class Products:
    """All matrix products of a model at its own shapes, and nothing else."""

    def __init__(
        self,
        model: MultiTaskModel,
        num_rows: int,
        *,
        training: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        found = [p.detach() for p in model.parameters() if p.requires_grad and p.dim() == 2]
        weights = [weight.to(dtype) for weight in found]
        makers = {tuple(w.shape): (w, torch.randn(num_rows, w.shape[1]).to(dtype)) for w in weights}
        self.work = [makers[tuple(w.shape)] for w in weights]
        self.outputs = {shape: torch.randn(num_rows, shape[0]).to(dtype) for shape in makers}
        self.training = training
        times = 3 if training else 1
        self.flops = times * 2 * num_rows * sum(w.numel() for w in weights)

    @torch.no_grad()
    def run(self) -> None:
        """Compute all products once."""
        for weight, x in self.work:
            torch.mm(x, weight.T)
            if self.training:
                gradient = self.outputs[tuple(weight.shape)]
                torch.mm(gradient, weight)
                torch.mm(gradient.T, x)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training, scoring and requests.")
    parser.add_argument("--threads", type=int, help="threads of torch; on a busy machine take 1")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile, too")
    arguments = parser.parse_args()
    threads = arguments.threads
    if threads is not None:
        torch.set_num_threads(threads)
    print_machine("torch", "numpy", "polars")
    print(f"torch threads: {torch.get_num_threads()}")
    schema, rows = table.schema(), table.impressions(ROWS)
    encoder = Encoder(schema)
    batch = encoder.fit_encode(rows)
    torch.manual_seed(0)
    model = _model(encoder.layout, schema)
    model.learn_outputs(batch)
    plain = _plain(encoder.layout)
    _encoding(encoder, rows)
    _step(model, schema, plain, _rechub(encoder.layout), batch, compiled=arguments.compiled)
    _from_disk(model, schema, batch)
    _scoring(Scorer(schema, encoder, model), plain, rows)
    _table_size(schema, encoder.layout)


def _model(layout: InputLayout, schema: Schema) -> MultiTaskModel:
    sharing, heads = MMoE(NUM_EXPERTS, expert_dims=EXPERT_DIMS), Towers((TOWER_DIM,))
    return MultiTaskModel(layout, schema.tasks, sharing=sharing, heads=heads, embedding_dim=DIM)


def _plain(layout: InputLayout) -> PlainMMoE:
    return PlainMMoE(
        [one.num_rows for one in layout.tables],
        layout.dense_dim,
        dim=DIM,
        num_experts=NUM_EXPERTS,
        expert_dims=EXPERT_DIMS,
        tower_dim=TOWER_DIM,
    )


def _rechub(layout: InputLayout) -> RechubLoop | None:
    multi_task = optional("torch_rechub.models.multi_task", "torch-rechub")
    if multi_task is None:
        return None
    return RechubLoop(
        multi_task,
        optional("torch_rechub.basic.features", "torch-rechub"),
        [one.num_rows for one in layout.tables],
        dim=DIM,
        dense_dim=layout.dense_dim,
        num_experts=NUM_EXPERTS,
        expert_dims=EXPERT_DIMS,
        tower_dim=TOWER_DIM,
    )


def _encoding(encoder: Encoder, rows: pl.DataFrame) -> None:
    ids = rows.select(pl.col("^id_.*$"))
    timings = interleave(
        {
            "encode, labels included": lambda: encoder.encode(rows),
            "polars hash % 2^20 of the id columns alone": lambda: ids.select(
                pl.all().hash() % (1 << 20)
            ).to_numpy(),
        },
        rounds=5,
    )
    _print_rates("encoding", timings, ROWS)


def _step(
    model: MultiTaskModel,
    schema: Schema,
    plain: PlainMMoE,
    rechub: RechubLoop | None,
    batch: Batch,
    *,
    compiled: bool,
) -> None:
    rows = RowTensors(batch, CPU)
    step, products = Step(model, schema), Products(model, BATCH, training=True)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    batches = torch.split(order, BATCH)[: STEPS + 1]
    contenders: dict[str, Callable[[], object]] = {
        "recsys_mtl": _over(batches, _own_step(step, rows)),
        "matrix products alone": products.run,
    }
    for name, settings in VARIANTS.items():
        if compiled or "compile" not in settings:
            other = Step(copy.deepcopy(model), schema, **settings)
            contenders[f"recsys_mtl, {name}"] = _over(batches, _own_step(other, rows))
    peers: dict[str, Callable[[Inputs, Targets], None]] = {
        "plain loop, nn.Embedding, dense Adam": PlainLoop(plain).step
    }
    if rechub is not None:
        peers["torch-rechub's MMOE, dense Adam, no loader"] = rechub.step
    for name, run in peers.items():
        contenders[name] = _over(batches, _peer_step(run, rows))
    timings = interleave(contenders, rounds=STEPS)
    _print_rates(f"training, batch {BATCH}", timings, BATCH)
    speed = products.flops / timings["matrix products alone"].wall_median / 1e9
    print(f"products: {products.flops / 1e9:.1f} GFLOP a step at {speed:.0f} GFLOP/s")
    total = sum(step.clock.seconds.values())
    print_table(
        "where a step goes",
        ["phase", "ms", "share"],
        [
            [name, f"{1e3 * spent / step.steps:.2f}", f"{spent / total:.3f}"]
            for name, spent in step.clock.seconds.items()
        ],
    )


def _from_disk(model: MultiTaskModel, schema: Schema, batch: Batch) -> None:
    """Train an epoch from rows mapped from disk, in windows of a tenth of them, and from memory."""
    size = sum(array.nbytes for array in batch.arrays())
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder) / "entry"
        entry.mkdir()
        parts = tuple(WholePart(part.block, part.rows) for part in batch.parts)
        write_entry(entry, "entry", [Chunk(parts, replace(batch, parts=()))])
        mapped = read_entry(entry)

        def epoch(rows: Batch, memory_bytes: int | None) -> None:
            config = TrainConfig(batch_size=BATCH, max_epochs=1, observe_every=0)
            trainer = Trainer(copy.deepcopy(model), schema, config, seed=0, progress=False)
            trainer.fit(rows, memory_bytes=memory_bytes)

        timings = interleave(
            {
                "all rows in memory": lambda: epoch(batch, None),
                f"from disk, {size // 10 >> 20} of {size >> 20} MiB": lambda: epoch(
                    mapped, size // 10
                ),
            },
            rounds=EPOCH_ROUNDS,
        )
    _print_rates(f"an epoch of {batch.num_rows:,} rows", timings, batch.num_rows)
    memory, disk = timings.values()
    print(f"from disk against memory: {times_faster(disk.wall, memory.wall):.2f}x (bar 0.8x)")


def _peer_step(
    run: Callable[[Inputs, Targets], None], rows: RowTensors
) -> Callable[[Tensor], None]:
    return lambda rows_B: run(rows.take(rows_B), rows.targets(rows_B))


def _over(batches: tuple[Tensor, ...], run: Callable[[Tensor], None]) -> Callable[[], None]:
    """Return a function that takes the next batch at each call."""
    left = iter(batches)
    return lambda: run(next(left))


def _scoring(scorer: Scorer, plain: PlainMMoE, rows: pl.DataFrame) -> None:
    model, peer = scorer.model, plain.eval()
    some = rows.head(SCORE_ROWS * SCORE_CHUNKS)
    encoded = RowTensors(scorer.encoder.encode(some, labels="none"), CPU)
    products = Products(model, SCORE_ROWS, training=False)
    timings = interleave(
        {
            "Scorer.score, from raw ids": lambda: scorer.score(some),
            "network alone, rows encoded": lambda: score_rows(model, encoded),
            "matrix products alone": lambda: [products.run() for _ in range(SCORE_CHUNKS)],
            "plain network, rows encoded": lambda: _score_plain(peer, encoded),
        },
        rounds=5,
    )
    _print_rates(f"scoring {some.height:,} rows", timings, some.height)
    request = rows.head(CANDIDATES).with_columns(pl.col("id_19").first())
    ready = RowTensors(scorer.encoder.encode(request, labels="none"), CPU)
    small = Products(model, CANDIDATES, training=False)
    timings = interleave(
        {
            "Scorer.score, from raw ids": lambda: scorer.score(request),
            "network alone, rows encoded": lambda: score_rows(model, ready),
            "matrix products alone": small.run,
            "plain network, rows encoded": lambda: _score_plain(peer, ready),
        },
        rounds=40,
    )
    _print_rates(f"a request, 1 user x {CANDIDATES} candidates (p50)", timings, CANDIDATES)


@torch.inference_mode()
def _score_plain(model: PlainMMoE, rows: RowTensors) -> list[Tensor]:
    scores = []
    for places_B in torch.split(torch.arange(rows.num_rows), SCORE_ROWS):
        inputs = rows.take(places_B)
        scores.append(model(inputs.ids_BF, inputs.dense_BN))
    return scores


def _table_size(schema: Schema, layout: InputLayout) -> None:
    """Time steps whose ids hit a largest table of 1M and of 10M rows all over."""
    contenders: dict[str, Callable[[], object]] = {}
    for millions in (1, 10):
        largest = layout.id_tables[-1]
        tables = [
            replace(one, num_rows=millions * 1_000_000 if one.name == largest else one.num_rows)
            for one in layout.tables
        ]
        sized = replace(layout, tables=tuple(tables))
        rows = RowTensors(_random_batch(sized), CPU)
        batches = torch.split(torch.arange(rows.num_rows), BATCH)
        step = Step(_model(sized, schema), schema)
        contenders[f"recsys_mtl, {millions}M rows"] = _over(batches, _own_step(step, rows))
        peer = PlainLoop(_plain(sized))
        contenders[f"plain, {millions}M rows"] = _over(batches, _peer_step(peer.step, rows))
    timings = interleave(contenders, rounds=SIZE_ROUNDS)
    rows_out = []
    for name in ("recsys_mtl", "plain"):
        small, large = timings[f"{name}, 1M rows"], timings[f"{name}, 10M rows"]
        growth = times_faster(small.wall, large.wall)
        rows_out.append([name, _ms(small.wall_median), _ms(large.wall_median), f"{growth:.2f}"])
    print_table(
        "a step by the rows of the largest table", ["ms", "1M", "10M", "10M / 1M"], rows_out
    )


def _own_step(step: Step, rows: RowTensors) -> Callable[[Tensor], None]:
    return lambda rows_B: step.run(rows, rows_B)


def _random_batch(layout: InputLayout) -> Batch:
    rng = np.random.default_rng(0)
    num_rows = (SIZE_ROUNDS + 1) * BATCH
    size = {one.name: one.num_rows for one in layout.tables}
    columns = [rng.integers(0, size[name], num_rows, np.int32) for name in layout.id_tables]
    ids = np.stack(columns, axis=1)
    dense = rng.normal(size=(num_rows, layout.dense_dim)).astype(np.float32)
    labels = rng.integers(0, 2, (num_rows, 3)).astype(np.float32)
    return Batch(
        num_rows,
        (Part(Block(ids, (), dense)),),
        pl.DataFrame(),
        labels,
        np.zeros((num_rows, 3), dtype=np.uint8),
        np.ones((num_rows, 3), dtype=np.float32),
    )


def _print_rates(title: str, timings: dict[str, Timing], num_rows: int) -> None:
    """Print times and rates; the first contender is the one others are compared with."""
    first = next(iter(timings.values()))
    rows = [
        [
            name,
            _ms(found.wall_median),
            f"{num_rows / found.wall_median:,.0f}",
            f"{times_faster(first.wall, found.wall):.2f}",
            _ms(found.cpu_median),
            f"{times_faster(first.cpu, found.cpu):.2f}",
        ]
        for name, found in timings.items()
    ]
    print_table(title, ["contender", "ms", "rows/s", "first is x", "CPU ms", "first is x"], rows)
    print(f"second core right after: {second_core(rounds=1):.2f} (idle: 2.0)")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


if __name__ == "__main__":
    main()
