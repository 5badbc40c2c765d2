import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import DBMTL, HeadsModule, Towers
from recsys_mtl.schema import Binary, Multiclass, Regression, Task

DIAMOND = (
    Binary("buy", label="buy", parents=("like", "cart")),
    Binary("cart", label="cart", parents=("view",)),
    Multiclass("like", label="like", num_classes=3, parents=("view",)),
    Regression("view", label="view"),
)


def _by_hand(module: HeadsModule, inputs: tuple[Tensor, ...]) -> Tensor:
    """Work the diamond out task by task: r = MLP([tower; r of the parents as they are named])."""
    buy, cart, like, view = module.towers
    r_view = view.hidden(view.first(inputs[3]))
    r_cart = cart.hidden(torch.cat((cart.first(inputs[1]), r_view), dim=1))
    r_like = like.hidden(torch.cat((like.first(inputs[2]), r_view), dim=1))
    r_buy = buy.hidden(torch.cat((buy.first(inputs[0]), r_like, r_cart), dim=1))
    logits = (buy.output(r_buy), cart.output(r_cart), like.output(r_like), view.output(r_view))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("dims", [(), (8,), (8, 5)])
def test_relations_follow_the_graph(dims: tuple[int, ...]) -> None:
    module = DBMTL(dims, relation_dims=(7, 6)).build(4, DIAMOND).double()
    inputs = tuple(torch.randn(4, 9, 4, dtype=torch.float64))
    found_BZ = module(inputs).logits_BZ
    assert found_BZ.shape == (9, 6)
    torch.testing.assert_close(found_BZ, _by_hand(module, inputs), rtol=0, atol=1e-12)


def test_without_parents_each_task_is_a_plain_mlp() -> None:
    tasks: tuple[Task, ...] = (DIAMOND[3], Binary("ctr", label="click"))
    module = DBMTL((8, 5), relation_dims=(3,)).build(4, tasks)
    towers = Towers((8, 5, 3)).build(4, tasks)
    for one, other in zip(module.towers, towers.towers, strict=True):
        layers = [
            layer
            for part in (one.first, one.hidden)
            for layer in part
            if isinstance(layer, nn.Linear)
        ]
        copies = [layer for layer in other.hidden if isinstance(layer, nn.Linear)]
        for layer, copy in zip(layers, copies, strict=True):
            copy.load_state_dict(layer.state_dict())
        other.output.load_state_dict(one.output.state_dict())
    inputs = tuple(torch.randn(2, 7, 4))
    assert torch.equal(module(inputs).logits_BZ, towers(inputs).logits_BZ)


def test_a_task_reads_its_ancestors_and_no_others() -> None:
    module = DBMTL().build(4, DIAMOND)
    inputs = tuple(torch.randn(7, 4).requires_grad_() for _ in DIAMOND)
    logits_BZ = module(inputs).logits_BZ
    for column, read in ((0, {0, 1, 2, 3}), (1, {1, 3}), (2, {2, 3}), (5, {3})):
        gradients = torch.autograd.grad(
            logits_BZ[:, column].sum(), inputs, retain_graph=True, materialize_grads=True
        )
        assert {k for k, gradient in enumerate(gradients) if gradient.any()} == read


def test_a_circle_is_refused() -> None:
    tasks = (
        Binary("a", label="a", parents=("b",)),
        Binary("b", label="b", parents=("c",)),
        Binary("c", label="c", parents=("a",)),
    )
    with pytest.raises(SchemaError, match="must not lead back"):
        DBMTL().build(4, tasks)


def test_a_relation_without_layers_is_refused() -> None:
    with pytest.raises(SchemaError, match="relation_dims"):
        DBMTL(relation_dims=())
