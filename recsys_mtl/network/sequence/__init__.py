"""How a history becomes one vector. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule
from recsys_mtl.network.sequence.causal_attention import CausalAttention
from recsys_mtl.network.sequence.dilated_cnn import DilatedCNN
from recsys_mtl.network.sequence.din import DIN
from recsys_mtl.network.sequence.gru import GRU
from recsys_mtl.network.sequence.mean import Mean

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "DIN",
    "GRU",
    "CausalAttention",
    "DilatedCNN",
    "Mean",
    "SequenceEncoder",
    "SequenceModule",
]
