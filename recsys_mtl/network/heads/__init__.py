"""How representations become logits. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.network.heads.aitm import AITM
from recsys_mtl.network.heads.base import (
    Headed,
    Heads,
    HeadsModule,
    RowLosses,
    idle_links,
    logit_slices,
)
from recsys_mtl.network.heads.dbmtl import DBMTL
from recsys_mtl.network.heads.escm2 import ESCM2
from recsys_mtl.network.heads.esmm import ESMM
from recsys_mtl.network.heads.joint import Joint, joints
from recsys_mtl.network.heads.serial import Serial
from recsys_mtl.network.heads.towers import TowerDims, Towers

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "AITM",
    "DBMTL",
    "ESCM2",
    "ESMM",
    "Headed",
    "Heads",
    "HeadsModule",
    "Joint",
    "RowLosses",
    "Serial",
    "TowerDims",
    "Towers",
    "idle_links",
    "joints",
    "logit_slices",
]
