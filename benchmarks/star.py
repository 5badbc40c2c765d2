"""Pairs with users and items tables against the flat table with the same columns.

Work: 24k users of 10 categorical columns and 4 numbers, 6k items of the same, and pairs of them; MMoE of
8 experts [256, 128], towers [64], 3 tasks, embeddings of width 16, untrained. Both are scored chunk by
chunk from tables in memory. Usage: ``python benchmarks/star.py --pairs 1000000``.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks.measure import Timing, interleave, print_machine, print_table, times_faster
from recsys_mtl.encoding import Batch, Encoder
from recsys_mtl.network import (
    Factored,
    MMoE,
    MultiTaskModel,
    RowTensors,
    Sharing,
    Towers,
    predict_logits,
)
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import Binary, Categorical, Numeric, Regression, Schema, Side
from recsys_mtl.serving import Scorer

USERS, ITEMS = 24_000, 6_000
IDS, NUMBERS = 10, 4
BAR = 1.5
WIDTHS = (1, 2, 4, 10)
"""Categorical columns of each side where the crossover is looked for."""


def side(name: str, size: int, chance: np.random.Generator) -> pl.DataFrame:
    """Return a table of users or items."""
    columns: dict[str, npt.NDArray[Any]] = {f"{name}_id": np.arange(size)}
    for number in range(1, IDS):
        columns[f"{name}_{number}"] = chance.integers(4**number, size=size)
    for number in range(NUMBERS):
        columns[f"{name}_x{number}"] = chance.normal(size=size)
    return pl.DataFrame(columns)


def schema(ids: int = IDS, numbers: int = NUMBERS) -> Schema:
    def of(name: str) -> Side:
        own = [Categorical(f"{name}_{number}") for number in range(1, ids)]
        more = [Numeric(f"{name}_x{number}") for number in range(numbers)]
        return Side(f"{name}_id", features=[Categorical(f"{name}_id"), *own, *more])

    return Schema(
        user=of("user"),
        item=of("item"),
        tasks=[
            Binary("interest", label="interest"),
            Binary("ctr", label="click"),
            Regression("rating", label="rating"),
        ],
    )


def tables(pairs: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    chance = np.random.default_rng(0)
    users, items = side("user", USERS, chance), side("item", ITEMS, chance)
    found = pl.DataFrame(
        {
            "user_id": chance.integers(USERS, size=pairs),
            "item_id": chance.integers(ITEMS, size=pairs),
        }
    )
    return found, users, items


def fitted(rows: Rows, chosen: Schema, sharing: Sharing | None = None) -> Scorer:
    """Return the scorer of an untrained model."""
    encoder = Encoder(chosen).fit(rows.slice(0, 200_000))
    torch.manual_seed(0)
    model = MultiTaskModel(
        encoder.layout,
        chosen.tasks,
        sharing=sharing or MMoE(8, expert_dims=(256, 128)),
        heads=Towers((64,)),
        embedding_dim=16,
    )
    for table in model.embeddings.each():
        torch.nn.init.normal_(table.weight_RD, std=0.3)
    return Scorer(chosen, encoder, model)


def drain(scorer: Scorer, rows: Rows) -> Callable[[], object]:
    return lambda: sum(frame.height for frame in scorer.frames(rows))


def network(scorer: Scorer, batch: Batch) -> dict[str, Callable[[], object]]:
    flat = batch.flat()
    plain = RowTensors(flat, torch.device("cpu"))
    return {
        "kept": lambda: Factored(scorer.model, scorer.parts).logits(batch),
        "plain": lambda: predict_logits(scorer.model, plain),
    }


@dataclass(frozen=True)
class Compared:
    """Both tables, scored: seconds, and the greatest difference of a score."""

    timings: dict[str, Timing]
    gap: float

    @property
    def ratio(self) -> float:
        """How many times faster the star is."""
        return times_faster(self.timings["star"].wall, self.timings["flat"].wall)


def star_against_flat(pairs: int, *, rounds: int) -> Compared:
    """Score pairs with side tables and the same rows joined to them, in turn."""
    found, users, items = tables(pairs)
    star = scan(found, users=users, items=items)
    scorer = fitted(star, schema())
    wide = found.join(users, on="user_id", how="left", maintain_order="left")
    wide = wide.join(items, on="item_id", how="left", maintain_order="left")
    flat = scan(wide)
    names = list(scorer.score_types)
    first = star.slice(0, 200_000), flat.slice(0, 200_000)
    one, two = (pl.concat(list(scorer.frames(rows))).select(names) for rows in first)
    gap = max(float((one[name] - two[name]).abs().max()) for name in names)  # type: ignore[arg-type]
    runs = {"star": drain(scorer, star), "flat": drain(scorer, flat)}
    return Compared(interleave(runs, rounds=rounds), gap)


def compare(args: argparse.Namespace) -> None:
    found = star_against_flat(args.pairs, rounds=args.rounds)
    rows = [
        [name, f"{args.pairs / one.wall_median:,.0f}", f"{args.pairs / one.cpu_median:,.0f}"]
        for name, one in found.timings.items()
    ]
    header = ["table", "rows/s", "rows/s of CPU"]
    print_table(f"{args.pairs:,} pairs, {USERS:,} users, {ITEMS:,} items", header, rows)
    print(
        f"star: {found.ratio:.2f} x flat (bar {BAR}); greatest difference of a score: {found.gap:.1e}"
    )
    print(f"greatest memory of the process: {_peak_mb():,.0f} MB")


def crossover(args: argparse.Namespace) -> None:
    """Print where looking up begins to pay, on the network alone."""
    pairs, users, items = tables(1 << 17)
    star = scan(pairs, users=users, items=items)
    rows = []
    for ids in WIDTHS:
        scorer = fitted(star, schema(ids, 0))
        batch = scorer.encoder.encode(star, labels="none")
        factored = Factored(scorer.model, scorer.parts)
        kept = {"kept": _again(factored, batch)}
        timings = interleave(kept | {"plain": network(scorer, batch)["plain"]}, rounds=args.rounds)
        faster = times_faster(timings["kept"].cpu, timings["plain"].cpu)
        rows.append([str(16 * ids), f"{faster:.2f}"])
    header = ["columns of each side", "x plain"]
    print_table("Summands kept, all computed before: CPU time of the network", header, rows)


def _again(factored: Factored, batch: Batch) -> Callable[[], object]:
    factored.logits(batch)
    return lambda: factored.logits(batch)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    print_machine("torch", "polars")
    compare(args)
    crossover(args)


if __name__ == "__main__":
    main()
