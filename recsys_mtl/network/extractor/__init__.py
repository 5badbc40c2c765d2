"""How a given vector becomes features. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.network.extractor.base import Extractor, output_width
from recsys_mtl.network.extractor.image_cnn import ImageCNN
from recsys_mtl.network.extractor.mlp import MLPExtractor

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["Extractor", "ImageCNN", "MLPExtractor", "output_width"]
