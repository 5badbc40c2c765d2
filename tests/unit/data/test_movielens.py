"""Preparing MovieLens, on a hand-made log in both layouts; nothing is downloaded."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import movielens

ITEMS = [  # title as GroupLens writes it, title and year as RecBole does, genres
    ("Toy Story (1995)", "Toy Story", "1995", "Animation Children's Comedy"),
    ("Misérables, Les (1995)", "Misérables, Les", "1995", "Drama Musical"),
    ("Say \"Yes\" (1996)", "Say \"Yes\"", "1996", "Film-Noir Sci-Fi"),
    ("unknown", "unkonwn", "unkonwn", "unknown"),
    ("Land, The (1995) (V)", "Land, The (1995)", "V", "Children's"),
    ("Good Morning (1971)", "Good Morning", "1971", "unknown"),
]  # fmt: skip
NUM_USERS, NUM_ITEMS = 20, 40
USERS = [(user, 20 + user, "MF"[user % 2], "writer", f"0{user:04d}") for user in range(1, 21)]


def make_ratings():
    rng = np.random.default_rng(0)
    weight = np.tile(1 / np.arange(2, NUM_ITEMS + 2), NUM_USERS)  # the first films are popular
    pairs = rng.choice(weight.size, 300, replace=False, p=weight / weight.sum())
    frame = pl.DataFrame({"user_id": pairs // NUM_ITEMS + 1, "item_id": pairs % NUM_ITEMS + 1})
    rating = rng.integers(1, 6, len(frame))
    # several ratings share a second
    second = 880_000_000 + 5_000 * rng.integers(150, size=len(frame))
    return frame.with_columns(rating=rating, timestamp=second)


def item_rows():
    filler = [
        (f"Film {n} (1990)", f"Film {n}", "1990", "War") for n in range(len(ITEMS), NUM_ITEMS)
    ]
    return [(number, *row) for number, row in enumerate([*ITEMS, *filler], start=1)]


def write_recbole(folder: Path):
    folder.mkdir()
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    ratings += ["\t".join(map(str, row)) for row in make_ratings().iter_rows()]
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += ["\t".join(map(str, row)) for row in USERS]
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [f"{number}\t{title}\t{year}\t{tags}" for number, _, title, year, tags in item_rows()]
    for name, lines in zip(("inter", "user", "item"), (ratings, users, items), strict=True):
        (folder / f"ml-100k.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_grouplens(folder: Path):
    folder.mkdir()
    # another order of rows must not matter
    ratings = ["\t".join(map(str, row)) for row in make_ratings().reverse().iter_rows()]
    users = ["|".join(map(str, row)) for row in USERS]
    items = []
    for number, title, _, _, tags in item_rows():
        flags = "|".join(str(int(genre in tags.split())) for genre in movielens.GENRES)
        items.append(f"{number}|{title}|01-Jan-1995||http://example.org/?{number}|{flags}")
    for name, lines in zip(("data", "user", "item"), (ratings, users, items), strict=True):
        (folder / f"u.{name}").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


@pytest.fixture
def source(tmp_path: Path):
    return write_recbole(tmp_path / "recbole")


def read_tables(folder: Path):
    return [pl.read_parquet(folder / name) for name in movielens.OUTPUT_FILES]


def prepared(source: Path, tmp_path: Path, **settings: float):
    return read_tables(movielens.prepare(source, tmp_path / "out", **settings))


def test_both_layouts_give_the_same_tables(source: Path, tmp_path: Path):
    other = write_grouplens(tmp_path / "grouplens")
    left = prepared(source, tmp_path)
    right = read_tables(movielens.prepare(other, tmp_path / "other"))
    for table, twin in zip(left, right, strict=True):
        assert table.equals(twin)
        assert table.schema == twin.schema


def test_titles_years_and_genres_are_read(source: Path, tmp_path: Path):
    items = prepared(source, tmp_path)[1].head(6)
    titles = ["Toy Story", "Misérables, Les", 'Say "Yes"', None, "Land, The", "Good Morning"]
    assert items["title"].to_list() == titles
    assert items["release_year"].to_list() == [1995, 1995, 1996, None, 1995, 1971]
    genres = ["Animation|Children's|Comedy", "Drama|Musical", "Film-Noir|Sci-Fi", None]
    assert items["genres"].to_list() == [*genres, "Children's", None]


def test_users_keep_only_the_start_of_the_zip_code(source: Path, tmp_path: Path):
    users = prepared(source, tmp_path)[0]
    assert users.columns == ["user_id", "age", "gender", "occupation", "zip_prefix"]
    assert users.row(0) == (1, 21, "F", "writer", "00")


def test_labels_follow_the_rating(source: Path, tmp_path: Path):
    log = prepared(source, tmp_path)[2]
    rated = log.filter(label_ctr=1).sort("user_id", "item_id")
    truth = make_ratings().sort("user_id", "item_id")
    assert rated["label_rating"].to_list() == truth["rating"].to_list()
    assert rated["timestamp"].to_list() == truth["timestamp"].to_list()
    assert rated["label_interest"].to_list() == (truth["rating"] >= 4).cast(pl.Int8).to_list()
    sampled = log.filter(label_ctr=0)
    assert sampled["label_rating"].null_count() == len(sampled)
    assert sampled["label_interest"].null_count() == len(sampled)
    assert log["label_ctr"].null_count() == 0
    assert log.schema["label_rating"] == pl.Float32
    assert log.schema["label_ctr"] == log.schema["label_interest"] == pl.Int8


def test_hour_and_weekday_are_utc(source: Path, tmp_path: Path):
    log = prepared(source, tmp_path)[2]
    assert (log["hour"] == log["timestamp"] // 3600 % 24).all()
    assert (log["weekday"] == (log["timestamp"] // 86400 + 3) % 7 + 1).all()  # 1970 began Thursday


@pytest.mark.parametrize("popularity_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("negatives_per_positive", [1, 3])
def test_negatives_are_never_rated_and_never_repeat(
    source: Path, tmp_path: Path, popularity_share: float, negatives_per_positive: int
):
    settings = {"popularity_share": popularity_share, "seed": 5}
    log = prepared(source, tmp_path, negatives_per_positive=negatives_per_positive, **settings)[2]
    assert log.select("user_id", "item_id").is_unique().all()
    counts = log.group_by("user_id", "timestamp").agg(
        positives=pl.col("label_ctr").sum(), rows=pl.len()
    )
    assert (counts["positives"] > 0).all()
    assert (counts["rows"] <= counts["positives"] * (1 + negatives_per_positive)).all()
    assert (log["label_ctr"] == 0).sum() > 0.9 * (log["label_ctr"] == 1).sum()


def test_negatives_were_rated_before_by_somebody(source: Path, tmp_path: Path):
    log = prepared(source, tmp_path, negatives_per_positive=2)[2]
    times = make_ratings()["timestamp"].sort()
    end_of_warm_up = times[len(times) // 10 - 1]
    first = make_ratings().group_by(pl.col("item_id").cast(pl.Int32)).agg(first=pl.min("timestamp"))
    sampled = log.filter(label_ctr=0).join(first, on="item_id")
    assert len(sampled) == (log["label_ctr"] == 0).sum()
    earlier = sampled["first"] < sampled["timestamp"]
    assert (earlier | (sampled["first"] <= end_of_warm_up)).all()
    assert earlier.mean() < 1  # the warm-up was needed


def test_popular_draws_take_popular_films(source: Path, tmp_path: Path):
    popularity = make_ratings().group_by(pl.col("item_id").cast(pl.Int32)).len("popularity")

    def mean_popularity(share: float) -> float:
        out = tmp_path / f"share{share}"
        movielens.prepare(source, out, popularity_share=share)
        sampled = read_tables(out)[2].filter(label_ctr=0)
        return sampled.join(popularity, on="item_id")["popularity"].mean()

    assert mean_popularity(1.0) > mean_popularity(0.5) > mean_popularity(0.0)


def test_split_depends_on_the_time_alone(source: Path, tmp_path: Path):
    log = prepared(source, tmp_path)[2]
    assert log["timestamp"].is_sorted()
    assert log["split"].rle().struct.field("value").to_list() == ["train", "valid", "test"]
    assert log.group_by("timestamp").agg(pl.col("split").n_unique())["split"].max() == 1
    shares = log.filter(label_ctr=1)["split"].value_counts(normalize=True)
    assert dict(shares.iter_rows()) == pytest.approx(
        {"train": 0.8, "valid": 0.1, "test": 0.1}, abs=0.02
    )


def test_same_seed_same_bytes_and_another_seed_differs(source: Path, tmp_path: Path):
    written = [
        movielens.prepare(source, tmp_path / str(n), seed=s) for n, s in enumerate((7, 7, 8))
    ]
    first, again, other = ((folder / "interactions.parquet").read_bytes() for folder in written)
    assert first == again
    assert first != other


def test_no_negatives_leaves_the_ratings(source: Path, tmp_path: Path):
    log = prepared(source, tmp_path, negatives_per_positive=0)[2]
    assert len(log) == len(make_ratings())
    assert log["label_ctr"].min() == 1


def test_second_run_writes_only_what_is_missing_or_changed(source: Path, tmp_path: Path):
    out = movielens.prepare(source, tmp_path / "out")
    log = out / "interactions.parquet"
    before = log.read_bytes()
    log.write_bytes(b"kept")
    movielens.prepare(source, out)
    assert log.read_bytes() == b"kept"
    log.unlink()
    movielens.prepare(source, out)
    assert log.read_bytes() == before
    movielens.prepare(source, out, seed=1)
    assert log.read_bytes() != before


@pytest.mark.parametrize("settings", [{"negatives_per_positive": -1}, {"popularity_share": 1.5}])
def test_settings_out_of_range_are_refused(
    source: Path, tmp_path: Path, settings: dict[str, float]
):
    with pytest.raises(ValueError, match=next(iter(settings))):
        movielens.prepare(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_pair_rated_twice_is_refused(source: Path, tmp_path: Path):
    ratings = source / "ml-100k.inter"
    lines = ratings.read_text().splitlines()
    ratings.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="repeated pairs"):
        movielens.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out" / "settings.json").exists()


def pip_that_leaves(content: bytes | None, code: int = 0) -> Callable[..., object]:
    def run(command: list[str], **options: object) -> object:
        assert "--no-deps" in command
        assert "shell" not in options
        folder = Path(command[command.index("-d") + 1])
        if content is not None:
            (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, code, stdout="", stderr="no such wheel")

    return run


def make_wheel(source: Path, path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in movielens.RECBOLE_FILES:
            archive.write(source / name, f"{movielens.WHEEL_FOLDER}/{name}")
    return path.read_bytes()


def test_wheel_with_another_checksum_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(movielens.subprocess, "run", pip_that_leaves(b"something else"))
    with pytest.raises(ValueError, match="must have sha256 9c99"):
        movielens.fetch(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(movielens.subprocess, "run", pip_that_leaves(None, code=1))
    with pytest.raises(RuntimeError, match=r"(?s)`local`.*no such wheel"):
        movielens.fetch(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_fetched_files_are_those_of_the_wheel_and_are_fetched_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = make_wheel(source, tmp_path / "made.whl")
    monkeypatch.setattr(movielens, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(movielens.subprocess, "run", pip_that_leaves(content))
    folder = movielens.fetch(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted(movielens.RECBOLE_FILES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ml-100k"]
    monkeypatch.setattr(movielens.subprocess, "run", None)
    assert movielens.fetch(tmp_path / "out") == folder


def test_local_folder_without_the_files_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"u\.data"):
        movielens.fetch(tmp_path / "out", tmp_path)


def test_script_cites_the_source_and_says_how_labels_are_made(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    command = ["movielens.py", "--out", str(tmp_path / "out"), "--local", str(source)]
    monkeypatch.setattr(sys, "argv", command)
    caplog.set_level("INFO")
    movielens.main()
    printed = capsys.readouterr().out
    assert "Harper" in printed
    assert "no redistribution" in printed
    assert "label_ctr: 1 = rated, 0 = sampled" in caplog.text
    assert "known_users" in caplog.text
    assert len(read_tables(tmp_path / "out")) == 3
