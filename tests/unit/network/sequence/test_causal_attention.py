"""Causal self-attention against a loop over events and heads."""

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sequence import CausalAttention

DIM = 6
LENGTHS = [7, 1, 3, 5]
SPECS = [
    CausalAttention(),
    CausalAttention(num_heads=3),
    CausalAttention(num_layers=2),
    CausalAttention(num_layers=2, num_heads=2, max_positions=4),
]


def _stirred(spec: CausalAttention) -> nn.Module:
    module = spec.build(DIM).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return module


def _norm(layer: nn.LayerNorm, x_D: Tensor) -> Tensor:
    centred_D = x_D - x_D.mean()
    scale = (centred_D.square().mean() + layer.eps).sqrt()
    return centred_D / scale * layer.weight + layer.bias


def _attended(layer: nn.Module, events: list[Tensor], place: int) -> Tensor:
    """Let one event attend to itself and those before it, head by head."""
    width = DIM // layer.num_heads
    of_key, of_value = layer.key_value.weight.chunk(2)
    key_bias, value_bias = layer.key_value.bias.chunk(2)
    query_D = layer.query(events[place])
    keys = [of_key @ event_D + key_bias for event_D in events[: place + 1]]
    values = [of_value @ event_D + value_bias for event_D in events[: place + 1]]
    heads = []
    for start in range(0, DIM, width):
        own = slice(start, start + width)
        logits = [(query_D[own] @ key_D[own]) / width**0.5 for key_D in keys]
        shares = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
        heads.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
    return layer.mix(torch.cat(heads))


def _at_last(module: nn.Module, events_LD: Tensor) -> Tensor:
    length, num_positions = len(events_LD), module.positions.num_embeddings
    ages = [min(length - 1 - place, num_positions - 1) for place in range(length)]
    x = [
        event_D + module.positions.weight[age] for event_D, age in zip(events_LD, ages, strict=True)
    ]
    for layer in module.layers:
        normed = [_norm(layer.norm, x_D) for x_D in x]
        x = [x_D + _attended(layer, normed, place) for place, x_D in enumerate(x)]
        feed_norm, inner, _, outer = layer.feed_forward
        x = [x_D + outer(inner(_norm(feed_norm, x_D)).clamp(min=0)) for x_D in x]
    return _norm(module.norm, x[-1])


@pytest.mark.parametrize("spec", SPECS, ids=["1x1", "1x3", "2x1", "2x2"])
def test_it_equals_a_loop_over_each_history_alone(spec: CausalAttention) -> None:
    module = _stirred(spec)
    history_BLD = torch.randn(4, 7, DIM).double()
    mask_BL = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    found_BD = module(history_BLD, mask_BL, None)
    for row, length in enumerate(LENGTHS):
        expected_D = _at_last(module, history_BLD[row, :length])
        torch.testing.assert_close(found_BD[row], expected_D, rtol=0, atol=1e-11)


def test_events_beyond_max_positions_may_change_places_and_others_may_not() -> None:
    module = _stirred(CausalAttention(max_positions=3))
    history_BLD, mask_BL = torch.randn(1, 6, DIM).double(), torch.ones(1, 6).bool()
    found_BD = module(history_BLD, mask_BL, None)
    # Counted from the end, event 5 has position 0, event 4 has 1, and events 0 to 3 share 2.
    old_BD = module(history_BLD[:, [3, 1, 2, 0, 4, 5]], mask_BL, None)
    torch.testing.assert_close(found_BD, old_BD, rtol=0, atol=1e-12)
    recent_BD = module(history_BLD[:, [0, 1, 2, 4, 3, 5]], mask_BL, None)
    assert not torch.allclose(found_BD, recent_BD)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_softmax_over_no_events_makes_no_nan_on_the_way_back(num_layers: int) -> None:
    module = CausalAttention(num_layers=num_layers).build(DIM)
    history_BLD = torch.zeros(2, 3, DIM, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        module(history_BLD, torch.zeros(2, 3).bool(), None).square().sum().backward()
    for value in (history_BLD, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_dropout_acts_in_training_only() -> None:
    module, history_BLD = CausalAttention(dropout=0.5).build(DIM), torch.randn(3, 5, DIM)
    mask_BL = torch.ones(3, 5).bool()
    assert not torch.equal(module(history_BLD, mask_BL, None), module(history_BLD, mask_BL, None))
    module.eval()
    assert torch.equal(module(history_BLD, mask_BL, None), module(history_BLD, mask_BL, None))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(
        SchemaError, match=r"num_heads .* must divide the embedding dim 6\. Found 4"
    ):
        CausalAttention(num_heads=4).build(DIM)


@pytest.mark.parametrize("wrong", [{"num_layers": 3}, {"num_layers": 0}, {"max_positions": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SchemaError, match=next(iter(wrong))):
        CausalAttention(**wrong)
