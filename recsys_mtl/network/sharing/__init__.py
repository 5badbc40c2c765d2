"""How tasks share. Every file of this folder is imported, so its specs are known by their kind."""

import importlib
import pkgutil

from recsys_mtl.network.sharing.base import Shared, Sharing, SharingModule
from recsys_mtl.network.sharing.mmoe import MMoE
from recsys_mtl.network.sharing.ple import PLE
from recsys_mtl.network.sharing.shared_bottom import SharedBottom

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["PLE", "MMoE", "Shared", "SharedBottom", "Sharing", "SharingModule"]
