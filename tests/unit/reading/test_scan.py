"""Rows are the same whatever table they come from, and bad tables are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_mtl.encoding import Batch, Encoder
from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import Rows, require, scan
from recsys_mtl.schema import Bag, Binary, Categorical, Numeric, Schema, Side

TABLE = pl.DataFrame(
    {
        "user_id": [3, 1, 2, 3, 1, 9],
        "word": ["a", None, "", "long enough to be kept out of line", "a", "b"],
        "tags": [["x", "y"], None, [], ["z"], ["x"], ["y", "y"]],
        "price": [0.5, None, 2.0, 3.5, -1.0, 0.0],
        "click": [1, 0, 0, 1, None, 1],
    }
)
USERS = pl.DataFrame({"user_id": [1, 2, 3], "city": ["p", "q", "p"], "age": [30, None, 50]})
FLAT = Schema(
    user=Side("user_id", features=[Categorical("user_id")]),
    context=[Categorical("word"), Bag("tags"), Numeric("price", scaling="standard")],
    tasks=[Binary("ctr", label="click")],
)
STAR = Schema(
    user=Side("user_id", features=[Categorical("user_id"), Categorical("city"), Numeric("age")]),
    tasks=[Binary("ctr", label="click")],
)


def numpy_backed(frame: pl.DataFrame):
    """Build a pandas frame of numpy arrays, as one made by hand is."""
    columns = {}
    for column in frame:
        if column.dtype.is_numeric():
            columns[column.name] = column.to_numpy()
        else:
            columns[column.name] = np.array(column.to_list(), dtype=object)
    return pd.DataFrame(columns)


def assert_same(first: Batch, second: Batch):
    assert first.num_rows == second.num_rows
    assert first.keys.cast(pl.Int64).equals(second.keys.cast(pl.Int64))
    for one, other in zip(first.parts, second.parts, strict=True):
        np.testing.assert_array_equal(one.block.ids, other.block.ids)
        np.testing.assert_array_equal(one.block.dense, other.block.dense)
        for mine, its in zip(one.block.lists, other.block.lists, strict=True):
            np.testing.assert_array_equal(mine.values, its.values)
            np.testing.assert_array_equal(mine.offsets, its.offsets)
            np.testing.assert_array_equal(mine.weights, its.weights)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.states, second.states)


@pytest.fixture
def folder(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    TABLE.head(4).write_parquet(tmp_path / "rows" / "part-0.parquet")
    TABLE.tail(2).write_parquet(tmp_path / "rows" / "part-1.parquet")
    return tmp_path / "rows"


@pytest.mark.parametrize(
    "table",
    [
        TABLE.lazy(),
        pl.concat([TABLE.head(2), TABLE.tail(4)], rechunk=False),
        TABLE.to_arrow(),
        TABLE.to_arrow().to_batches()[0],
        TABLE.to_pandas(use_pyarrow_extension_array=True),
        TABLE.to_pandas(),
        numpy_backed(TABLE),
        numpy_backed(TABLE).set_index(np.array(list("fedcba"))),
        numpy_backed(TABLE).astype({"word": "category"}),
        TABLE.with_columns(pl.col("word").cast(pl.Categorical), pl.col("user_id").cast(pl.UInt32)),
    ],
)
def test_table_of_any_library_gives_the_same_batch(table: Any):
    assert_same(Encoder(FLAT).fit_encode(table), Encoder(FLAT).fit_encode(TABLE))


@pytest.mark.parametrize(
    "path",
    [
        lambda folder: folder,
        str,
        lambda folder: str(folder / "*.parquet"),
        lambda folder: [folder / "part-0.parquet", str(folder / "part-1.parquet")],
    ],
)
def test_parquet_files_give_the_same_batch_as_the_table(folder: Path, path: Any):
    assert_same(Encoder(FLAT).fit_encode(path(folder)), Encoder(FLAT).fit_encode(TABLE))
    rows = scan(path(folder))
    assert rows.paths == (str(folder / "part-0.parquet"), str(folder / "part-1.parquet"))
    assert rows.columns == TABLE.columns


def test_rows_pass_through_scan_and_keep_their_side_tables():
    rows = scan(TABLE, users=USERS)
    assert scan(rows) is rows
    with pytest.raises(TypeError, match="carry their side tables already"):
        scan(rows, users=USERS)


def test_filter_keeps_rows_and_reads_nothing():
    read = []

    def spy(frame: pl.DataFrame) -> pl.DataFrame:
        read.append(frame.height)
        return frame

    rows = scan(TABLE.lazy().map_batches(spy, schema=TABLE.schema))
    some = rows.filter(pl.col("price") > 0, pl.col("click") == 1)
    assert read == []
    assert some.frame(["user_id"])["user_id"].to_list() == [3, 3]
    assert read == [6]


def test_filter_of_an_unknown_column_is_refused():
    with pytest.raises(EncodingError, match=r"filters see their columns only.*'city'"):
        scan(TABLE, users=USERS).filter(pl.col("city") == "p")


def test_missing_columns_are_named_with_those_there_are():
    with pytest.raises(EncodingError) as error:
        scan(TABLE).frame(["user_id", "nope", "neither"])
    assert str(error.value) == (
        "The interactions must have column 'nope' and 1 more: ['neither']."
        f" Columns found: {TABLE.columns}."
    )
    require(["a", "b"], ["b"], "table")
    with pytest.raises(EncodingError, match=r"^The users table must have column 'age'\. Col"):
        Encoder(STAR).fit_encode(scan(TABLE, users=USERS.drop("age")))


@pytest.mark.parametrize("chunk_rows", [1, 2, 4, 6, 100])
def test_frames_in_chunks_are_the_frame(chunk_rows: int, folder: Path):
    for rows in (scan(TABLE), scan(folder)):
        frames = list(rows.frames(["price", "user_id"], chunk_rows=chunk_rows))
        assert pl.concat(frames).equals(TABLE.select("price", "user_id"))
        assert all(1 <= frame.height <= chunk_rows for frame in frames)
        assert pl.concat(frames).equals(rows.frame(["price", "user_id"]))


def test_empty_table_gives_one_empty_frame():
    (only,) = scan(TABLE).filter(pl.col("price") > 99).frames(["price"], chunk_rows=2)
    assert only.height == 0
    assert only.schema == {"price": pl.Float64}


def test_pandas_index_labels_the_result_also_after_a_filter():
    table = numpy_backed(TABLE).set_index(pd.Index(list("fedcba"), name="row"))
    rows = scan(table)
    scores = rows.restore(pl.DataFrame({"score": range(6)}))
    assert scores.index.equals(table.index)
    some = rows.filter(pl.col("user_id") == 1)
    filtered = some.restore(pl.DataFrame({"score": [0.5, 0.25]}))
    assert filtered.index.tolist() == ["e", "b"]
    assert filtered.index.name == "row"
    assert filtered["score"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("table", "kind"),
    [(TABLE, pl.DataFrame), (TABLE.to_arrow(), pa.Table), (TABLE.to_pandas(), pd.DataFrame)],
)
def test_result_comes_back_as_the_table_that_came_in(table: Any, kind: type):
    assert isinstance(scan(table).restore(pl.DataFrame({"score": [1.0] * 6})), kind)


def test_concat_is_one_after_the_other():
    rows = scan(TABLE, users=USERS)
    first, last = rows.filter(pl.col("price") > 1), rows.filter(pl.col("price") < 1)
    both = first.concat(last).frame(["user_id", "price"])
    assert both["price"].to_list() == [2.0, 3.5, 0.5, -1.0, 0.0]
    assert Encoder(STAR).fit_encode(first.concat(last)).absent == {"user": 1}


def test_concat_keeps_the_shared_columns_and_widens_numbers():
    narrow = scan(TABLE.select(pl.col("user_id").cast(pl.Int16), "word"))
    joined = narrow.concat(scan(TABLE.select("word", "user_id", "price")))
    assert joined.columns == ["user_id", "word"]
    assert joined.frame(["user_id"])["user_id"].to_list() == TABLE["user_id"].to_list() * 2


def test_concat_of_text_and_numbers_is_refused():
    rows = scan(TABLE)
    for dtype in (pl.String, pl.Categorical):
        texts = scan(TABLE.with_columns(pl.col("user_id").cast(pl.String).cast(dtype)))
        for one, other in ((rows, texts), (texts, rows)):
            with pytest.raises(EncodingError, match=r"'user_id' must have one type.*: cast one of"):
                one.concat(other)
    nothing = scan(TABLE.with_columns(user_id=pl.lit(None), word=pl.lit(None)))
    assert rows.concat(nothing).frame(["word"])["word"].to_list()[:2] == ["a", None]


def test_concat_of_text_and_numbers_names_both_types():
    with pytest.raises(EncodingError) as error:
        scan(TABLE).concat(scan(TABLE.cast({"user_id": pl.String})))
    assert str(error.value) == (
        "Column 'user_id' must have one type in all rows that are joined. Found Int64 and String:"
        " cast one of them."
    )


def test_filter_takes_sql_conditions():
    rows = scan(TABLE).filter("price > 0 AND word = 'a'", pl.col("click") == 1)
    assert rows.frame(["user_id"])["user_id"].to_list() == [3]
    with pytest.raises(EncodingError, match=r"filters see their columns only.*'city'"):
        scan(TABLE).filter("city = 'p'")
    with pytest.raises(EncodingError, match=r"must be a SQL condition.* Found 'price >':"):
        scan(TABLE).filter("price >")


@pytest.mark.parametrize("condition", [True, pl.Series([True] * 6), lambda row: row, None])
def test_filter_of_anything_else_is_refused(condition: Any):
    name = type(condition).__name__
    with pytest.raises(TypeError, match=f"polars expression.*SQL condition.* Found {name}"):
        scan(TABLE).filter(condition)


def test_pandas_ids_with_a_null_find_their_side_rows():
    table = pd.DataFrame({"user_id": [1, None, 3], "click": [0, 1, 0]})
    batch = encode_star(USERS, table)
    assert batch.absent == {"user": 1}
    flat = encode_star(USERS, pl.DataFrame({"user_id": [1, None, 3], "click": [0, 1, 0]}))
    np.testing.assert_array_equal(batch.parts[0].rows, flat.parts[0].rows)
    np.testing.assert_array_equal(batch.parts[0].block.ids, flat.parts[0].block.ids)
    floats = USERS.with_columns(user_id=pl.Series([1.0, float("nan"), 3.0]))
    with pytest.raises(EncodingError, match=r"'user_id' of the users table .* Found 1 nulls"):
        encode_star(floats)


def test_concat_of_rows_with_different_side_tables_is_refused():
    for other in (scan(TABLE), scan(TABLE, users=USERS.clone()), scan(TABLE, items=USERS)):
        with pytest.raises(ValueError, match="share their users and items tables"):
            scan(TABLE, users=USERS).concat(other)


def damage(path: Path, group: int):
    """Overwrite the pages of one row group, so that they no longer decompress."""
    place = pq.ParquetFile(path).metadata.row_group(group).column(0)
    content = bytearray(path.read_bytes())
    start, size = place.data_page_offset, place.total_compressed_size
    content[start : start + size] = b"\xab" * size
    path.write_bytes(content)


@pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows.frame(["user_id"]),
        lambda rows: list(rows.frames(["user_id"], chunk_rows=100)),
    ],
)
def test_damaged_row_group_is_named_with_its_file(tmp_path: Path, read: Any):
    path = tmp_path / "damaged.parquet"
    table = pl.DataFrame({"user_id": np.arange(4_000) % 777})
    table.write_parquet(path, row_group_size=1_000)
    table.write_parquet(tmp_path / "sound.parquet")
    damage(path, 1)
    rows = scan([tmp_path / "sound.parquet", path])
    with pytest.raises(EncodingError) as error:
        read(rows)
    text = f"The interactions could not be read: file {path}, row group 1: "
    assert str(error.value).startswith(text)


def test_damaged_side_table_is_named_with_its_file(tmp_path: Path):
    path = tmp_path / "users.parquet"
    USERS.write_parquet(path)
    damage(path, 0)
    with pytest.raises(EncodingError) as error:
        Encoder(STAR).fit_encode(scan(TABLE, users=path))
    text = f"The users table could not be read: file {path}, row group 0: "
    assert str(error.value).startswith(text)


def encode_star(users: pl.DataFrame, rows: Any = TABLE):
    return Encoder(STAR).fit_encode(scan(rows, users=users))


def test_duplicate_key_of_a_side_table_is_refused():
    with pytest.raises(
        EncodingError, match=r"'user_id' of the users table must be unique\. 2 keys"
    ):
        encode_star(pl.concat([USERS, USERS.head(2)]))


def test_null_key_of_a_side_table_is_refused():
    with pytest.raises(EncodingError, match=r"'user_id' of the users table .* Found 1 nulls"):
        encode_star(USERS.with_columns(user_id=pl.Series([1, None, 3])))


def test_key_of_another_type_than_the_side_tables_is_refused():
    with pytest.raises(EncodingError, match=r"Key 'user_id' .* Int64, the side table String"):
        encode_star(USERS.cast({"user_id": pl.String}))


@pytest.mark.parametrize("ours", [pl.Int32, pl.Int64, pl.UInt64])
@pytest.mark.parametrize("theirs", [pl.Int32, pl.Int64, pl.UInt64])
def test_integer_keys_of_any_width_meet(ours: pl.DataType, theirs: pl.DataType):
    batch = encode_star(USERS.cast({"user_id": ours}), TABLE.cast({"user_id": theirs}))
    assert_same(batch, encode_star(USERS))
    np.testing.assert_array_equal(batch.parts[0].rows, encode_star(USERS).parts[0].rows)
    assert batch.absent == {"user": 1}


def test_rows_are_made_without_reading():
    rows = scan(TABLE.lazy().map_batches(lambda _: 1 / 0, schema=TABLE.schema))
    assert isinstance(rows, Rows)
    assert rows.filter(pl.col("price") > 0).columns == TABLE.columns


def test_a_pandas_filter_is_drawn_once_so_that_index_and_rows_agree() -> None:
    frame = pd.DataFrame({"a": range(40)}, index=[f"row {a}" for a in range(40)])
    rows = scan(frame).filter(pl.int_range(pl.len()).shuffle() < 15)
    back = rows.restore(rows.frame(["a"]))
    assert list(back.index) == [f"row {a}" for a in back["a"]]
