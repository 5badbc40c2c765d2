"""Adding a structure takes one file: a file dropped into the folder is a kind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import recsys_mtl

DROPPED = '''
from recsys_mtl.network.layers import linear
from recsys_mtl.network.sharing.base import Shared, Sharing, SharingModule
from recsys_mtl.spec import spec


@spec
class Dropped(Sharing, kind="dropped"):
    """One linear layer for all tasks."""

    width: int = 3

    def build(self, input_dim, tasks, columns):
        return _Dropped(input_dim, self.width, len(tasks))


class _Dropped(SharingModule):
    def __init__(self, input_dim, width, num_tasks):
        super().__init__()
        self.layer, self.num_tasks, self.output_dim = linear(input_dim, width), num_tasks, width

    def forward(self, x_BVI):
        return Shared((self.layer(x_BVI[:, 0]),) * self.num_tasks)
'''

ASK = """
import json
import torch
import recsys_mtl
from recsys_mtl.network.sharing import Columns, Sharing
from recsys_mtl.spec import Spec

module = Sharing.from_dict({"kind": "dropped", "width": 4}).build(5, ("a", "b"), Columns())
print(json.dumps({
    "package": recsys_mtl.__file__,
    "kinds": sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Sharing)),
    "shapes": [list(task.shape) for task in module(torch.randn(2, 1, 5)).tasks],
}))
"""


def test_a_file_dropped_into_the_folder_is_found_by_its_kind(tmp_path: Path) -> None:
    source = Path(recsys_mtl.__file__).parent
    copied = tmp_path / "recsys_mtl"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "network" / "sharing" / "dropped.py").write_text(DROPPED)
    told = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = json.loads(told.stdout)
    assert Path(found["package"]).is_relative_to(tmp_path)
    # The law of tests/contracts/test_sharing_contract.py goes over the kinds found like this.
    assert {"dropped", "mmoe"} <= set(found["kinds"])
    assert found["shapes"] == [[2, 4], [2, 4]]
