"""How representations become logits. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.network.heads.base import Heads, HeadsModule, logit_slices
from recsys_mtl.network.heads.towers import Towers

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["Heads", "HeadsModule", "Towers", "logit_slices"]
