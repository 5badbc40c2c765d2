"""How features meet before sharing. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.network.interaction.base import Interaction, InteractionModule
from recsys_mtl.network.interaction.cross import CrossNetwork
from recsys_mtl.network.interaction.fm import FM
from recsys_mtl.network.interaction.plain import NoInteraction

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["FM", "CrossNetwork", "Interaction", "InteractionModule", "NoInteraction"]
