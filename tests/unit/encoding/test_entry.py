"""What comes back from disk is what encoding in memory gives, at no cost of memory, or it is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import Encoder
from recsys_mtl.encoding import entry as entry_file
from recsys_mtl.network import MMoE, MultiTaskModel, RowTensors, Towers
from recsys_mtl.reading import scan
from recsys_mtl.schema import Binary, Categorical, Schema, Side
from recsys_mtl.training import TrainConfig, Trainer

NUM_ROWS = 120
PEAK = """
import sys
from recsys_mtl.encoding import EncodedCache, Encoder
from recsys_mtl.schema import Binary, Categorical, Numeric, Schema
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
rows, small, folder = sys.argv[1:]
features = [Numeric(f"x{k}", scaling="standard") for k in range(15)]
schema = Schema(context=[*features, Categorical("c")], tasks=[Binary("ctr", label="click")])
encoder, found = Encoder(schema).fit(small), EncodedCache(folder)
found.batch(encoder, small, chunk_rows=100)
before = kilobytes("VmRSS")
batch = found.batch(encoder, rows, chunk_rows=5000)
print(batch.num_rows, kilobytes("VmHWM") - before)
"""


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
@pytest.mark.parametrize("labels", ["required", "none"])
def test_star_comes_back_as_it_is_encoded(star: Any, chunk_rows: int, labels: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    whole = encoder.encode(star.scan(), labels=labels)
    assert whole.absent["user"] > 0
    assert whole.absent["item"] > 0
    found = star.cache().batch(encoder, star.scan(), labels=labels, chunk_rows=chunk_rows)
    star.assert_same(found, whole)


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_groups_come_back_with_the_labels(star: Any, chunk_rows: int):
    task = Binary("ctr", label="click", ranking="listwise")
    schema = Schema(user=star.schema.user, context=star.schema.context, tasks=[task])
    rows = star.scan().filter("weight < 0.9")
    encoder = Encoder(schema).fit(rows)
    whole = encoder.encode(rows)
    assert whole.keys["user_id"].null_count() > 1
    found = star.cache().batch(encoder, rows, chunk_rows=chunk_rows)
    star.assert_same(found, whole)
    np.testing.assert_array_equal(found.groups, whole.groups, strict=True)
    assert star.cache().batch(encoder, rows, labels="none").groups is None


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_flat_rows_come_back_as_they_are_encoded(star: Any, chunk_rows: int):
    joined = star.interactions.join(star.users, "user_id", "left").join(
        star.items, "item_id", "left"
    )
    path = str(star.folder / "joined.parquet")
    joined.write_parquet(path)
    for schema in (star.schema, star.flat):
        encoder = Encoder(schema)
        rows = scan(path) if schema is star.schema else scan(path).filter("click is not null")
        whole = encoder.fit_encode(rows)
        star.assert_same(star.cache().batch(encoder, rows, chunk_rows=chunk_rows), whole)


def test_no_rows_come_back_as_none(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    none = star.scan().filter("hour > 100")
    star.assert_same(star.cache().batch(encoder, none), encoder.encode(none))
    star.assert_same(star.cache().batch(encoder, none), encoder.encode(none))


def test_each_side_table_is_stored_once(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    found = star.cache().batch(encoder, star.scan(), chunk_rows=7)
    user, item, context = found.parts
    assert len(user.block) == star.users.height + found.absent["user"]
    assert len(item.block) == star.items.height + found.absent["item"]
    assert len(context.block) == NUM_ROWS


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum([f"i{i}" for i in range(40)])])
def test_keys_keep_their_type_over_chunks_of_other_values(star: Any, dtype: Any):
    path = star.folder / "rows.parquet"
    star.interactions.with_columns(pl.col("item_id").cast(dtype)).write_parquet(path)
    schema = Schema(item=Side("item_id", features=[Categorical("item_id")]), tasks=star.flat.tasks)
    rows = scan(str(path)).filter("click is not null")
    encoder = Encoder(schema).fit(rows)
    star.assert_same(star.cache().batch(encoder, rows, chunk_rows=7), encoder.encode(rows))


def truncated(entry: Path):
    with (entry / "part1.list0.values.bin").open("r+b") as stream:
        stream.truncate(8)


def lengthened(entry: Path):
    with (entry / "keys.arrow").open("ab") as stream:
        stream.write(b"\0")


def deleted(entry: Path):
    (entry / "labels.bin").unlink()


def no_manifest(entry: Path):
    (entry / "manifest.json").unlink()


def no_json(entry: Path):
    (entry / "manifest.json").write_bytes(b"\x00" * 100)


def other_version(entry: Path):
    manifest = json.loads((entry / "manifest.json").read_bytes())
    (entry / "manifest.json").write_text(json.dumps(manifest | {"versions": [0, 0]}))


def other_shape(entry: Path):
    text = (entry / "manifest.json").read_text()
    changed = text.replace(f'"num_rows": {NUM_ROWS}', f'"num_rows": {NUM_ROWS - 1}')
    assert changed != text
    (entry / "manifest.json").write_text(changed)


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        lengthened,
        deleted,
        no_manifest,
        no_json,
        other_version,
        other_shape,
    ],
)
def test_damaged_entry_is_encoded_again_with_a_warning(
    star: Any, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    encoder = Encoder(star.schema).fit(star.scan())
    whole = encoder.encode(star.scan())
    star.cache().batch(encoder, star.scan())
    (entry,) = star.entries()
    damage(entry)
    with caplog.at_level(logging.WARNING):
        star.assert_same(star.cache().batch(encoder, star.scan()), whole)
    assert "damaged" in caplog.text
    assert star.entries() == [entry]
    caplog.clear()
    star.assert_same(star.cache().batch(encoder, star.scan()), whole)
    assert caplog.text == ""


def test_entry_under_another_name_is_not_read(star: Any, caplog: pytest.LogCaptureFixture):
    encoder = Encoder(star.schema).fit(star.scan())
    star.cache().batch(encoder, star.scan())
    (entry,) = star.entries()
    some = star.scan().filter("hour > 9")
    star.cache().batch(encoder, some)
    (other,) = (path for path in star.entries() if path != entry)
    shutil.rmtree(other)
    entry.rename(other)
    star.assert_same(star.cache().batch(encoder, some), encoder.encode(some))


def test_tensors_share_the_map_and_the_file_stays_as_it_is(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    found = star.cache().batch(encoder, star.scan())
    tensors = RowTensors(found, torch.device("cpu"))
    for part, mine in zip(found.parts, tensors._parts, strict=True):
        pairs = [(part.block.ids, mine.ids), (part.block.dense, mine.dense)]
        for ragged, listed in zip(part.block.lists, mine.lists, strict=True):
            pairs += [(ragged.values, listed.values), (ragged.offsets, listed.offsets)]
            pairs.append((ragged.weights, listed.weights))
        if part.rows is not None:
            pairs.append((part.rows, mine.rows))
        for array, tensor in pairs:
            assert tensor.data_ptr() == array.ctypes.data or array.size == 0
    assert tensors._targets is not None
    for array, tensor in zip(
        (found.labels, found.states, found.weights), tensors._targets, strict=True
    ):
        assert tensor.data_ptr() == array.ctypes.data
    found.parts[0].block.ids[:] = 0
    star.assert_same(star.cache().batch(encoder, star.scan()), encoder.encode(star.scan()))


def test_map_larger_than_the_memory_is_granted(tmp_path: Path):
    path = tmp_path / "holes.bin"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = 4 * memory // 8
    with path.open("wb") as stream:
        stream.truncate(8 * rows)  # takes no place on the disk
    array = entry_file._map(path, np.dtype("<i8"), (rows,))
    assert array[-1] == 0
    assert array.flags.writeable


def test_training_from_disk_is_training_from_memory(star: Any):
    encoder = Encoder(star.schema).fit(star.scan())
    whole = encoder.encode(star.scan())
    states = []
    for batch in (whole, star.cache().batch(encoder, star.scan(), chunk_rows=7)):
        torch.manual_seed(0)
        model = MultiTaskModel(
            encoder.layout,
            star.schema.tasks,
            sharing=MMoE(2, expert_dims=(8,)),
            heads=Towers((4,)),
            embedding_dim=3,
        )
        config = TrainConfig(batch_size=32, max_epochs=2)
        Trainer(model, star.schema, config, seed=0, progress=False).fit(batch)
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_encoding_needs_a_tenth_of_the_file_as_memory(tmp_path: Path):
    rng = np.random.default_rng(0)
    columns = {f"x{k}": rng.random(250_000) for k in range(15)}
    labels = {"c": rng.integers(0, 1 << 40, 250_000), "click": rng.integers(0, 2, 250_000)}
    frame = pl.DataFrame(columns | labels)
    rows, small = tmp_path / "rows", tmp_path / "small.parquet"
    rows.mkdir()
    # polars reads some row groups ahead: their size is part of what is needed.
    frame.write_parquet(rows / "00.parquet", compression="uncompressed", row_group_size=5000)
    for number in range(1, 32):
        shutil.copy(rows / "00.parquet", rows / f"{number:02}.parquet")
    frame.head(1000).write_parquet(small)
    size = sum(path.stat().st_size for path in rows.iterdir())
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(rows), str(small), str(tmp_path / "cache")],
        env=os.environ | {"POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    num_rows, kilobytes = map(int, ran.stdout.split())
    shutil.rmtree(rows)
    shutil.rmtree(tmp_path / "cache")
    assert num_rows == 32 * 250_000
    assert kilobytes * 1024 < size / 10
