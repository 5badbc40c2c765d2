import pytest
import torch
from torch import nn

from recsys_mtl.network.layers import MLP, Gate, cast_once, mix, mix_all


def test_gate_rows_are_softmax_shares() -> None:
    gate, x_BI = Gate(4, 3).double(), torch.randn(6, 4).double()
    powers_BE = (x_BI @ gate.weight.T).exp()
    expected_BE = powers_BE / powers_BE.sum(dim=1, keepdim=True)
    torch.testing.assert_close(gate(x_BI), expected_BE, rtol=0, atol=1e-12)


def test_gate_softmax_stays_float32_under_bfloat16_autocast() -> None:
    """In bfloat16 a share of 1 - 2**-10 is 1; in float32 the shares keep their small parts."""
    gate, x_BI = Gate(4, 3), torch.randn(64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.functional.linear(x_BI, gate.weight).dtype == torch.bfloat16
        gate_BE = gate(x_BI)
    assert gate_BE.dtype == torch.float32
    assert (gate_BE != gate_BE.bfloat16().float()).any()
    torch.testing.assert_close(gate_BE.sum(dim=1), torch.ones(64), rtol=0, atol=1e-6)


def test_gate_of_a_half_precision_layer_is_float32() -> None:
    gate_BE = Gate(4, 3).to(torch.bfloat16)(torch.randn(8, 4).bfloat16())
    assert gate_BE.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mixing_keeps_the_type_of_the_experts(dtype: torch.dtype) -> None:
    experts = [torch.full((2, 3), value, dtype=dtype) for value in (1.0, 3.0)]
    mixed_BH = mix(experts, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert mixed_BH.dtype == dtype
    assert mixed_BH.tolist() == [[2.5] * 3, [1.0] * 3]


def test_mixing_one_expert_scales_it() -> None:
    expert_BH = torch.randn(4, 3)
    assert torch.equal(mix([expert_BH], torch.full((4, 1), 0.5)), expert_BH * 0.5)


@pytest.mark.parametrize("num_rows", [0, 1, 6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mixing_for_several_gates_is_mixing_for_each(dtype: torch.dtype, num_rows: int) -> None:
    experts = [torch.randn(num_rows, 3).to(dtype) for _ in range(4)]
    gates_BTE = torch.softmax(torch.randn(num_rows, 2, 4), dim=2)
    mixed = mix_all(experts, gates_BTE)
    assert len(mixed) == 2
    for mixed_BH, gate_BE in zip(mixed, gates_BTE.unbind(1), strict=True):
        assert mixed_BH.dtype == dtype
        torch.testing.assert_close(mixed_BH, mix(experts, gate_BE), rtol=2e-2, atol=2e-2)


def test_a_normalised_mlp_ends_in_layer_normalisation_and_swish() -> None:
    mlp, x_BI = MLP(3, (5, 4), normalize=True).double(), torch.randn(6, 3).double()
    hidden_BH = (x_BI @ mlp[0].weight.T + mlp[0].bias).clamp(min=0)
    h_BH = hidden_BH @ mlp[2].weight.T + mlp[2].bias
    centred_BH = h_BH - h_BH.mean(dim=1, keepdim=True)
    normal_BH = centred_BH / (centred_BH.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    expected_BH = normal_BH / (1 + (-normal_BH).exp())
    torch.testing.assert_close(mlp(x_BI), expected_BH, rtol=0, atol=1e-12)


def test_an_input_is_cast_to_the_type_of_autocast_and_only_then() -> None:
    x_BI = torch.randn(2, 3)
    assert cast_once(x_BI) is x_BI
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cast_once(x_BI).dtype == torch.bfloat16
        assert cast_once(x_BI.double()).dtype == torch.float64  # autocast leaves it too


def test_every_layer_of_an_mlp_ends_in_relu() -> None:
    mlp = MLP(3, (5, 2))
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert mlp.output_dim == 2
    assert (mlp(torch.randn(50, 3)) >= 0).all()


def test_dropout_scales_what_it_keeps_and_acts_in_training_only() -> None:
    mlp, x_BI = MLP(3, (400,), dropout=0.5), torch.rand(1, 3)
    whole_BH = mlp.eval()(x_BI)
    dropped_BH = mlp.train()(x_BI)
    kept = dropped_BH != 0
    assert 0 < kept.sum() < (whole_BH != 0).sum()
    torch.testing.assert_close(dropped_BH[kept], 2 * whole_BH[kept])
    assert torch.equal(mlp.eval()(x_BI), whole_BH)


def test_an_mlp_without_layers_returns_its_input() -> None:
    mlp, x_BI = MLP(3, ()), torch.randn(2, 3)
    assert mlp.output_dim == 3
    assert torch.equal(mlp(x_BI), x_BI)
