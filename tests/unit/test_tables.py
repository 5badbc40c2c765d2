"""Any table opens as a polars frame and comes back as its own kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl.errors import EncodingError
from recsys_mtl.tables import as_kind, damaged_place, is_path, kind_of, lazy_frame

FRAME = pl.DataFrame({"id": [2**63 - 1, 2**24 + 1, None], "name": ["a", None, ""]})


@pytest.fixture
def file(tmp_path: Path):
    FRAME.write_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (FRAME, "polars"),
        (FRAME.lazy(), "polars"),
        (FRAME.to_arrow(), "arrow"),
        (FRAME.to_arrow().to_batches()[0], "arrow"),
        (FRAME.to_pandas(use_pyarrow_extension_array=True), "pandas"),
    ],
)
def test_table_opens_with_its_values_and_knows_its_kind(table: Any, kind: str):
    assert lazy_frame(table).collect().equals(FRAME)
    assert kind_of(table) == kind


def test_parquet_path_opens_as_polars(file: Path):
    for table in (file, str(file), [file], str(file.parent / "*.parquet"), file.parent):
        assert lazy_frame(table).collect().equals(FRAME)
        assert kind_of(table) == "polars"
        assert is_path(table)


def test_nan_of_pandas_is_null():
    opened = lazy_frame(pd.DataFrame({"x": [1.5, np.nan]})).collect()
    assert opened["x"].to_list() == [1.5, None]


def test_result_comes_back_as_the_kind_asked_for():
    assert as_kind(FRAME, "polars") is FRAME
    assert isinstance(as_kind(FRAME, "arrow"), pa.Table)
    assert as_kind(FRAME, "arrow").to_pylist() == FRAME.to_dicts()
    labelled = as_kind(FRAME.select("name"), "pandas", pd.Index([7, 8, 9], name="row"))
    assert labelled.index.tolist() == [7, 8, 9]
    assert labelled.index.name == "row"
    assert as_kind(FRAME, "pandas").index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("table", [3, {"a": [1]}, [], [FRAME], None])
def test_anything_else_is_refused_by_type(table: Any):
    with pytest.raises(TypeError, match=f"users table must be .* Found {type(table).__name__}"):
        lazy_frame(table, what="users table")


def test_mixed_column_is_refused():
    with pytest.raises(EncodingError, match=r"column of the items table must hold one type"):
        lazy_frame(pd.DataFrame({"x": [1, "a"]}), what="items table")


@pytest.mark.parametrize(
    "mixed",
    [[1, "a"], ["a", 1], [1.5, "a"], [True, "a"], [1, [1]], [2**70, 1], [object(), 1]],
)
def test_mixed_column_of_pandas_is_named(mixed: Any):
    table = pd.DataFrame({"sound": [1, 2], "mixed": mixed, "word": ["a", "b"]})
    with pytest.raises(EncodingError, match=r"items table must .* Column 'mixed' does not: "):
        lazy_frame(table, what="items table")


def test_two_pandas_columns_of_one_name_are_refused():
    for names in (["x", "y", "x"], [1, "a", "1"]):
        table = pd.DataFrame([[1, 2, 3]], columns=names)
        with pytest.raises(
            EncodingError, match=rf"names of the table must be unique. Found '{names[2]}' more"
        ):
            lazy_frame(table)


@pytest.mark.parametrize("name", ["absent.parquet", "absent*.parquet", "cut.parquet"])
def test_missing_or_cut_file_is_named(tmp_path: Path, file: Path, name: str):
    content = file.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        EncodingError, match=r"^The users table must be readable parquet\."
    ) as error:
        lazy_frame(tmp_path / name, what="users table")
    assert str(tmp_path / name) in str(error.value)


def test_place_of_damage_is_the_first_unreadable_file(tmp_path: Path, file: Path):
    (tmp_path / "text.parquet").write_text("no parquet at all")
    assert damaged_place([str(file)]) is None
    place = damaged_place([str(file), str(tmp_path / "text.parquet")])
    assert place is not None
    assert place.startswith(f"file {tmp_path / 'text.parquet'}: ")


def test_integer_ids_with_nulls_come_back_to_pandas_as_integers() -> None:
    ids = pl.DataFrame({"id": pl.Series([2**63 - 1, None, 5], dtype=pl.Int64)})
    back = as_kind(ids, "pandas")
    assert str(back["id"].dtype) == "Int64"
    assert back["id"][0] == 2**63 - 1
    assert back["id"].isna().tolist() == [False, True, False]
