"""What a model must beat: a constant, and additive user and item effects.

Usage: ``python data/baselines.py interactions.parquet label_ctr label_rating ...`` on a table with
user_id, item_id, split (train, valid, test) and the labels. The damping is chosen on valid, the
effects are then fitted on train and valid together, and test is scored once.

Both functions take any label: for a binary one the effects add up on the scale of probabilities,
which needs no iteration and ranks as well as a logistic fit on sparse ids.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

DAMPINGS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
MAX_PASSES = 100


def global_mean(train: pl.DataFrame, test: pl.DataFrame, label: str) -> NDArray[np.float64]:
    """Score every row with the mean label of train.

    Parameters
    ----------
    train, test
        Interaction tables; `test` needs no label.
    label
        Column of the label; its null rows are left out.

    Returns
    -------
    numpy.ndarray
        One score for each row of `test`.
    """
    return np.full(len(test), _observed(train, label)[label].to_numpy().mean(dtype=np.float64))


def user_item_bias(
    train: pl.DataFrame,
    test: pl.DataFrame,
    label: str,
    *,
    damping: float | tuple[float, float] = 5.0,
    user: str = "user_id",
    item: str = "item_id",
) -> NDArray[np.float64]:
    """Score rows by ``mean + user effect + item effect``, both shrunk towards zero.

    The effects minimise the squared error plus ``damping_user * sum(user_effect ** 2) +
    damping_item * sum(item_effect ** 2)``, found by turns: each effect is the sum of its rows'
    residuals over their number plus the damping. An id that train lacks has the effect zero.

    Parameters
    ----------
    train, test
        Interaction tables; `test` needs no label.
    label
        Column of the label; its null rows are left out.
    damping
        Rows' worth of "no effect" that an id starts from, above 0; a pair is (user, item).
    user, item
        Columns of the ids.

    Returns
    -------
    numpy.ndarray
        One score for each row of `test`, clipped to the range of the labels of `train`.
    """
    dampings = damping if isinstance(damping, tuple) else (damping, damping)
    if min(dampings) <= 0:
        msg = f"'damping' must be above 0. Got {damping}."
        raise ValueError(msg)
    observed = _observed(train, label)
    target = observed[label].cast(pl.Float64).to_numpy()
    residual = target - target.mean()
    train_codes, test_codes, counts, effects = [], [], [], []
    for column, strength in zip((user, item), dampings, strict=True):
        ids = pl.concat([observed[column], test[column]])
        codes = ids.rank("dense").cast(pl.Int64).to_numpy() - 1
        train_codes.append(codes[: len(observed)])
        test_codes.append(codes[len(observed) :])
        counts.append(np.bincount(train_codes[-1], minlength=ids.n_unique()) + strength)
        effects.append(np.zeros(ids.n_unique()))
    for _ in range(MAX_PASSES):
        change = 0.0
        for side in (1, 0):
            rest = residual - effects[1 - side][train_codes[1 - side]]
            sums = np.bincount(train_codes[side], weights=rest, minlength=len(effects[side]))
            fitted = sums / counts[side]
            change = max(change, float(np.abs(fitted - effects[side]).max()))
            effects[side] = fitted
        if change < 1e-7:
            break
    scores = target.mean() + effects[0][test_codes[0]] + effects[1][test_codes[1]]
    return np.asarray(scores.clip(target.min(), target.max()), dtype=np.float64)


def _observed(train: pl.DataFrame, label: str) -> pl.DataFrame:
    observed = train.drop_nulls(label)
    if observed.is_empty():
        msg = f"Label '{label}' must be observed in at least one row of train. Found none."
        raise ValueError(msg)
    return observed


def auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Give the area under the ROC curve, ties counted half; NaN where one class is missing.

    Parameters
    ----------
    labels
        0 or 1 for each row.
    scores
        Any real score for each row; only their order matters.

    Returns
    -------
    float
        Probability that a random positive scores above a random negative.
    """
    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = pl.Series(scores).rank("average").to_numpy()
    wins = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


def choose_damping(train: pl.DataFrame, valid: pl.DataFrame, label: str) -> tuple[float, float]:
    """Choose the (user, item) damping with the least squared error on valid.

    Parameters
    ----------
    train, valid
        Interaction tables.
    label
        Column of the label.

    Returns
    -------
    tuple of float
        Damping of the users and of the items, out of `DAMPINGS`.
    """
    known = valid.drop_nulls(label)
    target = known[label].cast(pl.Float64).to_numpy()
    grid = [(first, second) for first in DAMPINGS for second in DAMPINGS]
    errors = [
        np.square(user_item_bias(train, known, label, damping=pair) - target).mean()
        for pair in grid
    ]
    return grid[int(np.argmin(errors))]


def _line(name: str, target: NDArray[np.float64], scores: NDArray[np.float64]) -> str:
    if set(np.unique(target)) <= {0.0, 1.0}:
        return f"  {name:16} AUC {auc(target, scores):.3f}"
    error = scores - target
    return (
        f"  {name:16} RMSE {np.sqrt(np.square(error).mean()):.3f}  MAE {np.abs(error).mean():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the baselines on a table with splits.")
    parser.add_argument("interactions", type=Path, help="parquet with user_id, item_id, split")
    parser.add_argument("labels", nargs="+", help="columns to predict")
    options = parser.parse_args()
    table = pl.read_parquet(options.interactions)
    train, valid = table.filter(split="train"), table.filter(split="valid")
    fitting = pl.concat([train, valid])
    for label in options.labels:
        test = table.filter(split="test").drop_nulls(label)
        target = test[label].cast(pl.Float64).to_numpy()
        damping = choose_damping(train, valid, label)
        print(f"{label}: {len(test)} test rows, damping (user, item) {damping}")
        print(_line("global mean", target, global_mean(fitting, test, label)))
        biased = user_item_bias(fitting, test, label, damping=damping)
        print(_line("user + item bias", target, biased))


if __name__ == "__main__":
    main()
