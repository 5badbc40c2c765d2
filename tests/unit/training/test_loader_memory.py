"""Memory that an epoch over rows on disk takes, seen from outside: the kernel counts it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
import torch
from recsys_mtl.encoding import Batch, Block, Ragged
from recsys_mtl.encoding.chunk import Chunk, WholePart
from recsys_mtl.encoding.entry import read_entry, write_entry
from recsys_mtl.training.loader import Loader

BUDGET, CHUNK, CHUNKS = 64 << 20, 1 << 17, 36

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def chunks():
    draw = np.random.default_rng(0)
    for number in range(CHUNKS):
        first = number * CHUNK
        ids = draw.integers(0, 1 << 30, (CHUNK, 20), dtype=np.int32)
        ids[:, 0] = np.arange(first, first + CHUNK)
        offsets = np.concatenate([[0], draw.integers(0, 5, CHUNK).cumsum()])
        values = draw.integers(0, 1 << 30, offsets[-1], dtype=np.int32)
        lists = Ragged(values, offsets, values.astype(np.float32))
        block = Block(ids, (lists,), draw.random((CHUNK, 8), dtype=np.float32))
        ones = np.ones((CHUNK, 2), np.float32)
        states = np.zeros((CHUNK, 2), np.uint8)
        keys = pl.DataFrame({"key": np.zeros(CHUNK, np.int8)})
        yield Chunk((WholePart(block),), Batch(CHUNK, (), keys, ones, states, ones))

folder = Path(sys.argv[1])
write_entry(folder, folder.name, chunks())
batch = read_entry(folder)
loader = Loader(batch, torch.device("cpu"), batch_size=4096, seed=0, memory_bytes=BUDGET)
small = Loader(batch.cut([(0, 8192)]), torch.device("cpu"), batch_size=4096, seed=0)
list(small.batches(1))  # what torch needs for itself
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = kilobytes("VmRSS")
seen = np.zeros(batch.num_rows, bool)
for inputs, _ in loader.batches(1):
    seen[inputs.ids_BF[:, 0].numpy()] = True
size = sum(path.stat().st_size for path in folder.iterdir())
print(int(seen.all()), size, BUDGET, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc"
)
def test_epoch_over_ten_times_the_memory_stays_within_it(tmp_path: Path):
    """Beside the windows, 24 MiB are for batches on their way and what the allocator keeps."""
    ran = subprocess.run(
        [sys.executable, "-c", ENTRY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    all_seen, size, budget, peak = map(int, ran.stdout.split())
    shutil.rmtree(tmp_path)
    assert all_seen
    assert size > 10 * budget
    assert peak < budget + (24 << 20)
