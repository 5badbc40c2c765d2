"""Layers over a given vector."""

import pytest
import torch
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.extractor import Extractor, MLPExtractor, output_width


def test_it_is_linear_layers_with_relu() -> None:
    module, x_BN = MLPExtractor("text", dims=(5, 3)).build(8).double(), torch.randn(4, 8).double()
    x_BI = x_BN
    for layer in (layer for layer in module.modules() if isinstance(layer, nn.Linear)):
        x_BI = (x_BI @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(module(x_BN), x_BI, rtol=0, atol=1e-12)
    assert output_width(module.float(), 8, feature="text") == 3


def test_json_gives_the_same_spec_back() -> None:
    made = Extractor.from_dict({"kind": "mlp", "feature": "text", "dims": [5, 3]})
    assert made == MLPExtractor("text", dims=(5, 3))
    assert Extractor.from_json(made.to_json()) == made


def test_no_layers_are_refused() -> None:
    with pytest.raises(SchemaError, match="dims"):
        MLPExtractor("text", dims=())
