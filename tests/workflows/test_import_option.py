"""A structure of one's own, by command: the module that defines it is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from recsys_mtl.cli import app

MODULE = """
from collections.abc import Sequence

from torch import Tensor, nn

from recsys_mtl.network import Columns, Shared, Sharing
from recsys_mtl.network.sharing import SharingModule
from recsys_mtl.spec import spec


@spec
class Unshared(Sharing, kind="unshared"):
    width: int = 4

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        return _Unshared(input_dim, self.width, len(tasks))


class _Unshared(SharingModule):
    def __init__(self, input_dim: int, width: int, num_tasks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(input_dim, width) for _ in range(num_tasks))
        self.output_dim = width

    def forward(self, x_BVI: Tensor) -> Shared:
        return Shared(tuple(layer(x_BVI[:, 0]).relu() for layer in self.layers))
"""

CONFIG = """
[tables]
interactions = "rows.parquet"

[schema]
context = [{ kind = "categorical", name = "hour" }]
tasks = [
    { kind = "binary", name = "ctr", label = "click" },
    { kind = "binary", name = "like", label = "like" },
]

[model]
embedding_dim = 4
sharing = { kind = "unshared", width = 6 }

[training]
batch_size = 100
max_epochs = 4
optimizer = { kind = "adam", learning_rate = 0.01 }

[run]
device = "cpu"
random_state = 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("imported")
    (made / "structures.py").write_text(MODULE)
    (made / "config.toml").write_text(CONFIG)
    hour = np.arange(4000) % 24
    pl.DataFrame({"hour": hour, "click": hour % 2, "like": hour // 12}).write_parquet(
        made / "rows.parquet"
    )
    return made


def _run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "recsys_mtl.cli", *command],
        capture_output=True, text=True, check=False, cwd=place,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip


def _refused(*command: str) -> str:
    """Run the command where the kind is not known; return its one error."""
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def test_a_kind_of_ones_own_trains_and_scores_where_its_module_is_imported(place: Path) -> None:
    own = ("--import", "structures")
    trained = _run(place, *own, "train", "config.toml")
    assert trained.returncode == 0, trained.stderr
    scored = _run(place, *own, "score", "model", "rows.parquet", "-o", "scores.parquet")
    assert scored.returncode == 0, scored.stderr
    table = pl.read_parquet(place / "rows.parquet")
    scores = pl.read_parquet(place / "scores.parquet")
    for task, label in (("ctr", "click"), ("like", "like")):
        assert roc_auc_score(table[label], scores[task]) > 0.99
    assert "import the module that defines it first (by command: --import MODULE)" in _refused(
        "describe", str(place / "model")
    )


def test_without_the_module_the_kind_is_not_known(place: Path) -> None:
    told = _refused("train", str(place / "config.toml"), "--model", str(place / "other"))
    assert told.startswith("error: model.sharing.kind must be one of")
    assert "Found 'unshared'" in told
    assert not (place / "other").exists()


def test_a_module_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    told = _refused("--import", "nowhere", "describe", "model")
    assert told == "error: No module named 'nowhere'\n"
