"""DCN-v2's cross network against its formula, its polynomials and its full-rank twin."""

import pytest
import torch
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.interaction import CrossNetwork

WIDTH = 5
EXACT = {"rtol": 0, "atol": 1e-12}
LOOSE = {"rtol": 0, "atol": 1e-8}


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _stirred(spec: CrossNetwork) -> nn.Module:
    module = spec.build(WIDTH, ()).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_it_equals_the_formula_entry_by_entry(num_layers: int) -> None:
    module, x_BI = _stirred(CrossNetwork(num_layers)), torch.randn(3, WIDTH).double()
    found_BI = module(x_BI, ())
    for row in range(3):
        first = x_BI[row].tolist()
        x = first
        for layer in _linear_layers(module):
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            inner = [sum(w * v for w, v in zip(weight[i], x, strict=True)) for i in range(WIDTH)]
            x = [first[i] * (inner[i] + bias[i]) + x[i] for i in range(WIDTH)]
        torch.testing.assert_close(found_BI[row], torch.tensor(x, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_without_weights_and_biases_nothing_changes(num_layers: int) -> None:
    module, x_BI = CrossNetwork(num_layers).build(WIDTH, ()), torch.randn(4, WIDTH)
    for layer in _linear_layers(module):
        nn.init.zeros_(layer.weight)
    assert torch.equal(module(x_BI, ()), x_BI)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_with_the_identity_it_is_a_power_of_one_plus_the_feature(num_layers: int) -> None:
    module, x_BI = (
        CrossNetwork(num_layers).build(WIDTH, ()).double(),
        torch.randn(4, WIDTH).double(),
    )
    for layer in _linear_layers(module):
        nn.init.eye_(layer.weight)
    torch.testing.assert_close(module(x_BI, ()), x_BI * (1 + x_BI) ** num_layers, **EXACT)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_each_column_is_a_polynomial_of_one_degree_more_than_layers(num_layers: int) -> None:
    """Along any line a polynomial of degree n has differences of order n that are constant, not 0."""
    module = _stirred(CrossNetwork(num_layers))
    steps_B1 = torch.arange(num_layers + 4.0, dtype=torch.float64)[:, None] - 2
    differences_BI = module(torch.randn(WIDTH) + steps_B1 * torch.randn(WIDTH), ())
    for _ in range(num_layers + 1):
        differences_BI = differences_BI.diff(dim=0)
    assert (differences_BI.abs() > 1e-6).any()
    torch.testing.assert_close(differences_BI.diff(dim=0), torch.zeros(2, WIDTH).double(), **LOOSE)


@pytest.mark.parametrize("rank", [1, 2, WIDTH])
def test_low_rank_equals_the_full_matrix_that_is_its_product(rank: int) -> None:
    low, full = _stirred(CrossNetwork(2, rank=rank)), _stirred(CrossNetwork(2))
    narrow_and_wide = _linear_layers(low)
    for number, layer in enumerate(_linear_layers(full)):
        narrow, wide = narrow_and_wide[2 * number : 2 * number + 2]
        layer.weight.data, layer.bias.data = wide.weight @ narrow.weight, wide.bias
        assert torch.linalg.matrix_rank(layer.weight) == rank
    x_BI = torch.randn(4, WIDTH).double()
    torch.testing.assert_close(low(x_BI, ()), full(x_BI, ()), rtol=1e-12, atol=1e-12)


def test_low_rank_has_the_parameters_it_says() -> None:
    sizes = [sum(p.numel() for p in CrossNetwork(3, rank=2).build(WIDTH, ()).parameters())]
    sizes.append(sum(p.numel() for p in CrossNetwork(3).build(WIDTH, ()).parameters()))
    assert sizes == [3 * (2 * 2 * WIDTH + WIDTH), 3 * (WIDTH * WIDTH + WIDTH)]


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"rank": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SchemaError, match=next(iter(wrong))):
        CrossNetwork(**wrong)
