"""Dilated convolutions against a loop over events and taps."""

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sequence import DilatedCNN

DIM = 4


def _at_last(module: nn.Module, spec: DilatedCNN, events_LD: Tensor) -> Tensor:
    x_LD = events_LD
    for block, dilation in zip(module.blocks, spec.dilations, strict=True):
        weight, bias = block.convolution.weight, block.convolution.bias
        outputs = []
        for place in range(len(x_LD)):
            total_D = bias
            for tap in range(spec.kernel_size):
                seen = place - tap * dilation
                if seen >= 0:
                    total_D = total_D + weight[:, DIM * tap : DIM * (tap + 1)] @ x_LD[seen]
            centred_D = total_D - total_D.mean()
            normed_D = centred_D / (centred_D.square().mean() + block.norm.eps).sqrt()
            normed_D = normed_D * block.norm.weight + block.norm.bias
            outputs.append(x_LD[place] + normed_D.clamp(min=0))
        x_LD = torch.stack(outputs)
    return x_LD[-1]


@pytest.mark.parametrize(
    "spec",
    [
        DilatedCNN(),
        DilatedCNN(kernel_size=2, dilations=(1, 3)),
        DilatedCNN(kernel_size=3, dilations=(3, 1, 1)),
        DilatedCNN(kernel_size=1, dilations=(1,)),
    ],
    ids=["default", "two_layers", "reach_shrinks", "pointwise"],
)
def test_it_equals_a_loop_over_each_history_alone(spec: DilatedCNN) -> None:
    module = spec.build(DIM).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    history_BLD, lengths = torch.randn(4, 9, DIM).double(), [9, 1, 3, 6]
    mask_BL = torch.arange(9) < torch.tensor(lengths)[:, None]
    found_BD = module(history_BLD, mask_BL, None)
    for row, length in enumerate(lengths):
        expected_D = _at_last(module, spec, history_BLD[row, :length])
        torch.testing.assert_close(found_BD[row], expected_D, rtol=0, atol=1e-11)


def test_it_sees_the_stated_number_of_events_and_no_more() -> None:
    module = DilatedCNN(kernel_size=3, dilations=(1, 2)).build(DIM).double()
    history_BLD = torch.randn(1, 12, DIM).double().requires_grad_()
    module(history_BLD, torch.ones(1, 12).bool(), None).square().sum().backward()
    seen_L = history_BLD.grad[0].abs().sum(dim=1) > 0
    assert seen_L.tolist() == [False] * 5 + [True] * 7  # 1 + 2 * (1 + 2) events


def test_it_is_what_a_library_convolution_gives() -> None:
    module = DilatedCNN(kernel_size=3, dilations=(2,)).build(DIM).double()
    (block,) = module.blocks
    history_BLD = torch.randn(2, 9, DIM).double()
    weight = block.convolution.weight.view(DIM, 3, DIM).transpose(1, 2).flip(2)
    found_BDL = nn.functional.conv1d(
        nn.functional.pad(history_BLD.transpose(1, 2), (4, 0)),
        weight,
        block.convolution.bias,
        dilation=2,
    )
    expected_BD = history_BLD[:, -1] + block.norm(found_BDL[..., -1]).relu()
    found_BD = module(history_BLD, torch.ones(2, 9).bool(), None)
    torch.testing.assert_close(found_BD, expected_BD, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    module, history_BLD = DilatedCNN(dropout=0.5).build(DIM), torch.randn(3, 5, DIM)
    mask_BL = torch.ones(3, 5).bool()
    assert not torch.equal(module(history_BLD, mask_BL, None), module(history_BLD, mask_BL, None))
    module.eval()
    assert torch.equal(module(history_BLD, mask_BL, None), module(history_BLD, mask_BL, None))


@pytest.mark.parametrize("wrong", [{"dilations": ()}, {"dilations": (0,)}, {"kernel_size": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SchemaError, match=next(iter(wrong))):
        DilatedCNN(**wrong)
