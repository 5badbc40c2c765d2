"""The mean of events, by hand."""

import torch

from recsys_mtl.network.sequence import Mean


def test_the_mean_of_two_events_is_half_their_sum() -> None:
    history_BLD = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]]])
    mask_BL = torch.tensor([[True, True, False]])
    found_BD = Mean().build(2)(history_BLD, mask_BL, None)
    assert torch.equal(found_BD, torch.tensor([[2.0, 4.0]]))
