"""Parquet to parquet: whole, in order, the same bytes however often it was cut off."""

import itertools
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from recsys_mtl import score_parquet, scoring
from recsys_mtl.errors import EncodingError
from recsys_mtl.serving.run import Feed
from recsys_mtl.serving.store import Store


@pytest.mark.parametrize("part_rows", [50, 120, 5000])
def test_scores_are_those_of_the_scorer_in_order(scorer, table, folder, tmp_path, part_rows):
    summary = score_parquet(
        scorer, folder, tmp_path / "s.parquet", part_rows=part_rows, keep=["click"]
    )
    found = pl.read_parquet(tmp_path / "s.parquet")
    assert (summary.rows_in, summary.rows_out) == (1000, 1000)
    names = ["user_id", "item_id", "click"]
    assert found.select(names).equals(table.select(names))
    expected = scorer.score(table)["ctr"].to_numpy()
    np.testing.assert_allclose(found["ctr"].to_numpy(), expected, atol=1e-6)


def test_a_run_cut_off_goes_on_and_ends_with_the_same_bytes(scorer, folder, tmp_path, monkeypatch):
    score_parquet(scorer, folder, tmp_path / "whole.parquet", part_rows=50)
    part, calls = Store.part, []

    def cut(self, one, schema):
        calls.append(one.number)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return part(self, one, schema)

    monkeypatch.setattr(Store, "part", cut)
    with pytest.raises(KeyboardInterrupt):
        score_parquet(scorer, folder, tmp_path / "s.parquet", part_rows=50)
    assert not (tmp_path / "s.parquet").exists()
    summary = score_parquet(scorer, folder, tmp_path / "s.parquet", part_rows=50)
    assert summary.resumed == 7
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_run_that_goes_on_reads_as_many_rows_at_once_as_it_began_with(
    scorer, table, tmp_path, monkeypatch
):
    """A bit of a score could differ between parts that were cut into other batches."""
    score_parts, at_once = scoring.score_parts, []

    def cut(work, feed, forward, chunk_rows, told):
        at_once.append(chunk_rows)
        if len(at_once) > 1:
            return score_parts(work, feed, forward, chunk_rows, told)
        score_parts(work, Feed(itertools.islice(feed, 2)), forward, chunk_rows, told)
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_parts", cut)
    rows = tmp_path / "rows.parquet"
    wide = table.with_columns(note=pl.lit("x" * 200))  # so that memory allows few rows
    wide.write_parquet(rows, row_group_size=250)
    options = {"keep": ["note"], "part_rows": 250}
    with pytest.raises(KeyboardInterrupt):
        score_parquet(scorer, rows, tmp_path / "s.parquet", **options, memory_mib=64)
    score_parquet(scorer, rows, tmp_path / "s.parquet", **options, memory_mib=1024)
    score_parquet(scorer, rows, tmp_path / "other.parquet", **options, memory_mib=1024)
    assert at_once[0] == at_once[1] < at_once[2]


def test_a_broken_row_group_is_named_or_its_file_left_out(scorer, table, folder, tmp_path, damage):
    damage(folder / "2.parquet", 3)
    with pytest.raises(EncodingError, match=r"2\.parquet, row group 3"):
        score_parquet(scorer, folder, tmp_path / "s", part_rows=50)
    assert not (tmp_path / "s").exists()
    summary = score_parquet(scorer, folder, tmp_path / "s", part_rows=50, on_error="skip-file")
    assert [os.path.basename(file) for file, _ in summary.quarantined] == ["2.parquet"]
    kept = pl.concat([table.head(500), table.tail(250)])
    assert pl.read_parquet(tmp_path / "s")["user_id"].equals(kept["user_id"])


def test_a_full_disk_is_told_and_leaves_no_half_part(scorer, folder, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(OSError, match="Make room"):
            score_parquet(scorer, folder, tmp_path / "s.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["rows"]


def test_other_scores_are_not_overwritten_unasked(scorer, table, folder, tmp_path):
    score_parquet(scorer, folder, tmp_path / "s.parquet")
    with pytest.raises(FileExistsError, match="overwrite"):
        score_parquet(scorer, folder, tmp_path / "s.parquet", dtype="float16")
    score_parquet(scorer, folder, tmp_path / "s.parquet", dtype="float16", overwrite=True)
    with pytest.raises(FileExistsError, match="read as the interactions"):
        score_parquet(scorer, folder, folder / "0.parquet", overwrite=True)


def test_the_scorer_gives_the_same_bits_to_eight_threads(scorer, table):
    expected = scorer.score(table)
    with ThreadPoolExecutor(8) as pool:
        assert all(one.equals(expected) for one in pool.map(scorer.score, [table] * 32))
