"""Generators whose answer is known: two related regressions, and a table of impressions.

Usage: ``python data/synthetic.py --out DIR`` writes interactions.parquet, users.parquet and
items.parquet.

`task_pair` is the generator of the MMoE paper: two tasks whose relation is one number.
`impressions` is a table as the package reads it, with users, items, context and three labels, and
the probabilities they were drawn with in columns named ``oracle_...``. No model can beat these in
expectation. Never use them as features.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CITIES = ("Aarau", "Bergen", "Cork", "Delft", "Evora", "Faro", "Gent", "Halle", "Izmir", "Jena",
          "Kotka", "Lyon")  # fmt: skip
TAGS = ("animals", "beauty", "books", "cars", "comedy", "cooking", "crafts", "dance", "family",
        "fashion", "fitness", "football", "games", "garden", "history", "hiking", "home", "jazz",
        "news", "painting", "physics", "pop", "sailing", "travel")  # fmt: skip
HOUR_WEIGHTS = (3, 2, 1, 1, 1, 1, 2, 4, 5, 4, 4, 5, 7, 6, 5, 5, 5, 6, 8, 10, 12, 12, 9, 6)

NUM_FACTORS = 6
START = 1_735_689_600  # midnight UTC
NUM_DAYS = 20
TRAIN_SHARE, VALID_SHARE = 0.8, 0.1
RATING_THRESHOLDS = (-2.2, -1.0, 0.2, 1.6)  # of the utility, for 2, 3, 4 and 5 stars


def task_weights(
    num_inputs: int, *, correlation: float, scale: float = 0.5, seed: int = 0
) -> tuple[Floats, Floats]:
    """Draw the directions of two tasks with a given cosine.

    Parameters
    ----------
    num_inputs
        Width of the input, at least 2.
    correlation
        Cosine between the two directions, -1 to 1.
    scale
        Length of both.
    seed
        Seed of the draw.

    Returns
    -------
    tuple of numpy.ndarray
        The weights of either task, of length `num_inputs`.
    """
    if num_inputs < 2:
        msg = f"'num_inputs' must be at least 2. Got {num_inputs}."
        raise ValueError(msg)
    if not -1 <= correlation <= 1:
        msg = f"'correlation' must lie in [-1, 1]. Got {correlation}."
        raise ValueError(msg)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_inputs, 2)))[0]
    first, other = basis.T
    return scale * first, scale * (correlation * first + np.sqrt(1 - correlation**2) * other)


def task_pair(
    num_rows: int,
    *,
    correlation: float,
    num_inputs: int = 100,
    num_sines: int = 5,
    scale: float = 0.5,
    noise: float = 0.1,
    seed: int = 0,
) -> tuple[Floats, Floats, Floats]:
    """Draw the two regression tasks of the MMoE paper.

    ``y_k = w_k.x + sum_i sin(a_i w_k.x + b_i) + noise * e_k`` with standard normal x, a, b and e; a
    and b are the same for both tasks, so `correlation` alone says how related they are. The labels'
    own correlation grows with it without being equal to it. The seed settles the tasks; more
    rows of the same seed extend the same sample.

    Parameters
    ----------
    num_rows
        Rows to draw.
    correlation
        Cosine between the weights of the tasks, -1 to 1.
    num_inputs
        Width of x.
    num_sines
        Terms that make the tasks non-linear.
    scale
        Length of the weights.
    noise
        Standard deviation of the noise.
    seed
        Seed of all draws.

    Returns
    -------
    tuple of numpy.ndarray
        x, shape (num_rows, num_inputs), and the labels y1 and y2, shape (num_rows,).

    References
    ----------
    J. Ma et al. (2018), Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts, KDD, section 3.2.
    """
    weights = task_weights(num_inputs, correlation=correlation, scale=scale, seed=seed)
    terms, inputs, noises = (np.random.default_rng((seed, stream)) for stream in (1, 2, 3))
    slopes, shifts = terms.normal(size=(2, num_sines))
    x = inputs.normal(size=(num_rows, num_inputs))
    errors = noises.normal(scale=noise, size=(num_rows, 2))
    projected = x @ np.stack(weights, axis=1)
    waves = np.zeros_like(projected)
    for slope, shift in zip(slopes, shifts, strict=True):
        waves += np.sin(slope * projected + shift)
    first, second = (projected + waves + errors).T
    return x, first, second


@dataclass(frozen=True)
class _Side:
    """A table and what is hidden behind it: taste factors and an additive effect on two tasks."""

    table: pl.DataFrame
    factors: Floats
    click: Floats
    utility: Floats


def impressions(
    num_users: int, num_items: int, num_rows: int, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Draw a log of impressions with three labels and the probabilities behind them.

    A user's taste is that of her city plus her own, an item's that of its tags plus its own; how
    well they agree drives all labels. Users and items also have effects of their own, partly told
    by ``register_days`` and the tags; the hour moves the click, ``duration_ms`` the click down and
    the interest up. Interest and rating share their noise, and exist only behind a click.

    - ``label_ctr``: drawn with probability ``oracle_ctr``.
    - ``label_interest``: 0 without a click; 1 with probability ``oracle_interest``, which counts
      the click in. Given the click it is ``oracle_interest / oracle_ctr``.
    - ``label_rating``: 1 to 5 stars, null without a click; ``oracle_rating`` is its expectation
      given the click, on every row.

    Parameters
    ----------
    num_users, num_items
        Rows of the users and the items table. A few are in no impression.
    num_rows
        Impressions.
    seed
        Seed of all draws.

    Returns
    -------
    tuple of polars.DataFrame
        Interactions in order of time (user_id, item_id, timestamp, hour, duration_ms, the labels,
        split and the oracles), users (user_id, city, register_days) and items (item_id, tags).
        The split is by time: 80 % train, 10 % valid, 10 % test.
    """
    if min(num_users, num_items, num_rows) < 1:
        msg = f"Sizes must be at least 1. Got {num_users=}, {num_items=}, {num_rows=}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    users, items = _users(num_users, rng), _items(num_items, rng)
    duration = np.exp(rng.normal(np.log(25_000), 0.8, num_items)).clip(3_000, 600_000)
    # few users and items make up most rows
    user = rng.choice(num_users, num_rows, p=_shares(rng.normal(0, 0.8, num_users)))
    item = rng.choice(num_items, num_rows, p=_shares(rng.normal(0, 1.0, num_items)))
    day = rng.integers(NUM_DAYS, size=num_rows)
    hour = rng.choice(24, num_rows, p=np.divide(HOUR_WEIGHTS, sum(HOUR_WEIGHTS)))
    time = np.sort(START + 86_400 * day + 3_600 * hour + rng.integers(3_600, size=num_rows))
    hour = time // 3_600 % 24

    match = np.einsum("rf,rf->r", users.factors[user], items.factors[item])
    length = np.log(duration / 25_000)[item]
    evening = np.sin(2 * np.pi * (hour - 14) / 24)
    click = -0.3 + users.click[user] + items.click[item] + match + 0.3 * evening - 0.3 * length
    utility = users.utility[user] + items.utility[item] + 1.2 * match
    wish = 0.9 + utility + 0.4 * length

    clicked = rng.random(num_rows) < _sigmoid(click)
    mood = rng.logistic(size=num_rows)  # one for interest and rating: P(a + mood > b) = s(a - b)
    stars = 1 + np.sum([utility + mood > level for level in RATING_THRESHOLDS], axis=0)
    rating = np.where(clicked, stars, np.nan).astype(np.float32)
    rank = np.arange(num_rows) / num_rows
    interactions = pl.DataFrame(
        {
            "user_id": users.table["user_id"].to_numpy()[user],
            "item_id": items.table["item_id"].to_numpy()[item],
            "timestamp": time,
            "hour": hour.astype(np.int8),
            "duration_ms": _with_nulls(duration[item].astype(np.int32), 0.02, rng),
            "label_interest": (clicked & (wish + mood > 0)).astype(np.int8),
            "label_ctr": clicked.astype(np.int8),
            "label_rating": pl.Series(rating, nan_to_null=True),
            "split": np.select(
                [rank < TRAIN_SHARE, rank < TRAIN_SHARE + VALID_SHARE], ["train", "valid"], "test"
            ),
            "oracle_interest": _sigmoid(click) * _sigmoid(wish),
            "oracle_ctr": _sigmoid(click),
            "oracle_rating": 1 + sum(_sigmoid(utility - level) for level in RATING_THRESHOLDS),
        }
    )
    return interactions, users.table, items.table


def _users(num_users: int, rng: np.random.Generator) -> _Side:
    city = rng.choice(len(CITIES), num_users, p=_shares(np.linspace(3, 0, len(CITIES))))
    tastes = rng.normal(size=(len(CITIES), NUM_FACTORS))
    factors = 0.6 * tastes[city] + 0.4 * rng.normal(size=(num_users, NUM_FACTORS))
    days = np.exp(rng.normal(5.5, 1.1, num_users)).clip(1, 4_000).astype(np.int32)
    tenure = (np.log(days) - 5.5) / 1.1
    table = pl.DataFrame(
        {
            "user_id": np.arange(1, num_users + 1),
            "city": _with_nulls(np.array(CITIES)[city], 0.03, rng),
            "register_days": _with_nulls(days, 0.08, rng),
        }
    )
    click = 0.4 * tenure + rng.normal(0, 0.5, num_users)
    utility = -0.3 * tenure + 0.5 * click + rng.normal(0, 0.4, num_users)
    return _Side(table, factors / np.sqrt(NUM_FACTORS), click, utility)


def _items(num_items: int, rng: np.random.Generator) -> _Side:
    # a tag is on an item where its draw is among the item's lowest; about 5 % have none
    num_tags = np.where(rng.random(num_items) < 0.05, 0, rng.integers(1, 5, num_items))
    order = rng.random((num_items, len(TAGS))).argsort(axis=1)
    carried = order < num_tags[:, None]
    share = carried / np.maximum(num_tags, 1)[:, None]
    factors = 2.0 * share @ rng.normal(size=(len(TAGS), NUM_FACTORS))
    factors += 0.5 * rng.normal(size=(num_items, NUM_FACTORS))
    appeal = share @ rng.normal(0, 0.8, len(TAGS))
    names = [pl.when(pl.col(str(place))).then(pl.lit(name)) for place, name in enumerate(TAGS)]
    listed = pl.DataFrame(carried, schema=[str(place) for place in range(len(TAGS))]).select(
        tags=pl.when(pl.any_horizontal(pl.all())).then(
            pl.concat_str(names, separator=",", ignore_nulls=True)
        )
    )
    table = pl.DataFrame({"item_id": np.arange(1, num_items + 1)}).hstack(listed)
    click = appeal + rng.normal(0, 0.6, num_items)
    utility = 0.7 * click + rng.normal(0, 0.5, num_items)
    return _Side(table, factors, click, utility)


def _shares(logits: Floats) -> Floats:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum())


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _with_nulls(values: NDArray[np.generic], rate: float, rng: np.random.Generator) -> pl.Series:
    """Replace a share of the values by null, whatever they are."""
    return pl.Series(values).set(pl.Series(rng.random(len(values)) < rate), None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic log of impressions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tables = impressions(options.users, options.items, options.rows, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("interactions", "users", "items"), tables, strict=True):
        table.write_parquet(options.out / f"{name}.parquet")
    for task in ("interest", "ctr", "rating"):
        label = tables[0][f"label_{task}"]
        observed = tables[0].filter(label.is_not_null())
        means = observed.select(pl.mean(f"label_{task}", f"oracle_{task}")).row(0)
        print(f"{task}: {len(observed)} rows, label mean {means[0]:.4f}, oracle {means[1]:.4f}")


if __name__ == "__main__":
    main()
