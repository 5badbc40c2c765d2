"""An entry is found again as long as it is what encoding would give, and by one process or many."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from recsys_mtl.encoding import Encoder, cache
from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import Binary, Numeric, Schema

NUM_ROWS = 120
WRITERS = """
import sys, time
from pathlib import Path
from recsys_mtl.encoding import EncodedCache, Encoder
from recsys_mtl.schema import Bag, Binary, Categorical, Schema
schema = Schema(context=[Categorical("hour"), Bag("words")], tasks=[Binary("ctr", label="click")])
rows, folder, name = sys.argv[1:]
encoder = Encoder(schema).fit(rows)
Path(name).touch()
while not Path(folder, "..", "go").exists():
    time.sleep(0.001)
batch = EncodedCache(folder).batch(encoder, rows, chunk_rows=100)
print(int(batch.parts[0].block.ids.sum()), int(batch.parts[0].block.lists[0].values.sum()))
"""


def refuse_to_encode(monkeypatch: pytest.MonkeyPatch):
    def chunks(*_: Any, **__: Any):
        raise AssertionError

    monkeypatch.setattr(Encoder, "chunks", chunks)


def test_second_call_does_not_encode(star: Any, monkeypatch: pytest.MonkeyPatch):
    encoder = Encoder(star.schema).fit(star.scan())
    whole = encoder.encode(star.scan())
    star.cache().batch(encoder, star.scan())
    refuse_to_encode(monkeypatch)
    star.assert_same(star.cache().batch(encoder, star.scan()), whole)


def test_saved_encoder_in_another_process_finds_the_entry(star: Any):
    path = str(star.folder / "rows.parquet")
    star.interactions.drop_nulls("click").write_parquet(path)
    rows = scan(path)
    star.cache().batch(Encoder(star.flat).fit(rows), rows)
    (star.folder / "go").touch()
    run = [sys.executable, "-c", WRITERS, path, str(star.folder / "cache"), str(star.folder / "a")]
    subprocess.run(run, check=True, capture_output=True, timeout=120)
    assert len(star.entries()) == 1


def rewritten_file(star: Any):
    changed = star.interactions.with_columns(pl.col("hour").fill_null(3))
    changed.write_parquet(star.folder / "rows.parquet")
    return star.scan()


def rewritten_side_table(star: Any):
    star.users.with_columns(city=pl.lit("c1")).write_parquet(star.folder / "users.parquet")
    return star.scan()


def file_patched_in_place_with_its_old_time(star: Any):
    path = star.folder / "rows.parquet"
    before = path.stat()
    with path.open(
        "r+b"
    ) as stream:  # the first byte belongs to the magic number, its change is harmless
        stream.write(b"P")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return star.scan()


@pytest.mark.parametrize(
    "change", [rewritten_file, rewritten_side_table, file_patched_in_place_with_its_old_time]
)
def test_changed_file_is_encoded_again(star: Any, change: Callable[[Any], Rows]):
    encoder = Encoder(star.schema).fit(star.scan())
    star.cache().batch(encoder, star.scan())
    rows = change(star)
    star.assert_same(star.cache().batch(encoder, rows), encoder.encode(rows))
    assert len(star.entries()) == 2


def test_rows_opened_before_a_file_was_added_are_read_with_it(star: Any):
    folder = star.folder / "parts"
    folder.mkdir()
    some = star.interactions.drop_nulls("click")
    some.write_parquet(folder / "1.parquet")
    rows = scan(str(folder))
    encoder = Encoder(star.flat).fit(rows)
    assert star.cache().batch(encoder, rows).num_rows == some.height
    some.write_parquet(folder / "2.parquet")
    for opened in (rows, scan(str(folder))):
        assert star.cache().batch(encoder, opened).num_rows == 2 * some.height


def test_other_filter_has_its_own_entry(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    for condition in (pl.col("weight") > 0.5, pl.col("weight") > float("inf"), "weight <= 0.5"):
        rows = star.scan().filter(condition)
        star.assert_same(star.cache().batch(encoder, rows), encoder.encode(rows))
    early, late = star.scan(), star.scan()
    joined = early.filter("hour < 9").concat(early.filter("hour >= 9"))
    star.assert_same(star.cache().batch(encoder, joined), encoder.encode(joined))
    star.cache().batch(encoder, late)
    assert len(star.entries()) == 5


def test_other_encoder_has_its_own_entry(star: Any):
    rows = star.scan()
    other_tasks = Schema(
        user=star.schema.user,
        item=star.schema.item,
        context=star.schema.context,
        tasks=star.schema.tasks[:1],
    )
    for encoder in (
        Encoder(star.schema).fit(rows),
        Encoder(star.schema).fit(rows.filter("hour > 12")),
        Encoder(other_tasks).fit(rows),
    ):
        star.assert_same(star.cache().batch(encoder, rows), encoder.encode(rows))
    encoder = Encoder(star.schema).fit(rows)
    star.assert_same(
        star.cache().batch(encoder, rows, labels="none"), encoder.encode(rows, labels="none")
    )
    assert len(star.entries()) == 4


def test_other_arrays_of_the_encoder_are_seen(star: Any):
    """Quantile edges are learned arrays; all else that is learned here is alike."""
    schema = Schema(
        context=[Numeric("weight", num_quantiles=4)], tasks=[Binary("ctr", label="click")]
    )
    rows = scan(str(star.folder / "rows.parquet")).filter("click is not null")
    for condition in ("weight < 0.5", "weight >= 0.5"):
        encoder = Encoder(schema).fit(rows.filter(condition))
        star.assert_same(star.cache().batch(encoder, rows), encoder.encode(rows))
    assert len(star.entries()) == 2


def test_file_that_changes_while_it_is_read_leaves_no_entry(
    star: Any, monkeypatch: pytest.MonkeyPatch
):
    encoder, rows = Encoder(star.schema).fit(star.scan()), star.scan()
    write = cache.write_entry

    def write_late(*arguments: Any):
        write(*arguments)
        rewritten_file(star)

    monkeypatch.setattr(cache, "write_entry", write_late)
    with pytest.raises(EncodingError, match="must not change while they are read"):
        star.cache().batch(encoder, rows)
    assert star.entries() == []


def test_two_processes_at_once_write_one_entry(star: Any):
    path = str(star.folder / "rows.parquet")
    some = pl.concat([star.interactions.drop_nulls("click")] * 30)
    some.write_parquet(path)
    folder = star.folder / "cache"
    folder.mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITERS, path, str(folder), str(star.folder / name)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    until = time.monotonic() + 60
    while not all((star.folder / name).exists() for name in ("a", "b")):
        assert time.monotonic() < until
        time.sleep(0.01)
    (star.folder / "go").touch()
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    block = Encoder(star.flat).fit_encode(some).parts[0].block
    assert printed == [f"{block.ids.sum()} {block.lists[0].values.sum()}\n"] * 2
    assert len(star.entries()) == 1


def test_entry_of_a_faster_process_stays(star: Any, monkeypatch: pytest.MonkeyPatch):
    encoder = Encoder(star.schema).fit(star.scan())
    write = cache.write_entry

    def outrun(*arguments: Any):
        monkeypatch.setattr(cache, "write_entry", write)
        star.cache().batch(encoder, star.scan())
        ((theirs),) = (path for path in star.entries() if len(path.name) == 64)
        (theirs / "theirs").touch()
        write(*arguments)

    monkeypatch.setattr(cache, "write_entry", outrun)
    star.assert_same(star.cache().batch(encoder, star.scan()), encoder.encode(star.scan()))
    (entry,) = star.entries()
    assert (entry / "theirs").exists()


def test_error_while_writing_leaves_nothing(star: Any):
    star.interactions.with_columns(click=pl.lit(7)).write_parquet(star.folder / "rows.parquet")
    encoder = Encoder(star.schema).fit(star.scan())
    with pytest.raises(EncodingError, match="must hold 0 or 1"):
        star.cache().batch(encoder, star.scan())
    assert star.entries() == []


def test_what_a_crash_left_goes_after_a_day(star: Any):
    held = star.cache()
    old, old_but_written, young = (held.folder / f".writing-{name}" for name in "abc")
    yesterday = time.time() - 25 * 3600
    for left in (old, old_but_written, young):
        left.mkdir(parents=True)
        (left / "labels.bin").write_bytes(b"half")
    os.utime(old / "labels.bin", (yesterday, yesterday))
    for left in (old, old_but_written):
        os.utime(left, (yesterday, yesterday))
    encoder = Encoder(star.schema).fit(star.scan())
    star.assert_same(held.batch(encoder, star.scan()), encoder.encode(star.scan()))
    assert not old.exists()
    assert old_but_written.exists()
    assert young.exists()


def test_rows_from_memory_are_refused(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    rows = scan(star.interactions, users=star.users, items=star.items)
    with pytest.raises(EncodingError, match="Write the rows to parquet first"):
        star.cache().batch(encoder, rows)
    assert star.entries() == []


def test_progress_counts_the_rows(star: Any, capsys: pytest.CaptureFixture[str]):
    encoder = Encoder(star.schema).fit(star.scan())
    star.cache().batch(encoder, star.scan(), chunk_rows=50, progress=True)
    assert f"{NUM_ROWS}rows" in capsys.readouterr().err
