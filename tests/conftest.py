"""What all tests share: seeds, the real data where it is, and hypothesis without a clock."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from pyarrow import parquet

ROOT = Path(__file__).resolve().parents[1]


def _digest_of_kernels() -> str:
    files = sorted(ROOT.glob("recsys_mtl/**/*.py"))
    sources = [path for path in files if b"recsys_mtl.compiled" in path.read_bytes()]
    sources.append(ROOT / "recsys_mtl/compiled.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


# numba looks for changes only in the file of the function called, not in those that this one calls:
# without a cache per state of the sources, tests would run kernels with the code of helpers long gone.
# Two processes that compile one kernel for different types at once can leave an index of the one beside
# the code of the other, so each worker has its own.
# numba reads the variable when it is imported, so nothing above may import it.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ["NUMBA_CACHE_DIR"] = str(ROOT / "build" / "numba" / _digest_of_kernels() / _WORKER)

settings.register_profile("recsys_mtl", deadline=None)
settings.load_profile("recsys_mtl")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 # code under test may read the legacy state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: RECSYS_MTL_DATA, or ../shared/data beside the repository."""
    beside = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("RECSYS_MTL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set RECSYS_MTL_DATA")
    return folder


@pytest.fixture(scope="session")
def damage() -> Callable[[Path, int], None]:
    """Overwrite the first column of a row group of a parquet file."""

    def made(file: Path, group: int) -> None:
        column = parquet.read_metadata(file).row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        data = bytearray(file.read_bytes())
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        file.write_bytes(data)

    return made
