"""The command `collisions` prints the report that Python gives."""

import polars as pl
import pytest
from typer.testing import CliRunner

from recsys_mtl.cli import app
from recsys_mtl.describe import describe_collisions
from recsys_mtl.encoding import collision_report


@pytest.fixture
def command(model, folder):
    tables = [str(folder / f"{name}.parquet") for name in ("interactions", "users", "items")]
    return ["collisions", str(model), tables[0], "--users", tables[1], "--items", tables[2]]


def test_command_prints_the_report_of_python(command, ranker, log):
    result = CliRunner().invoke(app, [*command, "--where", "split = 'train'"])
    assert result.exit_code == 0, result.output
    rows = log.rows(log.part("train"))
    report = collision_report(ranker.scorer.encoder, rows, embedding_dim=8)
    assert result.stdout == f"{describe_collisions(report)}\n"
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["user_id", "city", "item_id", "tags", "hour"]
    num_users = log.part("train")["user_id"].n_unique()
    assert lines[1].split()[:4] == ["user_id", str(num_users), "65,536", str(num_users + 3)]
    assert all(line.split()[7] == "0.00%" for line in lines[1:])  # training rows are known


def test_command_tells_a_missing_side_table_in_one_line(command):
    result = CliRunner().invoke(app, command[:3])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "users=" in result.stderr


def test_shares_and_memory_are_laid_out_for_a_person():
    report = pl.DataFrame(
        {
            "table": ["words", "id"],
            "features": [["likes", "tags"], ["id"]],
            "distinct": [1_234, 5],
            "buckets": [65_536, 2],
            "rows": [1_200, 5],
            "expected": [0.01866, 1.0],
            "observed": [0.02, 0.8],
            "traffic": [0.5, 0.0],
            "unknown": [0.0, 0.0],
            "map_bytes": [16_400, 1_023],
            "table_bytes": [5 * 2**30, 2**20],
            "suggested": [None, 256],
        }
    )
    told = [" ".join(line.split()) for line in describe_collisions(report).splitlines()]
    assert told[1:] == [
        "words (likes, tags) 1,234 65,536 1,200 1.87% 2.00% 50.00% 0.00% 16.0 KiB 5.0 GiB over 2**30",
        "id 5 2 5 100.00% 80.00% 0.00% 0.00% 1,023 B 1.0 MiB 256",
    ]
