"""DIN against a loop over events that lays out [e, t, e - t, e * t]."""

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sequence import DIN

DIM = 4
LENGTHS = [6, 1, 3]


def _mlp(module: nn.Module, x_X: Tensor) -> Tensor:
    """Apply all linear layers, with ReLU between them."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        x_X = (layer.weight @ x_X + layer.bias).clamp(min=0)
    return (layers[-1].weight @ x_X + layers[-1].bias)[0]


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    mask_BL = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(3, 6, DIM).double(), mask_BL, torch.randn(3, DIM).double()


def _stirred(spec: DIN) -> nn.Module:
    module = spec.build(DIM).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dims", [(7,), (7, 5), (8, 6, 3)])
def test_it_equals_a_loop_over_events(dims: tuple[int, ...], normalize: bool) -> None:
    module = _stirred(DIN(dims=dims, normalize=normalize))
    history_BLD, mask_BL, target_BD = _batch()
    found_BD = module(history_BLD, mask_BL, target_BD)
    for row, length in enumerate(LENGTHS):
        events_LD, t_D = history_BLD[row, :length], target_BD[row]
        pairs = [torch.cat([e_D, t_D, e_D - t_D, e_D * t_D]) for e_D in events_LD]
        weights_L = torch.stack([_mlp(module, pair_X) for pair_X in pairs])
        if normalize:
            weights_L = weights_L.exp() / weights_L.exp().sum()
        torch.testing.assert_close(found_BD[row], weights_L @ events_LD, rtol=0, atol=1e-12)


def test_without_softmax_an_event_seen_twice_counts_twice() -> None:
    module, event_11D, target_BD = _stirred(DIN()), torch.randn(1, 1, DIM), torch.randn(1, DIM)
    event_11D, target_BD = event_11D.double(), target_BD.double()
    once_BD = module(event_11D, torch.ones(1, 1).bool(), target_BD)
    twice_BD = module(event_11D.repeat(1, 2, 1), torch.ones(1, 2).bool(), target_BD)
    torch.testing.assert_close(twice_BD, 2 * once_BD, rtol=0, atol=1e-12)


def test_with_softmax_an_event_seen_twice_counts_once_and_the_weights_sum_to_one() -> None:
    module = _stirred(DIN(normalize=True))
    event_11D, target_BD = torch.randn(1, 1, DIM).double(), torch.randn(1, DIM).double()
    twice_BD = module(event_11D.repeat(1, 2, 1), torch.ones(1, 2).bool(), target_BD)
    torch.testing.assert_close(twice_BD, event_11D[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_order_does_not_matter(normalize: bool) -> None:
    module = _stirred(DIN(normalize=normalize))
    history_BLD, _, target_BD = _batch()
    mask_BL = torch.ones(3, 6).bool()
    turned_BD = module(history_BLD.flip(1), mask_BL, target_BD)
    found_BD = module(history_BLD, mask_BL, target_BD)
    torch.testing.assert_close(found_BD, turned_BD, rtol=0, atol=1e-12)


def test_softmax_over_no_events_makes_no_nan_on_the_way_back() -> None:
    module = DIN(normalize=True).build(DIM)
    history_BLD = torch.zeros(2, 3, DIM, requires_grad=True)
    target_BD = torch.randn(2, DIM, requires_grad=True)
    mask_BL = torch.tensor([[False] * 3, [True] * 3])
    with torch.autograd.set_detect_anomaly(True):
        module(history_BLD, mask_BL, target_BD).square().sum().backward()
    for value in (history_BLD, target_BD, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_without_the_item_to_be_scored_it_says_what_it_needs() -> None:
    history_BLD, mask_BL, _ = _batch()
    with pytest.raises(ValueError, match=r"DIN needs target_BD.*Found None"):
        DIN().build(DIM).double()(history_BLD, mask_BL, None)


def test_an_mlp_without_layers_is_refused() -> None:
    with pytest.raises(SchemaError, match="dims"):
        DIN(dims=())
