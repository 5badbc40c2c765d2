"""A fingerprint of rows changes with whatever they are read from, or there is none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import scan
from recsys_mtl.reading.provenance import fingerprint_rows, reopen

FRAME = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
PRINT = """
import sys
from recsys_mtl.reading import scan
from recsys_mtl.reading.provenance import fingerprint_rows
rows = scan(sys.argv[1], users=sys.argv[2])
print(fingerprint_rows(rows.filter("a > 1 and b in ('x', 'y')").concat(rows.filter("a = 1"))))
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    FRAME.write_parquet(tmp_path / "rows.parquet")
    FRAME.write_parquet(tmp_path / "users.parquet")
    return str(tmp_path / "rows.parquet")


def beside(path: str, name: str):
    return str(Path(path).with_name(name))


def test_fingerprint_is_the_same_in_all_processes(path: str):
    users = beside(path, "users.parquet")
    rows = scan(path, users=users)
    rows = rows.filter("a > 1 and b in ('x', 'y')").concat(rows.filter("a = 1"))
    run = [sys.executable, "-c", PRINT, path, users]
    printed = [subprocess.run(run, check=True, capture_output=True, text=True) for _ in range(2)]
    assert [one.stdout.strip() for one in printed] == [fingerprint_rows(rows)] * 2


def test_other_conditions_give_other_fingerprints(path: str):
    rows = scan(path)
    conditions = [
        pl.col("a") > 1,
        pl.col("a") > 2,
        pl.col("a") >= 1,
        pl.col("a") > float("inf"),
        pl.col("a").gt(float("nan")),
        pl.col("a").is_in([1, 2]),
        pl.col("a").is_in([1, 3]),
        pl.col("b") == "x",
        pl.col("b") == "y",
    ]
    found = [fingerprint_rows(rows), *(fingerprint_rows(rows.filter(c)) for c in conditions)]
    found.append(fingerprint_rows(rows.filter(*conditions[:2])))
    found.append(fingerprint_rows(rows.concat(rows)))
    found.append(fingerprint_rows(scan([path, path])))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/**/*.parquet", "/[p-s]*"])
def test_folder_or_glob_changes_with_its_files(path: str, pattern: str):
    rows = scan(str(Path(path).parent) + pattern)
    found = [fingerprint_rows(rows)]
    FRAME.write_parquet(beside(path, "rows2.parquet"))
    found.append(fingerprint_rows(rows))
    Path(beside(path, "rows2.parquet")).unlink()
    assert fingerprint_rows(rows) == found[0] != found[1]


def test_query_of_other_files_joined_to_the_rows_is_seen(path: str):
    """`Rows.paths` says nothing of it: the files are found in the query itself."""
    other = beside(path, "other.parquet")
    FRAME.write_parquet(other)
    rows = scan(path).concat(scan(pl.scan_parquet(other)))
    before = fingerprint_rows(rows)
    FRAME.head(1).write_parquet(other)
    assert fingerprint_rows(rows) != before


def test_reopened_rows_see_new_files(path: str):
    rows = scan(str(Path(path).parent))
    assert rows.frame(["a"]).height == 6
    FRAME.write_parquet(beside(path, "rows2.parquet"))
    assert reopen(rows).frame(["a"]).height == 9


@pytest.mark.parametrize(
    "condition",
    [
        pl.col("a").map_batches(lambda values: values > 1, return_dtype=pl.Boolean),
        pl.col("a").shuffle() > 1,
        pl.when(pl.col("a").sample(fraction=1.0) > 1).then(pl.lit(True)).otherwise(False),
    ],
)
def test_conditions_that_may_change_are_refused(path: str, condition: Any):
    with pytest.raises(EncodingError, match="without Python functions or randomness"):
        fingerprint_rows(scan(path).filter(condition))


def test_rows_that_are_not_all_from_parquet_are_refused(path: str):
    csv = beside(path, "rows.csv")
    FRAME.write_csv(csv)
    for other in (FRAME, pl.scan_csv(csv), pl.scan_parquet(path).sort("a")):
        with pytest.raises(EncodingError, match=r"interactions must be parquet files.* Found '"):
            fingerprint_rows(scan(path).concat(scan(other)))
    for rows in (scan(FRAME), scan(pl.scan_parquet(path)), scan(FRAME.to_pandas())):
        with pytest.raises(EncodingError, match="interactions must come from parquet files"):
            fingerprint_rows(rows)
    with pytest.raises(EncodingError, match="users table must come from parquet files"):
        fingerprint_rows(scan(path, users=FRAME))
    rows = scan(path)
    Path(path).unlink()
    with pytest.raises(EncodingError, match="must come from files on this machine"):
        fingerprint_rows(rows)
