import numpy as np
import polars as pl
import pytest

from recsys_mtl.reading import Rows


@pytest.mark.parametrize("chunk_rows", [7, 333, 1000, 5000])
def test_frames_hold_the_rows_in_order_a_bounded_number_each(scorer, table, chunk_rows):
    frames = list(scorer.frames(table, chunk_rows=chunk_rows))
    assert max(frame.height for frame in frames) <= chunk_rows
    joined = pl.concat(frames)
    assert joined.select("user_id", "item_id").equals(table.select("user_id", "item_id"))
    expected = scorer.score(table)["ctr"].to_numpy()
    np.testing.assert_allclose(joined["ctr"].to_numpy(), expected, atol=1e-6)


def test_an_empty_table_gives_one_empty_frame(scorer, table):
    (frame,) = scorer.frames(table.clear())
    assert frame.height == 0
    assert frame.schema == scorer.score(table).schema


def test_frames_reads_a_chunk_when_it_is_asked_for_and_not_before(scorer, table, monkeypatch):
    read = []
    frames = Rows.frames

    def watched(self, columns, *, chunk_rows):
        for frame in frames(self, columns, chunk_rows=chunk_rows):
            read.append(frame.height)
            yield frame

    monkeypatch.setattr(Rows, "frames", watched)
    scored = scorer.frames(table, chunk_rows=100)
    assert read == []
    next(scored)
    assert read == [100]
    next(scored)
    assert read == [100, 100]


def test_the_model_is_in_evaluation_mode_and_stays_there(scorer, table):
    scorer.score(table)
    assert not scorer.model.training
