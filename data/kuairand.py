"""Train SharedBottom, MMoE and PLE on KuaiRand-Pure, three seeds each, and print the test table.

Usage: ``python data/kuairand.py --out DIR``; ``RECSYS_MTL_DATA`` names the folder with kuairand_pure/.
Epochs are chosen on valid (04-25..05-02 train, 05-03 valid), the model is then trained on both and
measured once on test (05-04, 05-05). The MMoE of seed 0 is trained a second time through the command
line, and its scores must be the same.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from recsys_mtl import PLE, MMoE, SharedBottom, load
from recsys_mtl.config import Config, read_config
from recsys_mtl.network import Sharing

CONFIG = Path(__file__).with_name("kuairand.toml")
SEEDS = (0, 1, 2)
SHARING: dict[str, Sharing] = {
    "shared_bottom": SharedBottom((256, 128)),
    "mmoe": MMoE(4, expert_dims=(128, 64)),
    "ple": PLE(1, num_shared_experts=2, num_task_experts=1, expert_dims=(128, 64)),
}
FLOORS = {
    ("ctr", "auc"): 0.728,
    ("interest", "auc"): 0.729,
    ("rating", "rmse"): 1.251,
    ("like", "auc"): 0.79,
}


def train(config: Config, name: str, seed: int, folder: Path) -> dict[str, object]:
    """Train one model, save it, and return its test metrics."""
    started = time.perf_counter()
    model = dataclasses.replace(config.model, sharing=SHARING[name])
    run = dataclasses.replace(config.run, random_state=seed)
    ranker = dataclasses.replace(config, model=model, run=run).ranker()
    rows = config.rows()
    ranker.fit(rows["train"], valid=rows["valid"], refit=True)
    seconds = time.perf_counter() - started
    report = ranker.evaluate(rows["test"])
    ranker.save(folder / f"{name}-{seed}")
    line: dict[str, object] = {"sharing": name, "seed": seed, "epochs": ranker.best_epoch_}
    line |= {f"{task} {metric}": report.value(task, metric) for task, metric in FLOORS}
    line |= {f"{task} gauc": report.value(task, "gauc") for task in ("ctr", "interest")}
    return line | {"seconds": seconds}


def same_through_command_line(config: Config, folder: Path) -> bool:
    """Train the config by the command and compare its test scores with the saved model's, bit by bit."""
    model = folder / "command-line"
    command = [sys.executable, "-m", "recsys_mtl.cli", "train", str(CONFIG), "--model", str(model)]
    subprocess.run(command, check=True)
    test = config.rows()["test"]
    mine: pl.DataFrame = load(folder / "mmoe-0").predict(test)
    return bool(mine.equals(load(model).predict(test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    options = parser.parse_args()
    config = read_config(CONFIG)
    lines = []
    for name in SHARING:
        for seed in SEEDS:
            lines.append(train(config, name, seed, options.out))
            print(lines[-1], flush=True)
    table = pl.DataFrame(lines)
    metrics = [column for column in table.columns if column not in ("sharing", "seed", "epochs")]
    with pl.Config(
        float_precision=4, tbl_cols=-1, tbl_width_chars=140, tbl_hide_dataframe_shape=True
    ):
        print("test, each run:", table)
        print(
            "mean of seeds:",
            table.group_by("sharing", maintain_order=True).agg(pl.col(metrics).mean()),
        )
        print(
            "deviation of seeds:",
            table.group_by("sharing", maintain_order=True).agg(pl.col(metrics).std()),
        )
    for (task, metric), floor in FLOORS.items():
        found = (
            table.filter(pl.col("sharing") != "shared_bottom")
            .group_by("sharing")
            .agg(pl.mean(f"{task} {metric}"))
        )
        values = found[f"{task} {metric}"].to_numpy()
        met = bool(np.all(values <= floor) if metric == "rmse" else np.all(values >= floor))
        print(
            f"{task} {metric}: mmoe and ple against hashed linear models' {floor}: {'met' if met else 'MISSED'}"
        )
    equal = same_through_command_line(config, options.out)
    print(f"command line and Python give equal scores: {equal}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
