"""No interaction."""

import torch

from recsys_mtl.network.interaction import NoInteraction


def test_features_pass_as_they_are() -> None:
    x_BI = torch.randn(3, 4)
    assert NoInteraction().build(4, ((2, 2),))(x_BI, (x_BI.view(3, 2, 2),)) is x_BI
