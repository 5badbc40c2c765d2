import os

import polars as pl
import pytest
from pyarrow import parquet

from recsys_mtl.errors import EncodingError
from recsys_mtl.serving import score_to_parquet


class _Stops:
    """A scorer that raises after the first frame."""

    def __init__(self, scorer, error) -> None:
        self.scorer, self.error = scorer, error

    def frames(self, rows, *, chunk_rows):
        yield next(self.scorer.frames(rows, chunk_rows=chunk_rows))
        raise self.error


def test_the_file_holds_exactly_the_scores_in_order(scorer, table, tmp_path):
    count = score_to_parquet(scorer, table, tmp_path / "scores.parquet")
    assert count == table.height
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(scorer.score(table))
    assert os.listdir(tmp_path) == ["scores.parquet"]


def test_each_chunk_is_a_row_group(scorer, table, tmp_path):
    score_to_parquet(scorer, table, tmp_path / "scores.parquet", chunk_rows=300)
    meta = parquet.ParquetFile(tmp_path / "scores.parquet").metadata
    assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == [300, 300, 300, 100]


def test_an_empty_table_gives_a_file_without_rows_and_the_same_columns(scorer, table, tmp_path):
    assert score_to_parquet(scorer, table.clear(), tmp_path / "scores.parquet") == 0
    written = pl.read_parquet(tmp_path / "scores.parquet")
    assert written.height == 0
    assert written.schema == scorer.score(table).schema


def test_a_file_that_was_there_is_replaced(scorer, table, tmp_path):
    (tmp_path / "scores.parquet").write_text("old")
    score_to_parquet(scorer, table, tmp_path / "scores.parquet")
    assert pl.read_parquet(tmp_path / "scores.parquet").height == table.height


def test_a_table_that_is_read_is_never_overwritten(scorer, table, tmp_path):
    file = tmp_path / "rows.parquet"
    table.write_parquet(file)
    with pytest.raises(FileExistsError, match="read as the interactions"):
        score_to_parquet(scorer, file, tmp_path / ".." / tmp_path.name / "rows.parquet")
    assert pl.read_parquet(file).equals(table)


def test_folders_on_the_way_are_made(scorer, table, tmp_path):
    score_to_parquet(scorer, table, tmp_path / "a" / "b" / "scores.parquet")
    assert pl.read_parquet(tmp_path / "a" / "b" / "scores.parquet").height == table.height


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_stops_halfway_leaves_nothing_new(scorer, table, tmp_path, error):
    (tmp_path / "scores.parquet").write_text("old")
    with pytest.raises(type(error)):
        score_to_parquet(_Stops(scorer, error), table, tmp_path / "scores.parquet", chunk_rows=100)
    assert os.listdir(tmp_path) == ["scores.parquet"]
    assert (tmp_path / "scores.parquet").read_text() == "old"


def test_a_table_that_cannot_be_scored_makes_no_file_and_no_folder(scorer, table, tmp_path):
    with pytest.raises(EncodingError, match="'item_id'"):
        score_to_parquet(scorer, table.drop("item_id"), tmp_path / "a" / "scores.parquet")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_refused_before_any_work(scorer, table, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer, "frames", lambda *_, **__: pytest.fail("it was scored"))
    with pytest.raises(IsADirectoryError, match="must be a file"):
        score_to_parquet(scorer, table, tmp_path)
    assert os.listdir(tmp_path) == []


def test_progress_goes_to_standard_error(scorer, table, tmp_path, capfd):
    score_to_parquet(scorer, table, tmp_path / "quiet.parquet")
    assert capfd.readouterr() == ("", "")
    score_to_parquet(scorer, table, tmp_path / "loud.parquet", progress=True)
    told = capfd.readouterr()
    assert told.out == ""
    assert "1000rows" in told.err
