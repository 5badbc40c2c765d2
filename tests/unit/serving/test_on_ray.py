"""Scores on a local Ray cluster equal direct ones."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import polars as pl
import pytest

from recsys_mtl.serving import score_on_ray

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster():
    root = str(Path(__file__).resolve().parents[3])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


def _files(table, folder, parts=4):
    rows = table.with_row_index("number")
    for number in range(parts):
        piece = rows.filter(pl.col("number") // (table.height // parts) == number)
        piece.drop("number").write_parquet(folder / f"{number}.parquet")


def test_two_actors_score_as_one_process(cluster, scorer, table, tmp_path):
    _files(table, tmp_path)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    pairs = ray.data.read_parquet(str(tmp_path))
    found = score_on_ray(scorer, pairs, workers=2, batch_rows=250, keep=["click"])
    frame = pl.concat(pl.from_arrow(batch) for batch in ray.get(found.to_arrow_refs()))
    direct = pl.concat(
        scorer.score(table.slice(start, 250)) for start in range(0, table.height, 250)
    )
    assert frame.drop("click").equals(direct)
    assert frame["click"].equals(table["click"])


def _our_actors():
    """Processes of actors that score, below this one."""
    titles, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            titles[int(entry.name)] = (entry / "cmdline").read_bytes()
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(status[1])

    def below(pid):
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid, title in titles.items() if b"_Actor" in title and below(pid)]


def test_a_run_with_a_killed_actor_gives_all_rows_once(cluster, scorer, table, tmp_path):
    wide = pl.concat([table] * 200).with_row_index("number")
    wide = wide.with_columns(item_id=pl.col("number").cast(pl.Int64)).drop("number")
    pairs = ray.data.from_arrow(wide.to_arrow()).repartition(100)
    folder = tmp_path / "scores"
    scored = score_on_ray(scorer, pairs, workers=2, batch_rows=1000)
    killed = []

    def late(batch):
        time.sleep(0.05)
        return batch

    def kill():
        while not killed:
            time.sleep(0.2)
            for pid in _our_actors():
                time.sleep(0.5)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break

    killer = Thread(target=kill, daemon=True)
    killer.start()
    scored.map_batches(late, num_cpus=0.5).write_parquet(str(folder))
    killer.join(5)
    assert killed
    found = pl.read_parquet(folder / "*.parquet").sort("item_id")
    assert found["item_id"].equals(wide["item_id"])
    assert found["user_id"].equals(wide["user_id"])
    assert found["ctr"].null_count() == 0


def test_actors_that_would_reserve_every_cpu_are_refused(cluster, scorer):
    with pytest.raises(ValueError, match="below the cluster's 4 CPUs"):
        score_on_ray(scorer, ray.data.range(1), workers=4, cpus=1)
