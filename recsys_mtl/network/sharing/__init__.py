"""How tasks share. Every file of this folder is imported, so its specs are known by their kind."""

import importlib
import pkgutil

from recsys_mtl.network.sharing.adatt import AdaTT
from recsys_mtl.network.sharing.base import (
    Columns,
    Roster,
    Shared,
    Sharing,
    SharingModule,
    expert_names,
    whole_roster,
)
from recsys_mtl.network.sharing.cgc import CGC
from recsys_mtl.network.sharing.cross_stitch import CrossStitch
from recsys_mtl.network.sharing.gating import Gating
from recsys_mtl.network.sharing.home import HoME
from recsys_mtl.network.sharing.mmoe import MMoE
from recsys_mtl.network.sharing.omoe import OMoE
from recsys_mtl.network.sharing.pepnet import PEPNet
from recsys_mtl.network.sharing.ple import PLE
from recsys_mtl.network.sharing.shared_bottom import SharedBottom
from recsys_mtl.network.sharing.stem import STEM

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "CGC",
    "PLE",
    "STEM",
    "AdaTT",
    "Columns",
    "CrossStitch",
    "Gating",
    "HoME",
    "MMoE",
    "OMoE",
    "PEPNet",
    "Roster",
    "Shared",
    "SharedBottom",
    "Sharing",
    "SharingModule",
    "expert_names",
    "whole_roster",
]
