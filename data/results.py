"""Measure networks, trees and baselines on real data, and write docs/results.md.

Usage: ``make results``, or ``python data/results.py --out build/results [--sets ...] [--seeds N]``. Every
choice is made on valid; the model is then fitted on train and valid, and test is scored once. Scores are
kept in the folder, and a later call goes on from there; delete it to begin anew. MovieLens-100K (``--sets
movielens_100k``) is one more folder beside the others, which ``data/movielens.py --out`` prepares.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from recsys_mtl.training import DWA, FAMO, MGDA, PCGrad, RandomWeights, Uncertainty, UPGrad
from result_models import biases, defaults, global_means, hashed_linear, network, taught
from result_sets import DataSet, Scored, kuairand, movielens, movietweetings
from result_text import write_document
from result_trees import trees

SETS: dict[str, Callable[[Path], DataSet]] = {
    "kuairand_pure": kuairand,
    "movietweetings_100k": movietweetings,
    "movielens_100k": movielens,
}
MEMBERS, TREES_NAME = 5, "LightGBM"
BALANCES = {
    "Uncertainty": Uncertainty(),
    "DWA": DWA(),
    "FAMO": FAMO(),
    "RandomWeights": RandomWeights(),
    "MGDA": MGDA(),
    "UPGrad": UPGrad(),
    "PCGrad": PCGrad(),
}


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Parameters
    ----------
    name
        In the table, and of its folder.
    scored
        Trains with a seed.
    seeded
        Whether seeds differ.
    """

    name: str
    scored: Callable[[DataSet, int], Scored]
    seeded: bool = True


def contenders(data: DataSet) -> list[Contender]:
    """List all that are compared."""
    tasks = [task.name for task in data.schema.tasks]
    found = [
        Contender("global mean", global_means, seeded=False),
        Contender("user + item bias", biases, seeded=False),
        Contender("hashed linear", hashed_linear, seeded=False),
        Contender(TREES_NAME, trees),
        Contender("defaults", defaults),
        Contender("single tasks", partial(_single, tasks=tasks)),
    ]
    found += [
        Contender(name, partial(_network, sharing=name)) for name in ("SharedBottom", "MMoE", "PLE")
    ]
    found.append(
        Contender(f"{MEMBERS} x PLE", partial(_network, sharing="PLE", num_members=MEMBERS))
    )
    named = f"PLE, taught by {TREES_NAME}"
    found += [
        Contender(named, partial(_taught, num_members=1)),
        Contender(f"{MEMBERS} x {named}", partial(_taught, num_members=MEMBERS)),
    ]
    found += [
        Contender(f"PLE + {name}", partial(_network, sharing="PLE", balance=name))
        for name in BALANCES
    ]
    return found


def _network(
    data: DataSet, seed: int, *, sharing: str, balance: str | None = None, num_members: int = 1
) -> Scored:
    chosen = None if balance is None else BALANCES[balance]
    return network(data, sharing, seed, balance=chosen, num_members=num_members)


def _taught(data: DataSet, seed: int, *, num_members: int) -> Scored:
    return taught(data, "PLE", seed, num_members=num_members)


def _single(data: DataSet, seed: int, *, tasks: Sequence[str]) -> Scored:
    """Train one shared bottom for each task alone."""
    found = [network(data, "SharedBottom", seed, task=task) for task in tasks]
    scores = pl.concat([one.scores for one in found], how="horizontal")
    return Scored(scores, None, sum(one.parameters or 0 for one in found))


def run(data: DataSet, contender: Contender, seed: int, folder: Path) -> None:
    """Score test with one model, unless its scores are there."""
    place = folder / data.name / contender.name.replace(" ", "_")
    target = place / f"{seed}.parquet"
    if target.exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    found = contender.scored(data, seed)
    about = {
        "seconds": time.perf_counter() - started,
        "epochs": found.epochs,
        "parameters": found.parameters,
    }
    (place / f"{seed}.json").write_text(json.dumps(about))
    part = target.with_suffix(".part")
    found.scores.write_parquet(part)
    part.replace(target)
    print(f"{data.name}: {contender.name}, seed {seed}: {about['seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores")
    parser.add_argument("--sets", nargs="+", default=list(SETS)[:2], choices=list(SETS))
    parser.add_argument("--only", nargs="+", help="names of contenders to run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--document", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    folder = Path(os.environ.get("RECSYS_MTL_DATA", "../shared/data"))
    sets = [SETS[name](folder) for name in options.sets]
    for data in sets:
        for contender in contenders(data):
            if options.only and contender.name not in options.only:
                continue
            for seed in range(options.seeds if contender.seeded else 1):
                run(data, contender, seed, options.out)
    if options.document is not None:
        names = {data.name: [one.name for one in contenders(data)] for data in sets}
        write_document(options.document, options.out, sets, names)


if __name__ == "__main__":
    main()
