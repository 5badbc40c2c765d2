import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sharing import Columns, PEPNet, SharingModule

NAMES = ("a", "b", "c")
COLUMNS = Columns({"page": slice(0, 2), "user": slice(2, 4), "price": slice(4, 5)})


def _net(**names: tuple[str, ...]) -> SharingModule:
    spec = PEPNet((7, 4), gate_dim=6, **names)
    return spec.build(5, NAMES, COLUMNS).double()


def _x() -> Tensor:
    return torch.randn(9, 1, 5, dtype=torch.float64)


def _neutral(gate: nn.Module) -> None:
    """Make a gate 1: twice the sigmoid of 0."""
    nn.init.zeros_(gate.output.weight)
    nn.init.zeros_(gate.output.bias)


def _scales(gate: nn.Module, context_BC: Tensor) -> Tensor:
    first, last = gate.hidden[0], gate.output
    hidden_BH = (context_BC @ first.weight.T + first.bias).clamp(min=0)
    return 2 / (1 + torch.exp(-(hidden_BH @ last.weight.T + last.bias)))


def test_neutral_gates_leave_a_plain_network_per_task() -> None:
    net, x_BVI = _net(), _x()
    for gate in (net.input_gate, *net.layer_gates):
        _neutral(gate)
    for network, found_BH in zip(net.networks, net(x_BVI).tasks, strict=True):
        expected_BH = x_BVI[:, 0]
        for layer in network:
            linear = layer[0]
            expected_BH = (expected_BH @ linear.weight.T + linear.bias).clamp(min=0)
        torch.testing.assert_close(found_BH, expected_BH, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("domain", "personal"), [((), ()), (("page",), ("user", "page")), (("price",), ())]
)
def test_gates_are_the_formula_worked_by_hand(
    domain: tuple[str, ...], personal: tuple[str, ...]
) -> None:
    net, x_BVI = _net(domain=domain, personal=personal), _x()
    x_BI = x_BVI[:, 0]
    of_domain = x_BI[:, COLUMNS.of(domain)] if domain else x_BI
    of_person = x_BI[:, COLUMNS.of(personal)] if personal else x_BI
    o_BI = _scales(net.input_gate, torch.cat([of_domain, x_BI], dim=1)) * x_BI
    context_BC = torch.cat([of_person, o_BI], dim=1)
    for task, found_BH in enumerate(net(x_BVI).tasks):
        h = o_BI
        for number, dim in enumerate((7, 4)):
            layer = net.networks[task][number][0]
            scale = _scales(net.layer_gates[number], context_BC)[:, task * dim : (task + 1) * dim]
            h = scale * (h @ layer.weight.T + layer.bias).clamp(min=0)
        torch.testing.assert_close(found_BH, h, rtol=0, atol=1e-12)


def test_gates_pass_no_gradient_to_features_that_they_do_not_name() -> None:
    """With the input held, the gates' own gradient reaches the named features alone."""
    net = _net(domain=("page",), personal=("user",))
    x_BI = _x()[:, 0].requires_grad_()
    (of_input,) = torch.autograd.grad(net.input_gate(net.domain(x_BI, x_BI)).sum(), x_BI)
    assert of_input[:, :2].abs().min() > 0
    assert not of_input[:, 2:].any()
    context_BC = net.personal(x_BI, 2 * x_BI)
    (of_layers,) = torch.autograd.grad(net.layer_gates[0](context_BC).sum(), x_BI)
    assert of_layers[:, 2:4].abs().min() > 0
    assert not of_layers[:, [0, 1, 4]].any()


def test_gates_still_depend_on_the_values_of_all_features() -> None:
    net, x_BI = _net(domain=("page",)), _x()[:, 0]
    moved = x_BI.clone()
    moved[:, 4] += 1
    before = net.input_gate(net.domain(x_BI, x_BI))
    assert not torch.allclose(before, net.input_gate(net.domain(moved, moved)))
    assert (before > 0).all()
    assert (before < 2).all()


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(SchemaError, match="'nowhere'"):
        _net(domain=("nowhere",))


def test_the_places_of_features_are_not_part_of_the_state() -> None:
    assert not any("places" in name for name in _net(domain=("page",)).state_dict())
