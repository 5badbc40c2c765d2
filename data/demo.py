"""Train an MMoE on prepared MovieLens-100K, compare it with baselines, score a table, save the model.

Usage: ``python data/demo.py --data DIR --out DIR``; ``python data/movielens.py`` prepares the data.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import polars as pl

from baselines import choose_damping, global_mean, user_item_bias
from movielens import LABELS
from recsys_mtl import load, score_parquet
from recsys_mtl.config import read_config
from recsys_mtl.metrics import auc, rmse

CONFIG = Path(__file__).with_name("movielens.toml")
DAMPING = 10.0
MEASURES = {"interest": "auc", "ctr": "auc", "rating": "rmse"}


def baseline_table(data: Path) -> pl.DataFrame:
    """Measure the baselines on test, fitted on train and valid.

    The bias of users and items is damped by 10 rows, the usual choice, and by what valid chooses for
    each side and task: nearly all test users are new, so that one trusts users very little.
    """
    table = pl.read_parquet(data / "interactions.parquet")
    train, valid = table.filter(split="train"), table.filter(split="valid")
    lines = []
    for task, metric in MEASURES.items():
        label = f"label_{task}"
        test = table.filter(split="test").drop_nulls(label)
        known = test[label].cast(pl.Float64).to_numpy()
        damping = choose_damping(train, valid, label)
        both = pl.concat([train, valid])
        scores = {
            "global mean": global_mean(both, test, label),
            "user + item bias": user_item_bias(both, test, label, damping=DAMPING),
            "bias, tuned": user_item_bias(both, test, label, damping=damping),
        }
        measure = auc if metric == "auc" else rmse
        lines += [
            {"task": task, "metric": metric, "model": name, "value": measure(known, found)}
            for name, found in scores.items()
        ]
    return pl.DataFrame(lines)


def _ahead(compared: pl.DataFrame, task: str, metric: str) -> bool:
    """Tell whether MMoE beats the global mean and the bias of usual damping."""
    row = compared.row(by_predicate=pl.col("task") == task, named=True)
    others = row["global mean"], row["user + item bias"]
    return bool(row["MMoE"] > max(others) if metric == "auc" else row["MMoE"] < min(others))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and score on prepared MovieLens-100K.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data/movielens.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and scores")
    options = parser.parse_args()
    os.environ["MOVIELENS"] = str(options.data.resolve())
    config = read_config(CONFIG)
    rows = config.rows()
    print(
        f"\nlabels\n{LABELS}\n\ntraining ({CONFIG.name}); epochs chosen on valid, then train + valid"
    )
    ranker = config.ranker()
    ranker.fit(rows["train"], valid=rows["valid"], refit=config.run.refit)
    report = ranker.evaluate(rows["test"])
    print(f"\ntest, after {ranker.best_epoch_} epochs\n{report}")

    mine = pl.DataFrame(
        [
            {"task": task, "metric": metric, "model": "MMoE", "value": report.value(task, metric)}
            for task, metric in MEASURES.items()
        ]
    )
    compared = pl.concat([baseline_table(options.data), mine]).pivot(
        on="model", index=["task", "metric"], values="value"
    )
    print("\ntest, against baselines (auc: higher is better; rmse: lower is better)")
    with pl.Config(
        float_precision=4, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True
    ):
        print(compared)
    print("'bias, tuned' takes the damping of users and items that valid chose for each task.")
    below = [task for task, metric in MEASURES.items() if not _ahead(compared, task, metric)]
    if below:
        raise SystemExit(f"MMoE is not above the baselines on {below}")

    ranker.save(options.out / "model")
    scores = options.out / "scores.parquet"
    score_parquet(load(options.out / "model"), rows["test"], scores, overwrite=True)
    print(f"\nscored the test rows: {scores}\n{pl.read_parquet(scores).head(3)}")
    same = np.array_equal(
        pl.read_parquet(scores).to_numpy(), ranker.predict(rows["test"]).to_numpy()
    )
    print(f"scores of the saved model equal those before saving: {same}")
    print(f"model: {options.out / 'model'} (recsys-mtl describe {options.out / 'model'})")


if __name__ == "__main__":
    main()
