"""Extractor: any network that turns a `Vector` feature, such as the pixels of an image, into features.

Shape letters: B rows, N numbers of the feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.schema.features import Name
from recsys_mtl.spec import Spec, spec


@spec
class Extractor(Spec, ABC):
    """A choice of network in front of sharing, trained with all else.

    Subclass it with a `kind` to put any `nn.Module` there; a saved model that names the kind loads
    wherever the subclass was imported before.

    Parameters
    ----------
    feature
        Name of the `Vector` feature it reads and replaces.
    """

    feature: Name

    @abstractmethod
    def build(self, input_dim: int) -> nn.Module:
        """Make the module: (B, input_dim) -> (B, any width)."""


@torch.no_grad()
def output_width(module: nn.Module, input_dim: int, *, feature: str) -> int:
    """Return the width that a module gives for inputs of width `input_dim`.

    Raises
    ------
    SchemaError
        If it does not give one vector per row.
    """
    training = module.training
    found = module.eval()(torch.zeros(2, input_dim))
    module.train(training)
    if found.dim() != 2 or len(found) != 2:
        raise SchemaError(
            f"The extractor of {feature!r} must map (B, {input_dim}) to (B, width). Found shape"
            f" {tuple(found.shape)} for 2 rows."
        )
    return int(found.shape[1])
