"""Scoring called again: what may have changed is not taken for what is there."""

import os
from datetime import date

import numpy as np
import polars as pl
import pytest

from recsys_mtl import (
    Binary,
    Categorical,
    MultiTaskRanker,
    Numeric,
    Schema,
    SharedBottom,
    Side,
    Vector,
    scan,
    score_parquet,
)
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.serving import source
from recsys_mtl.serving.store import Store


@pytest.fixture(scope="module")
def users(table):
    names = table["user_id"].unique(maintain_order=True)
    return pl.DataFrame({"user_id": names, "age": [20.0 + number for number in range(len(names))]})


@pytest.fixture(scope="module")
def star(table, users):
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id"), Numeric("age", scaling="standard")]),
        item=Side("item_id", features=[Categorical("item_id")]),
        tasks=[Binary("ctr", label="click")],
    )
    made = MultiTaskRanker(
        schema,
        sharing=SharedBottom(dims=(8,)),
        embedding_dim=4,
        max_epochs=2,
        batch_size=100,
        device="cpu",
        random_state=0,
    )
    return made.fit(scan(table, users=users)).scorer


def _unreadable(monkeypatch, name):
    """Have a file be out of reach for now, as on a disk of the network."""
    real = source.parquet.read_metadata

    def read(path):
        if os.path.basename(path) == name:
            raise OSError("Stale file handle")
        return real(path)

    monkeypatch.setattr(source.parquet, "read_metadata", read)


def _cut_at(monkeypatch, call):
    """Interrupt a run when it begins to write this part."""
    part, calls = Store.part, []

    def cut(self, one, schema):
        calls.append(one)
        if len(calls) == call:
            raise KeyboardInterrupt
        return part(self, one, schema)

    monkeypatch.setattr(Store, "part", cut)


def test_other_side_tables_in_memory_are_other_scores(star, users, folder, tmp_path):
    output = tmp_path / "s.parquet"
    score_parquet(star, folder, output, users=users)
    assert score_parquet(star, folder, output, users=users).seconds == 0
    older = users.with_columns(age=60 - pl.col("age"))
    with pytest.raises(FileExistsError, match="of other scores"):
        score_parquet(star, folder, output, users=older)
    score_parquet(star, folder, output, users=older, overwrite=True)
    rows = scan(pl.read_parquet(folder), users=older)
    expected = star.score(rows)["ctr"].to_numpy()
    np.testing.assert_allclose(pl.read_parquet(output)["ctr"].to_numpy(), expected, atol=1e-6)


def test_a_side_table_that_is_written_anew_is_another_input(star, users, folder, tmp_path):
    output, file = tmp_path / "s.parquet", tmp_path / "users.parquet"
    users.write_parquet(file)
    score_parquet(star, folder, output, users=file)
    assert score_parquet(star, folder, output, users=file).seconds == 0
    users.with_columns(age=60 - pl.col("age")).write_parquet(file)
    with pytest.raises(FileExistsError, match="of other scores"):
        score_parquet(star, folder, output, users=file)


def test_a_file_that_can_be_read_again_moves_no_rows(scorer, table, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        _unreadable(patched, "1.parquet")
        _cut_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            score_parquet(scorer, folder, tmp_path / "s", on_error="skip-file")
    summary = score_parquet(scorer, folder, tmp_path / "s", on_error="skip-file")
    assert (summary.quarantined, summary.resumed) == ((), 1)
    names = ["user_id", "item_id"]
    assert pl.read_parquet(tmp_path / "s").select(names).equals(table.select(names))


def test_what_was_left_out_is_read_where_that_is_asked_for(
    scorer, table, folder, tmp_path, monkeypatch
):
    output = tmp_path / "s.parquet"
    with monkeypatch.context() as patched:
        _unreadable(patched, "1.parquet")
        summary = score_parquet(scorer, folder, output, on_error="skip-file")
    assert summary.rows_out == 750
    assert score_parquet(scorer, folder, output, on_error="skip-file").rows_out == 750
    with pytest.raises(FileExistsError):
        score_parquet(scorer, folder, output, on_error="stop")
    summary = score_parquet(scorer, folder, output, on_error="skip-file", overwrite=True)
    assert (summary.rows_out, summary.quarantined) == (1000, ())
    assert pl.read_parquet(output)["user_id"].equals(table["user_id"])


def test_reading_again_what_was_left_out_goes_on_after_a_break(
    scorer, folder, tmp_path, monkeypatch
):
    output = tmp_path / "s.parquet"
    given = {"on_error": "skip-file", "overwrite": True}
    with monkeypatch.context() as patched:
        _unreadable(patched, "1.parquet")
        score_parquet(scorer, folder, output, **given)
    with monkeypatch.context() as patched:
        _cut_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            score_parquet(scorer, folder, output, **given)
    assert pl.read_parquet(output).height == 750
    summary = score_parquet(scorer, folder, output, **given)
    assert (summary.resumed, summary.rows_out) == (2, 1000)


def test_a_condition_that_keeps_nothing_of_some_parts_gives_the_rows_of_the_others(
    scorer, table, folder, tmp_path
):
    rows = table.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    for number in range(4):
        part = rows.slice(number * 250, 250)
        part.write_parquet(folder / f"{number}.parquet", row_group_size=50)
    where = "number >= 300 AND number < 520"
    summary = score_parquet(scorer, folder, tmp_path / "s", part_rows=50, where=where)
    found = pl.read_parquet(tmp_path / "s")
    assert (summary.rows_in, summary.rows_out) == (1000, 220)
    assert found["user_id"].equals(table["user_id"].slice(300, 220))
    none = score_parquet(scorer, folder, tmp_path / "none.parquet", where="number > 1000")
    assert none.rows_out == 0
    assert pl.read_parquet(tmp_path / "none.parquet").schema == found.schema


def test_a_budget_that_a_row_group_of_the_output_exceeds_is_told(scorer, table, tmp_path):
    wide = pl.concat([table] * 8).with_columns(note=pl.lit("x" * 9_000))
    wide.write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(EncodingError, match=r"memory_mib must be at least 1[34]\d for"):
        score_parquet(
            scorer, tmp_path / "rows.parquet", tmp_path / "s", keep=["note"], memory_mib=64
        )
    assert not (tmp_path / "s").exists()
    score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "s", memory_mib=64)


def test_columns_that_are_read_and_not_written_need_no_room_for_a_row_group(users, table, tmp_path):
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id"), Vector("pixels", dim=1000)]),
        item=Side("item_id", features=[Categorical("item_id")]),
        tasks=[Binary("ctr", label="click")],
    )
    pixels = pl.lit([0.5] * 1000, pl.Array(pl.Float64, 1000))
    rows = pl.concat([table] * 8).with_columns(pixels=pixels)
    made = MultiTaskRanker(
        schema, sharing=SharedBottom(dims=(4,)), max_epochs=1, device="cpu", random_state=0
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    scorer = made.fit(rows.head(200)).scorer
    summary = score_parquet(scorer, tmp_path / "rows.parquet", tmp_path / "s", memory_mib=64)
    assert summary.rows_out == 8000


def test_a_file_with_text_where_others_have_numbers_is_left_out(scorer, table, folder, tmp_path):
    text = table.slice(500, 250).with_columns(pl.col("item_id").cast(pl.String))
    text.write_parquet(folder / "2.parquet")
    summary = score_parquet(scorer, folder, tmp_path / "s", on_error="skip-file")
    assert [os.path.basename(file) for file, _ in summary.quarantined] == ["2.parquet"]
    assert "must have one type in all files" in summary.quarantined[0][1]
    assert summary.rows_out == 750


def test_a_partition_is_a_column_of_the_folder_above(scorer, table, tmp_path):
    for day in ("2026-01-01", "2026-01-02"):
        (tmp_path / "rows" / f"day={day}").mkdir(parents=True)
        table.write_parquet(tmp_path / "rows" / f"day={day}" / "0.parquet")
    with pytest.raises(EncodingError, match="where the folder above them is given"):
        score_parquet(scorer, f"{tmp_path}/rows/day=*", tmp_path / "s", keep=["day"])
    with pytest.raises(SchemaError, match="DATE '2026"):
        score_parquet(scorer, tmp_path / "rows", tmp_path / "s", where="day > '2026-01-01'")
    where = "day > DATE '2026-01-01'"
    score_parquet(scorer, tmp_path / "rows", tmp_path / "s", where=where, keep=["day"])
    assert pl.read_parquet(tmp_path / "s")["day"].unique().to_list() == [date(2026, 1, 2)]


def test_an_output_is_not_put_where_rows_are_looked_for(scorer, folder, tmp_path):
    for rows in (folder, f"{tmp_path}/**/*.parquet"):
        with pytest.raises(FileExistsError, match="would be read as interactions"):
            score_parquet(scorer, rows, folder / "scores.parquet")
    assert sorted(os.listdir(folder)) == [f"{number}.parquet" for number in range(4)]


def test_parts_of_an_input_that_changed_meanwhile_are_not_kept(
    scorer, folder, tmp_path, monkeypatch
):
    part = Store.part

    def late(self, one, schema):
        if one.number == 3:
            os.utime(folder / "0.parquet", (1, 1))  # as if it had been written anew
        return part(self, one, schema)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "part", late)
        with pytest.raises(EncodingError, match="must stay as it is"):
            score_parquet(scorer, folder, tmp_path / "s")
    assert score_parquet(scorer, folder, tmp_path / "s").rows_out == 1000
