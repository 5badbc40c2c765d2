import pytest
import torch

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import HeadsModule, Serial, Towers
from recsys_mtl.schema import Binary, Multiclass

TASKS = (
    Binary("cvr", label="buy", parents=("ctr", "genre")),
    Binary("ctr", label="click"),
    Multiclass("genre", label="genre", num_classes=3, parents=("ctr",)),
)
WIDTHS = (4 + 1 + 3, 4, 4 + 1)
DIMS = pytest.mark.parametrize("dims", [(), (6,), (6, 5)])


def _trained(spec: Serial) -> HeadsModule:
    """Make heads whose weights on the parents' logits are no longer 0."""
    module = spec.build(4, TASKS).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@DIMS
def test_towers_read_their_representation_and_the_logits_of_their_parents(
    dims: tuple[int, ...],
) -> None:
    module = _trained(Serial(dims))
    cvr, ctr, genre = module.towers
    inputs = tuple(torch.randn(3, 9, 4, dtype=torch.float64))
    click = ctr(inputs[1])
    classes = genre(torch.cat((inputs[2], click), dim=1))
    buy = cvr(torch.cat((inputs[0], click, classes), dim=1))
    expected_BZ = torch.cat((buy, click, classes), dim=1)
    torch.testing.assert_close(module(inputs).logits_BZ, expected_BZ, rtol=0, atol=1e-12)


@DIMS
def test_with_no_weight_on_the_parents_logits_heads_are_plain_towers(dims: tuple[int, ...]) -> None:
    """As they are when they start."""
    module, towers = Serial(dims).build(4, TASKS).double(), Towers(dims).build(4, TASKS).double()
    for one, other, width in zip(module.towers, towers.towers, WIDTHS, strict=True):
        first = one.hidden[0] if dims else one.output
        assert first.weight.shape[1] == width
        weights = one.state_dict()
        name = "hidden.0.weight" if dims else "output.weight"
        weights[name] = weights[name][:, :4]
        other.load_state_dict(weights)
    inputs = tuple(torch.randn(3, 9, 4, dtype=torch.float64))
    torch.testing.assert_close(
        module(inputs).logits_BZ, towers(inputs).logits_BZ, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_a_tasks_loss_reaches_its_parents_towers_unless_stopped(stop_gradient: bool) -> None:
    module = _trained(Serial((6,), stop_gradient=stop_gradient))
    logits_BZ = module(tuple(torch.randn(3, 9, 4).double())).logits_BZ
    logits_BZ[:, 0].sum().backward()
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in tower.parameters())
        for tower in module.towers
    ]
    assert reached == ([True, False, False] if stop_gradient else [True, True, True])


def test_stopping_the_gradient_changes_no_logit() -> None:
    module, stopped = _trained(Serial()), Serial(stop_gradient=True).build(4, TASKS).double()
    stopped.load_state_dict(module.state_dict())
    inputs = tuple(torch.randn(3, 9, 4).double())
    assert torch.equal(module(inputs).logits_BZ, stopped(inputs).logits_BZ)


def test_a_circle_is_refused() -> None:
    tasks = Binary("a", label="a", parents=("b",)), Binary("b", label="b", parents=("a",))
    with pytest.raises(SchemaError, match="must not lead back"):
        Serial().build(4, tasks)
