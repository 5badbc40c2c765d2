"""Training from encoded rows on disk: the same rows, in windows, whatever their number."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recsys_mtl import Checkpoints, DiskCache, scan
from recsys_mtl.config import read_config
from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError

PROBE = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
from recsys_mtl import Binary, Categorical, DiskCache, MultiTaskRanker, Numeric, Schema, SharedBottom

folder, num_rows = Path(sys.argv[1]), int(sys.argv[2])

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def rows(count):
    draw = np.random.default_rng(0)
    frame = {f"id{n}": draw.integers(0, 1000, count) for n in range(20)}
    frame |= {f"x{n}": draw.random(count, dtype=np.float32) for n in range(8)}
    return pl.DataFrame(frame | {"click": draw.integers(0, 2, count)})

schema = Schema(
    context=[
        *(Categorical(f"id{n}") for n in range(20)),
        *(Numeric(f"x{n}", scaling="standard") for n in range(8)),
    ],
    tasks=[Binary("ctr", label="click")],
)
folder.mkdir()
pl.concat([rows(1 << 17)] * (num_rows >> 17)).write_parquet(folder / "rows.parquet", row_group_size=1 << 16)
cache = DiskCache(str(folder / "cache"), memory_mib=16)
ranker = MultiTaskRanker(
    schema, sharing=SharedBottom(dims=(8,)), embedding_dim=4, batch_size=4096, max_epochs=1,
    random_state=0, device="cpu", observe_every=0,
)
rows(1 << 16).write_parquet(folder / "few.parquet")
ranker.fit(str(folder / "few.parquet"), cache=cache)  # what the libraries need for themselves
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = kilobytes("VmRSS")
ranker.fit(str(folder / "rows.parquet"), cache=cache)
size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
print(size >> 20, (kilobytes("VmHWM") - before) >> 10)
"""


def test_a_model_from_disk_is_as_good_as_one_from_memory(make, log, folder: Path, tmp_path) -> None:
    rows = scan(
        folder / "interactions.parquet",
        users=folder / "users.parquet",
        items=folder / "items.parquet",
    )
    train, valid = rows.filter("split = 'train'"), rows.filter("split = 'valid'")
    settings = {"max_epochs": 3, "batch_size": 256}
    cache = DiskCache(str(tmp_path / "cache"), memory_mib=1)
    memory = make(**settings).fit(train, valid=valid)
    disk = make(**settings).fit(train, valid=valid, cache=cache)
    again = make(**settings).fit(train, valid=valid, cache=cache)
    test = log.rows(log.part("test"))
    assert disk.predict(test).equals(again.predict(test))
    for task in ("ctr", "interest"):
        found, expected = (one.evaluate(test).value(task, "auc") for one in (disk, memory))
        assert found == pytest.approx(expected, abs=0.02)
    entries = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(entries) == 2  # of train and of valid; the second fit found them


def test_a_run_from_disk_goes_on_after_a_break_and_only_with_its_own_memory(
    make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys_mtl.training import CheckpointFile

    rows = scan(
        folder / "interactions.parquet",
        users=folder / "users.parquet",
        items=folder / "items.parquet",
    )
    cache = DiskCache(str(tmp_path / "cache"), memory_mib=1)
    kept = Checkpoints(str(tmp_path / "run"), every_steps=7)
    settings = {"max_epochs": 2, "batch_size": 256}
    whole = make(**settings).fit(rows, cache=cache)
    save, left = CheckpointFile.save, iter(range(6))

    def dying(file: CheckpointFile, *arguments: object) -> None:
        save(file, *arguments)  # type: ignore[arg-type] # passed on as they are
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointFile, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        make(**settings).fit(rows, cache=cache, checkpoints=kept)
    monkeypatch.undo()
    other = DiskCache(str(tmp_path / "cache"), memory_mib=2)
    with pytest.raises(ModelDirError, match="memory_mib was 1, and is 2"):
        make(**settings).fit(rows, cache=other, checkpoints=kept)
    resumed = make(**settings).fit(rows, cache=cache, checkpoints=kept)
    test = pl.read_parquet(folder / "interactions.parquet").filter(pl.col("split") == "test")
    tables = {"users": folder / "users.parquet", "items": folder / "items.parquet"}
    one, two = (ranker.predict(scan(test, **tables)) for ranker in (whole, resumed))
    assert one.equals(two)


def test_tables_in_memory_are_refused(make, log, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="must come from parquet files"):
        make().fit(log.rows(log.part("train")), cache=DiskCache(str(tmp_path)))


@pytest.mark.parametrize("path", [str, Path])
def test_a_folder_alone_is_a_cache_with_the_usual_memory(
    path, make, folder: Path, tmp_path
) -> None:
    rows = scan(
        folder / "interactions.parquet",
        users=folder / "users.parquet",
        items=folder / "items.parquet",
    )
    one = make(max_epochs=1).fit(rows, cache=path(tmp_path / "one"))
    two = make(max_epochs=1).fit(rows, cache=DiskCache(str(tmp_path / "two")))
    assert one.predict(rows).equals(two.predict(rows))


def test_days_are_trained_on_from_a_cache(make, folder: Path, tmp_path) -> None:
    rows = scan(
        folder / "interactions.parquet",
        users=folder / "users.parquet",
        items=folder / "items.parquet",
    )
    days = [rows.filter("split = 'train'"), rows.filter("split = 'valid'")]
    cache = DiskCache(str(tmp_path / "cache"), memory_mib=1)
    disk, memory = (make(batch_size=256, max_epochs=1) for _ in range(2))
    for day in days:
        disk.partial_fit(day, cache=cache)
        memory.partial_fit(day)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2
    found, expected = (one.evaluate(days[1]).value("ctr", "auc") for one in (disk, memory))
    assert found == pytest.approx(expected, abs=0.03)


def test_too_little_memory_is_refused_in_words_of_the_setting(make, folder: Path, tmp_path) -> None:
    rows = scan(
        folder / "interactions.parquet",
        users=folder / "users.parquet",
        items=folder / "items.parquet",
    )
    cache = DiskCache(str(tmp_path / "cache"), memory_mib=1)
    with pytest.raises(SchemaError, match=r"memory_mib must be at least \d.* Found 1: ") as refused:
        make(batch_size=20_000).fit(rows, cache=cache)
    least = int(re.findall(r"at least (\d+)", str(refused.value))[0])
    enough = DiskCache(str(tmp_path / "cache"), memory_mib=least)
    make(batch_size=20_000, max_epochs=1).fit(rows, cache=enough)


def test_a_config_names_a_cache_beside_it(tmp_path: Path) -> None:
    pl.DataFrame({"hour": [1, 2], "click": [0, 1]}).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "config.toml").write_text(
        """
        tables = { interactions = "rows.parquet" }
        run = { cache = { folder = "encoded", memory_mib = 64 } }
        [schema]
        context = [{ kind = "categorical", name = "hour" }]
        tasks = [{ kind = "binary", name = "ctr", label = "click" }]
        """
    )
    cache = read_config(tmp_path / "config.toml").run.cache
    assert cache == DiskCache(str(tmp_path / "encoded"), memory_mib=64)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc"
)
def test_memory_of_a_fit_does_not_grow_with_its_rows(tmp_path: Path) -> None:
    """The larger of two fits has far more than 10 times its budget of encoded rows.

    What remains is what polars reads ahead and its allocator keeps.
    """
    sizes, grown = [], []
    for number, num_rows in enumerate((1 << 20, 1 << 22)):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(tmp_path / str(number)), str(num_rows)],
            capture_output=True,
            text=True,
            check=True,
        )
        size_mib, peak_mib = map(int, done.stdout.split())
        sizes.append(size_mib)
        grown.append(peak_mib)
    assert sizes[1] - sizes[0] > 400
    assert grown[1] - grown[0] < 128, grown
