"""What all tests share: seeds, the real data where it is, and hypothesis without a clock."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

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
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECSYS_MTL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set RECSYS_MTL_DATA")
    return folder
