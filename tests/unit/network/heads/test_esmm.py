"""K4 of the science reference, in float64 unless stated."""

import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import ESMM, Headed, HeadsModule
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary, Multiclass, Regression

CTR = Binary("ctr", label="click")
CVR = Binary("cvr", label="buy", within="ctr", joint="ctcvr")
RATING = Regression("rating", label="rating", within="ctr")
GENRE = Multiclass("genre", label="genre", num_classes=3)
EXACT = {"rtol": 0, "atol": 1e-10}


def _pair() -> HeadsModule:
    return ESMM((8,)).build(4, (CTR, CVR)).double()


def _targets(clicks_B: Tensor, buys_B: Tensor) -> Targets:
    states_B = torch.where(clicks_B == 1, OBSERVED, OUT_OF_SPACE)
    weights_BT = torch.stack((torch.ones_like(clicks_B), clicks_B), dim=1)
    states_BT = torch.stack((torch.full_like(states_B, OBSERVED), states_B), dim=1)
    return Targets(torch.stack((clicks_B, clicks_B * buys_B), dim=1), weights_BT, states_BT)


def _sample(num_rows: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    logits_BZ = 3 * torch.randn(num_rows, 2, dtype=torch.float64)
    clicks_B, buys_B = torch.randint(2, (2, num_rows)).double()
    return logits_BZ.requires_grad_(), clicks_B, clicks_B * buys_B


def test_the_loss_is_the_cross_entropy_of_the_product_over_all_impressions() -> None:
    logits_BZ, clicks_B, buys_B = _sample()
    rows = _pair().row_losses(1, Headed(logits_BZ), _targets(clicks_B, buys_B))
    joint_B = logits_BZ.sigmoid().prod(dim=1)
    expected_B = torch.nn.functional.binary_cross_entropy(joint_B, buys_B, reduction="none")
    torch.testing.assert_close(rows.losses_B, expected_B, rtol=1e-10, atol=1e-10)
    assert torch.equal(rows.weights_B, torch.ones_like(clicks_B))


def test_gradients_are_those_of_the_closed_form() -> None:
    logits_BZ, clicks_B, buys_B = _sample()
    module, targets = _pair(), _targets(clicks_B, buys_B)
    joint = module.row_losses(1, Headed(logits_BZ), targets).losses_B
    ctr = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_BZ[:, 0], clicks_B, reduction="none"
    )
    (found_BZ,) = torch.autograd.grad((ctr + joint).sum(), logits_BZ)
    p, q = logits_BZ.detach().sigmoid().unbind(dim=1)
    s = p * q
    by_u = (p - clicks_B) + (s - buys_B) / (1 - s) * (1 - p)
    by_v = (s - buys_B) / (1 - s) * (1 - q)
    torch.testing.assert_close(found_BZ, torch.stack((by_u, by_v), dim=1), **EXACT)


def test_cvr_learns_from_rows_without_a_click() -> None:
    logits_BZ, _, _ = _sample()
    nothing_B = torch.zeros(len(logits_BZ), dtype=torch.float64)
    losses_B = _pair().row_losses(1, Headed(logits_BZ), _targets(nothing_B, nothing_B)).losses_B
    (found_BZ,) = torch.autograd.grad(losses_B.sum(), logits_BZ)
    p, q = logits_BZ.detach().sigmoid().unbind(dim=1)
    torch.testing.assert_close(found_BZ[:, 1], p * q / (1 - p * q) * (1 - q), **EXACT)
    assert (found_BZ[:, 1] > 0).all()


def test_the_click_loss_sends_no_gradient_to_the_conversion_tower() -> None:
    module = _pair()
    headed = module(tuple(torch.randn(2, 9, 4).double()))
    assert module.row_losses(0, headed, _targets(*torch.ones(2, 9).double())) is None
    headed.logits_BZ[:, 0].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.towers[1].parameters())
    assert all(p.grad is not None and p.grad.any() for p in module.towers[0].parameters())


def test_the_joint_loss_reaches_both_towers() -> None:
    module = _pair()
    headed = module(tuple(torch.randn(2, 64, 4).double()))
    clicks_B, buys_B = torch.randint(2, (2, 64)).double()
    module.row_losses(1, headed, _targets(clicks_B, buys_B)).losses_B.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_rows_whose_label_is_missing_have_no_weight() -> None:
    states_BT = torch.tensor([[OBSERVED, MISSING], [MISSING, MISSING], [OBSERVED, OUT_OF_SPACE]])
    weights_BT = torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    targets = Targets(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), weights_BT, states_BT)
    rows = _pair().row_losses(1, Headed(torch.zeros(3, 2)), targets)
    assert rows.weights_B.tolist() == [0, 0, 3]


def test_a_chain_of_three_is_learned_from_the_product_of_three() -> None:
    tasks = (
        CTR,
        Binary("cart", label="cart", within="ctr"),
        Binary("cvr", label="b", within="cart"),
    )
    module = ESMM().build(4, tasks)
    logits_BZ = torch.randn(4, 3, dtype=torch.float64)
    states_BT = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 2, 2]])
    labels_BT = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).double()
    targets = Targets(labels_BT, (states_BT == OBSERVED).double(), states_BT)
    rows = module.row_losses(2, Headed(logits_BZ), targets)
    s = logits_BZ.sigmoid().prod(dim=1)
    expected_B = torch.cat((-s[:1].log(), -(1 - s[1:]).log()))
    torch.testing.assert_close(rows.losses_B, expected_B, **EXACT)
    assert rows.weights_B.tolist() == [1, 1, 1, 1]


def test_tasks_within_none_and_tasks_that_are_not_binary_keep_their_own_loss() -> None:
    tasks = (RATING, CVR, GENRE, CTR)
    module = ESMM().build(4, tasks)
    targets = Targets(torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3, 4))
    defined = [module.row_losses(k, Headed(torch.zeros(3, 6)), targets) for k in range(4)]
    assert [rows is None for rows in defined] == [True, False, True, True]


@pytest.mark.parametrize("tasks", [(CTR,), (CTR, RATING), (GENRE, CTR)])
def test_tasks_without_a_joint_are_refused(tasks: tuple[Binary, ...]) -> None:
    with pytest.raises(SchemaError, match="'esmm' need a binary task that is within another"):
        ESMM().build(4, tasks)
