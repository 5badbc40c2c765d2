"""Fetch MovieLens-100K and write it as three tables with a time split and sampled negatives.

Usage: ``python data/movielens.py --out DIR [--local DIR]``. No row of the data set is part of this
repository, and the licence does not allow handing it on: everybody fetches their own.

``label_rating`` and ``label_interest`` are ratings; ``label_ctr`` is not an observed click, for
MovieLens does not record what was shown, but "did she come to rate it". How its zeros are drawn,
for the rating of user *u* at time *t*:

- It takes the user, the time and therefore the split of its rating. So each user has as many ones
  as zeros, and who the user is says nothing on its own.
- The film is one that *u* never rates, in the whole data. A film she rates next week is then no
  false negative today; the price is that the sampler looks at *u*'s future, so "not sampled" says a
  little about what comes. A (user, item) pair occurs once in the whole table.
- The film was rated by somebody before *t*. A film not yet released is not a choice she declined,
  and would be a negative that gives itself away by having no history. During the first tenth of
  the ratings, when the log is too short, "before *t*" means within that tenth, a part of train.
- With probability ``popularity_share`` it is the film of a past rating drawn at random (so in
  proportion to its popularity up to *t*), else any film seen so far with equal chance. Uniform
  draws make popularity alone very strong: additive user and item effects reach an AUC of .83 on
  test, .73 at one half, .62 where all draws follow popularity. One half is the default.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

NOTICE = """MovieLens-100K, GroupLens Research, University of Minnesota.
Cite: F. Maxwell Harper and Joseph A. Konstan (2015), The MovieLens Datasets: History and Context,
ACM Transactions on Interactive Intelligent Systems 5(4), 19:1-19:19, doi:10.1145/2827872.
Licence: research use with this citation; no redistribution and no commercial use without
permission from GroupLens. Do not commit or pass on these files."""

LABELS = """label_rating: 1 to 5 stars, label_interest: 1 where the rating is >= 4; null if sampled
label_ctr: 1 = rated, 0 = sampled among the films the user never rates (no exposure was logged)"""

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
RECBOLE_FILES = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
GROUPLENS_FILES = ("u.data", "u.user", "u.item")
OUTPUT_FILES = ("users.parquet", "items.parquet", "interactions.parquet")
OUTPUT_VERSION = 1

# the flags of u.item, in its order
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
USER_COLUMNS = ("user_id", "age", "gender", "occupation", "zip_code")
ITEM_COLUMNS = ("item_id", "title", "release_date", "video_release_date", "url", *GENRES)
RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")

TRAIN_SHARE, VALID_SHARE, WARM_UP_SHARE = 0.8, 0.1, 0.1
SAMPLING_ROUNDS = 64


def fetch(folder: str | Path, local: str | Path | None = None) -> Path:
    """Give the folder that holds the source files, downloading them once if need be.

    Parameters
    ----------
    folder
        Where to keep the download, in a folder ``ml-100k`` of its own.
    local
        A folder that already holds the data, in GroupLens' layout (``u.data``, ``u.user``,
        ``u.item``) or RecBole's (``ml-100k.inter``, ``.user``, ``.item``). Nothing is downloaded.

    Returns
    -------
    pathlib.Path
        The folder to hand to `prepare`.

    Raises
    ------
    FileNotFoundError
        If `local` has neither layout.
    RuntimeError
        If pip cannot download the wheel.
    ValueError
        If the wheel is not the one expected. Nothing is kept then.
    """
    if local is not None:
        _source_files(Path(local))
        return Path(local)
    target = Path(folder) / "ml-100k"
    if target.exists():
        _source_files(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download(Path(scratch))
        _extract(wheel, Path(scratch) / "ml-100k").rename(target)
    return target


def _download(folder: Path) -> Path:
    """Let pip download the wheel into a folder, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, WHEEL, "-d", str(folder)], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        msg = (
            f"pip could not download the wheel {WHEEL} that carries MovieLens-100K. Fetch "
            f"ml-100k by hand and name its folder as `local`. pip said: {done.stderr.strip()}"
        )
        raise RuntimeError(msg)
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """Read the three text files out of a verified wheel; nothing of it is imported or run."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        msg = f"The wheel of {WHEEL} must have sha256 {WHEEL_SHA256}. Found {found}; not kept."
        raise ValueError(msg)
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in RECBOLE_FILES:
            (folder / name).write_bytes(archive.read(f"{WHEEL_FOLDER}/{name}"))
    return folder


def _source_files(folder: Path) -> list[Path]:
    """Give the ratings, users and items files of whichever layout a folder has."""
    for names in (RECBOLE_FILES, GROUPLENS_FILES):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    msg = f"{folder} must hold {list(GROUPLENS_FILES)} or {list(RECBOLE_FILES)}."
    raise FileNotFoundError(msg)


def read(source: str | Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Read the ratings, users and items of either layout; both give the same frames.

    Parameters
    ----------
    source
        A folder as `fetch` returns it.

    Returns
    -------
    tuple of polars.DataFrame
        Ratings (user_id, item_id, rating, timestamp) in order of time, users and items.
    """
    paths = _source_files(Path(source))
    if paths[0].name == GROUPLENS_FILES[0]:
        ratings = _read_text(paths[0], "\t", RATING_COLUMNS)
        users = _read_text(paths[1], "|", USER_COLUMNS)
        flags = _read_text(paths[2], "|", ITEM_COLUMNS)
        listed = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES]
        items = flags.select(
            "item_id", "title", genres=pl.concat_str(listed, separator="|", ignore_nulls=True)
        )
    else:
        ratings, users, table = (_read_text(path, "\t") for path in paths)
        # RecBole cut the year off the title; together they are GroupLens' title again
        items = table.select(
            "item_id",
            title=pl.format("{} ({})", "movie_title", "release_year"),
            genres=pl.col("class").str.replace_all(" ", "|"),
        )
    ratings = ratings.select(
        pl.col("user_id", "item_id").cast(pl.Int32),
        pl.col("rating").cast(pl.Float32),
        pl.col("timestamp").cast(pl.Int64),
    ).sort("timestamp", "user_id", "item_id")
    if ratings.select("user_id", "item_id").is_duplicated().any():
        msg = f"{paths[0]} must hold one rating per user and item. Found repeated pairs."
        raise ValueError(msg)
    return ratings, _clean_users(users), _clean_items(items)


def _read_text(path: Path, separator: str, columns: tuple[str, ...] | None = None) -> pl.DataFrame:
    """Read a text table as strings; without `columns` the first line is RecBole's typed header."""
    raw = path.read_bytes()
    text = raw.decode("utf-8" if columns is None else "latin-1").strip("\n")
    frame = pl.read_csv(
        text.encode(),
        separator=separator,
        has_header=columns is None,
        new_columns=columns,
        infer_schema=False,
        quote_char=None,
    )
    return frame.rename(lambda name: name.split(":")[0])


def _clean_users(users: pl.DataFrame) -> pl.DataFrame:
    return users.select(
        pl.col("user_id").cast(pl.Int32),
        pl.col("age").cast(pl.Int16),
        pl.col("gender", "occupation"),
        # two characters are a region of a few states; five would name each user
        zip_prefix=pl.col("zip_code").str.slice(0, 2),
    ).sort("user_id")


def _clean_items(items: pl.DataFrame) -> pl.DataFrame:
    ending = r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$"  # "(1995)", or "(1995) (V)" for a video release
    unknown = r"^unk(?:no|on)wn\b"  # one film without a title; RecBole misspells the word
    title = pl.col("title")
    return items.select(
        pl.col("item_id").cast(pl.Int32),
        title=pl.when(~title.str.contains(unknown)).then(
            title.str.replace(ending, "").str.strip_chars()
        ),
        release_year=title.str.extract(ending).cast(pl.Int16),
        genres=pl.when(~pl.col("genres").is_in(["", "unknown"])).then("genres"),
    ).sort("item_id")


def _sample_negatives(
    ratings: pl.DataFrame, *, negatives_per_positive: int, popularity_share: float, seed: int
) -> pl.DataFrame:
    """Draw films as the module's docstring tells; a heavy user can run out of them."""
    rng = np.random.default_rng(seed)
    users, user = np.unique(ratings["user_id"].to_numpy(), return_inverse=True)
    items, first, item = np.unique(
        ratings["item_id"].to_numpy(), return_index=True, return_inverse=True
    )
    time = ratings["timestamp"].to_numpy()
    known = np.argsort(first)  # items in the order of their first rating
    # how much of the log, and how many items, the sampler may see at each rating
    warm_up = max(1, int(WARM_UP_SHARE * len(time)))
    seen_ratings = np.maximum(np.searchsorted(time, time, side="left"), warm_up)
    seen_items = np.searchsorted(first[known], seen_ratings, side="left")

    taken = np.zeros((len(users), len(items)), dtype=np.bool_)
    taken[user, item] = True
    pending = np.repeat(np.arange(len(time)), negatives_per_positive)
    origin: list[NDArray[np.int64]] = []
    drawn: list[NDArray[np.int64]] = []
    for _ in range(SAMPLING_ROUNDS):
        past = item[rng.integers(seen_ratings[pending])]
        uniform = known[rng.integers(seen_items[pending])]
        candidate = np.where(rng.random(len(pending)) < popularity_share, past, uniform)
        pair = user[pending] * len(items) + candidate
        accepted = np.zeros(len(pending), dtype=np.bool_)
        accepted[np.unique(pair, return_index=True)[1]] = True
        accepted &= ~taken.ravel()[pair]
        taken.ravel()[pair[accepted]] = True
        origin.append(pending[accepted])
        drawn.append(candidate[accepted])
        pending = pending[~accepted]
    if len(pending):
        logger.info("%d negatives left out: no film left to draw in time", len(pending))
    negatives = ratings[np.concatenate(origin)].select("user_id", "timestamp")
    return negatives.with_columns(item_id=items[np.concatenate(drawn)])


def _label(ratings: pl.DataFrame, negatives: pl.DataFrame) -> pl.DataFrame:
    """Put ratings and negatives in one table with context, labels and split."""
    time = ratings["timestamp"]
    # the split depends on the time alone, so rows of one second are never torn apart
    valid_from = time[int(TRAIN_SHARE * len(time))]
    test_from = time[int((TRAIN_SHARE + VALID_SHARE) * len(time))]
    when = pl.from_epoch("timestamp")
    rating = pl.col("rating")
    return (
        pl.concat([ratings, negatives], how="diagonal")
        .sort("timestamp", "user_id", "item_id")
        .select(
            pl.col("user_id", "item_id", "timestamp"),
            hour=when.dt.hour(),
            weekday=when.dt.weekday(),
            label_rating=rating,
            label_interest=(rating >= 4).cast(pl.Int8),
            label_ctr=rating.is_not_null().cast(pl.Int8),
            split=pl.when(pl.col("timestamp") < valid_from)
            .then(pl.lit("train"))
            .when(pl.col("timestamp") < test_from)
            .then(pl.lit("valid"))
            .otherwise(pl.lit("test")),
        )
    )


def prepare(
    source: str | Path,
    folder: str | Path,
    *,
    negatives_per_positive: int = 1,
    popularity_share: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write users.parquet, items.parquet and interactions.parquet for the package.

    Does nothing if the folder already holds the result of the same source and settings.

    Parameters
    ----------
    source
        A folder as `fetch` returns it.
    folder
        Where to write; made if missing.
    negatives_per_positive
        Sampled rows for each rating, at least 0.
    popularity_share, seed
        Share of the draws that follow popularity, 0 to 1, and the seed of all draws.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    ValueError
        If a setting is out of range, or the source rates a pair twice.
    """
    if negatives_per_positive < 0 or not 0 <= popularity_share <= 1:
        msg = f"{negatives_per_positive=} must be at least 0, {popularity_share=} in [0, 1]."
        raise ValueError(msg)
    folder = Path(folder)
    content = b"".join(path.read_bytes() for path in _source_files(Path(source)))
    settings = {
        "version": OUTPUT_VERSION,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "negatives_per_positive": negatives_per_positive,
        "popularity_share": popularity_share,
        "seed": seed,
    }
    stamp = folder / "settings.json"
    done = all((folder / name).is_file() for name in (*OUTPUT_FILES, stamp.name))
    if done and json.loads(stamp.read_text()) == settings:
        logger.info("%s is up to date", folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # written last: without it the tables count as unfinished
    ratings, users, items = read(source)
    negatives = _sample_negatives(
        ratings,
        negatives_per_positive=negatives_per_positive,
        popularity_share=popularity_share,
        seed=seed,
    )
    interactions = _label(ratings, negatives)
    for name, table in zip(OUTPUT_FILES, (users, items, interactions), strict=True):
        table.write_parquet(folder / name)
    stamp.write_text(json.dumps(settings, indent=1) + "\n")
    summary = _describe(interactions).write_csv(separator="\t", float_precision=3)
    logger.info("%s\n%s", LABELS, summary)
    return folder


def _describe(interactions: pl.DataFrame) -> pl.DataFrame:
    """Count rows, label rates and what each split shares with train (known)."""
    train = interactions.filter(split="train")
    known_user = pl.col("user_id").is_in(train["user_id"].unique().implode())
    known_item = pl.col("item_id").is_in(train["item_id"].unique().implode())
    return interactions.group_by("split", maintain_order=True).agg(
        rows=pl.len(),
        ratings=pl.sum("label_ctr").cast(pl.Int64),
        rating_mean=pl.mean("label_rating"),
        interest_rate=pl.mean("label_interest"),
        ctr_rate=pl.mean("label_ctr"),
        users=pl.n_unique("user_id"),
        known_users=pl.col("user_id").filter(known_user).n_unique(),
        rows_of_known_users=known_user.mean(),
        rows_of_known_items=known_item.mean(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and prepare MovieLens-100K.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--local", type=Path, help="an ml-100k folder you already have")
    parser.add_argument("--negatives-per-positive", type=int, default=1)
    parser.add_argument("--popularity-share", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(NOTICE)
    prepare(
        fetch(options.out, options.local),
        options.out,
        negatives_per_positive=options.negatives_per_positive,
        popularity_share=options.popularity_share,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
