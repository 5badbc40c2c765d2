"""What is read of parquet files: all of it once, in the types of the first, or an error that says why."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from pyarrow import parquet

from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import scan
from recsys_mtl.serving.source import open_source, row_bytes

QUANTILE = "u >= QUANTILE_CONT(u, 0.5)"


def _write(path: Path, **columns: object):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pl.DataFrame(columns).to_arrow(), path)


def _read(given, *columns: str, where=None, skip=False, chunk_rows=100):
    """Read all parts, row group by row group."""
    source = open_source(given, where=where, skip=skip)
    parts = [
        pl.concat(source.frames(part, columns, chunk_rows), how="vertical")
        for part in source.parts(1)
    ]
    return pl.concat(parts)


@pytest.mark.parametrize("lost", ["nope.parquet", "none/*.parquet", "empty", ""])
@pytest.mark.parametrize("skip", [False, True])
def test_a_path_without_files_is_told_beside_others(tmp_path, lost, skip):
    _write(tmp_path / "a.parquet", u=[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncodingError, match="no such file"):
        open_source([tmp_path / "a.parquet", lost and tmp_path / lost], skip=skip)


def test_an_address_is_not_left_out_beside_files(tmp_path):
    _write(tmp_path / "a.parquet", u=[1])
    _write(tmp_path / "b.parquet", u=[2])
    with pytest.raises(EncodingError, match="files of this machine"):
        open_source([tmp_path / "a.parquet", f"file://{tmp_path}/b.parquet"])


def test_a_side_table_is_known_by_what_it_holds(tmp_path):
    _write(tmp_path / "a.parquet", u=[1])
    _write(tmp_path / "users.parquet", u=[1], age=[30])
    address, frame = f"file://{tmp_path}/users.parquet", pl.read_parquet(tmp_path / "users.parquet")

    def identity(users):
        return open_source(tmp_path / "a.parquet", users=users).identity()

    before = identity(address)
    assert before == identity(address) == identity(frame) == identity(frame.to_pandas())
    _write(tmp_path / "users.parquet", u=[1], age=[31])
    assert identity(address) != before


def test_a_file_that_two_paths_name_is_refused(tmp_path):
    _write(tmp_path / "a.parquet", u=[1])
    with pytest.raises(EncodingError, match=r"a\.parquet more than once"):
        open_source([tmp_path / "a.parquet", tmp_path / "*.parquet"])


def test_brackets_in_a_path_are_part_of_its_name(tmp_path):
    _write(tmp_path / "pairs1" / "other.parquet", u=[1])
    _write(tmp_path / "pairs[1]" / "k=5" / "mine.parquet", u=[2])
    _write(tmp_path / "a1.parquet", u=[3])
    _write(tmp_path / "a[1].parquet", u=[4])
    assert _read(tmp_path / "pairs[1]", "u", "k").row(0) == (2, 5)
    assert _read(tmp_path / "a[1].parquet", "u")["u"].to_list() == [4]


def test_a_glob_of_folders_is_their_files(tmp_path):
    for number in range(3):
        _write(tmp_path / f"day{number}" / "hour" / "0.parquet", u=[number])
    (tmp_path / "day1" / "_SUCCESS").touch()
    assert _read(f"{tmp_path}/day[12]", "u")["u"].to_list() == [1, 2]
    for every in ("**", "**/*", "*", "*/*"):
        assert _read(f"{tmp_path}/{every}", "u")["u"].to_list() == [0, 1, 2]
        assert scan(f"{tmp_path}/{every}").frame(["u"])["u"].to_list() == [0, 1, 2]


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "a.parquet", u=[1])
    assert _read("~/a.parquet", "u")["u"].to_list() == [1]
    assert scan("~/a.parquet").frame(["u"])["u"].to_list() == [1]


def test_a_folder_is_read_as_polars_reads_it(tmp_path):
    for number, name in enumerate(["a/x", "a-b/x", "a", ".hidden", "_b", "a.parquet"]):
        _write(tmp_path / name / "f.parquet", u=[number])
    (tmp_path / "_SUCCESS").touch()
    assert _read(tmp_path, "u").equals(pl.read_parquet(tmp_path))


@pytest.mark.parametrize(
    ("first", "second", "read"),
    [
        ([1, 2], [3.0, None], [1, 2, 3, None]),
        ([1.5, None], [3], [1.5, None, 3.0]),
        ([True], [None], [True, None]),
        (["a"], [None], ["a", None]),
        ([None], [2.5], [None, 2.5]),
        ([None], ["a"], [None, "a"]),
        ([["a"]], [[]], [["a"], []]),
        ([[]], [[1]], [[], [1]]),
        ([[], None], [[None]], [[], None, [None]]),
        ([None], [[]], [None, []]),
    ],
)
def test_types_that_differ_are_cast_where_no_value_changes(tmp_path, first, second, read):
    _write(tmp_path / "0.parquet", u=first)
    _write(tmp_path / "1.parquet", u=second)
    assert _read(tmp_path, "u")["u"].to_list() == read


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1], [1.5]),
        ([1.0], [2**53 + 1]),
        ([date(2026, 1, 1)], [datetime(2026, 1, 1, 12)]),
        (pl.Series([1], dtype=pl.Int8), [300]),
        ([1], ["1"]),
        ([["1"]], [[1]]),
        ([1_700_000_000], [datetime(2023, 11, 14)]),
        ([1], [date(2023, 11, 14)]),
        ([{"a": 1}], [{"a": date(2023, 11, 14)}]),
        ([{"a": 1}], [{"a": "1"}]),
        ([datetime(2023, 11, 14)], [datetime(2023, 11, 14, tzinfo=UTC)]),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused(tmp_path, first, second):
    _write(tmp_path / "0.parquet", u=first)
    _write(tmp_path / "1.parquet", u=second)
    with pytest.raises(EncodingError, match=r"'u' must have one type.*1\.parquet"):
        _read(tmp_path, "u")


def test_partitions_are_read_as_polars_reads_them(tmp_path):
    moments = ["2026-01-01 10:00:00", "2026-01-02 11:30:00"]
    for number, moment in enumerate(moments):
        day = f"d={moment[:10]}"
        folder = tmp_path / f"t={moment.replace(':', '%3A')}" / day / f"k=a{number}" / "b=true"
        _write(folder / "0.parquet", u=[number])
    names = ["u", "t", "d", "k", "b"]
    found = _read(tmp_path, *names)
    assert found.equals(pl.read_parquet(tmp_path).select(names))
    assert found["t"].dtype == pl.Datetime("us")


def test_partitions_are_columns_beside_a_file_that_cannot_be_opened(tmp_path):
    root = tmp_path / "x=1" / "pairs"
    for number in range(3):
        _write(root / f"k={number}" / "0.parquet", u=[10 * number], x=["own"])
    (root / "k=0" / "0.parquet").write_bytes(b"PAR1 cut off")
    source = open_source(root, skip=True)
    assert list(source.broken) == [0]
    assert _read(root, "u", "k", "x", skip=True).rows() == [(10, 1, "own"), (20, 2, "own")]


def test_a_condition_sees_one_row_at_a_time(tmp_path):
    _write(tmp_path / "a.parquet", u=[1, 2, 3, 4], c=["ab", "cd", "ab", "abc"])
    for where in ("u = MAX(u)", "u > AVG(u) OVER (PARTITION BY c)", "COUNT(*) > 2", QUANTILE):
        with pytest.raises(SchemaError, match="one row at a time"):
            open_source(tmp_path, where=where)
    where = "SUBSTR(c, 1, 2) = 'ab' AND u IN (1, 2, 4) AND c LIKE 'ab%' AND NOT u IS NULL"
    assert _read(tmp_path, "u", where=where, chunk_rows=2)["u"].to_list() == [1, 4]


def test_a_part_of_which_nothing_is_kept_is_an_empty_frame(tmp_path):
    _write(tmp_path / "a.parquet", u=[1, 2], c=["x", "y"])
    source = open_source(tmp_path, where="u > 5")
    (part,) = source.parts(10)
    (frame,) = source.frames(part, ["c"], 10)
    assert frame.schema == {"c": pl.String}
    assert frame.height == 0


def test_bytes_of_a_row_are_those_of_the_first_rows_whatever_is_kept(tmp_path):
    _write(
        tmp_path / "0.parquet", u=pl.Series([], dtype=pl.Int64), c=pl.Series([], dtype=pl.String)
    )
    for number in (1, 2):
        _write(tmp_path / f"{number}.parquet", u=[number] * 10, c=["x" * 1000] * 10)
    source = open_source(tmp_path, where="u > 1")
    assert 1000 < row_bytes(source, source.parts(10), ["u", "c"]) < 1100
