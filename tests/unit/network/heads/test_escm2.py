"""K5 of the science reference: a world whose propensities are known, and losses that depend on them."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys_mtl.encoding import OBSERVED, OUT_OF_SPACE
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import ESCM2, ESMM, Headed
from recsys_mtl.network.heads.escm2 import doubly_robust, inverse_propensity
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary

TASKS = (Binary("ctr", label="click"), Binary("cvr", label="buy", within="ctr"))
ROWS = 200_000


@dataclass(frozen=True)
class World:
    """Who clicks is likelier to buy; the model's logits know less of it than they should."""

    propensity: Tensor
    clicks: Tensor
    rates: Tensor
    buys: Tensor
    logits: Tensor

    @property
    def losses(self) -> Tensor:
        return binary_cross_entropy_with_logits(self.logits, self.buys, reduction="none")

    @property
    def expected(self) -> Tensor:
        """The right imputation: the loss a row has on average."""
        return binary_cross_entropy_with_logits(self.logits, self.rates, reduction="none")

    @property
    def targets(self) -> Targets:
        ones_B = torch.ones_like(self.clicks)
        states_B = torch.where(self.clicks == 1, OBSERVED, OUT_OF_SPACE)
        return Targets(
            torch.stack((self.clicks, self.clicks * self.buys), dim=1),
            torch.stack((ones_B, self.clicks), dim=1),
            torch.stack((torch.full_like(states_B, OBSERVED), states_B), dim=1),
        )


@pytest.fixture(scope="module")
def world() -> World:
    generator = torch.Generator().manual_seed(11)
    x_B = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    propensity_B = 0.1 + 0.8 * (2 * x_B).sigmoid()
    rates_B = (1.5 * x_B).sigmoid()
    return World(
        propensity_B,
        torch.bernoulli(propensity_B, generator=generator),
        rates_B,
        torch.bernoulli(rates_B, generator=generator),
        0.3 * x_B - 0.5,
    )


def _errors_of_mean(terms_B: Tensor, truth_B: Tensor) -> float:
    """Tell how many standard errors the mean of the terms lies from that of the truth."""
    differences_B = terms_B - truth_B
    return float(differences_B.mean() / (differences_B.std() / len(differences_B) ** 0.5))


def test_inverse_propensity_weighting_estimates_the_loss_of_all(world: World) -> None:
    terms_B = inverse_propensity(world.losses, world.clicks, world.propensity)
    assert abs(_errors_of_mean(terms_B, world.losses)) < 4


def test_the_mean_over_clicks_alone_is_biased(world: World) -> None:
    clicked_B = world.losses[world.clicks == 1]
    error = clicked_B.std() / len(clicked_B) ** 0.5
    assert abs(clicked_B.mean() - world.losses.mean()) > 10 * error


def test_doubly_robust_is_unbiased_with_right_propensities_whatever_is_imputed(
    world: World,
) -> None:
    for imputed_B in (torch.rand(ROWS).double(), torch.full_like(world.losses, 3.0)):
        terms_B = doubly_robust(world.losses, imputed_B, world.clicks, world.propensity)
        assert abs(_errors_of_mean(terms_B, world.losses)) < 4


def test_doubly_robust_is_unbiased_with_right_imputations_whatever_the_propensity(
    world: World,
) -> None:
    wrong_B = torch.full_like(world.propensity, 0.3)
    terms_B = doubly_robust(world.losses, world.expected, world.clicks, wrong_B)
    assert abs(_errors_of_mean(terms_B, world.losses)) < 4
    weighted_B = inverse_propensity(world.losses, world.clicks, wrong_B)
    assert abs(_errors_of_mean(weighted_B, world.losses)) > 10


def _headed(world: World) -> Headed:
    """Heads that predict the true propensities, and impute the true rates."""
    logits_BZ = torch.stack((world.propensity.logit(), world.logits), dim=1)
    return Headed(logits_BZ.requires_grad_(), world.rates.logit()[:, None].requires_grad_())


def test_the_loss_that_trains_is_the_estimate_ipw(world: World) -> None:
    module = ESCM2("ipw", joint_weight=0).build(4, TASKS)
    headed = Headed(_headed(world).logits_BZ)
    rows = module.row_losses(1, headed, world.targets)
    assert torch.equal(rows.weights_B, torch.ones(ROWS, dtype=torch.float64))
    assert abs(_errors_of_mean(rows.losses_B.detach(), world.losses)) < 4


def test_the_loss_that_trains_is_the_estimate_dr(world: World) -> None:
    module, headed = ESCM2("dr", joint_weight=0).build(4, TASKS), _headed(world)
    losses_B = module.row_losses(1, headed, world.targets).losses_B.detach()
    errors_B = (world.losses - world.expected).square()
    imputation_B = inverse_propensity(errors_B, world.clicks, world.propensity)
    assert abs(_errors_of_mean(losses_B - imputation_B, world.losses)) < 4
    assert losses_B.mean() - world.losses.mean() > 0.01


@pytest.mark.parametrize("method", ["ipw", "dr"])
def test_no_gradient_goes_through_the_propensity(world: World, method: str) -> None:
    module = ESCM2(method, joint_weight=0).build(4, TASKS)
    headed = _headed(world) if method == "dr" else Headed(_headed(world).logits_BZ)
    losses_B = module.row_losses(1, headed, world.targets).losses_B
    (gradient_BZ,) = torch.autograd.grad(losses_B.sum(), headed.logits_BZ)
    assert not gradient_BZ[:, 0].any()
    assert gradient_BZ[:, 1].any()


def test_the_gradient_of_ipw_is_that_of_the_clicked_rows_over_their_propensity(
    world: World,
) -> None:
    module, headed = ESCM2("ipw", joint_weight=0).build(4, TASKS), Headed(_headed(world).logits_BZ)
    losses_B = module.row_losses(1, headed, world.targets).losses_B
    (found_BZ,) = torch.autograd.grad(losses_B.sum(), headed.logits_BZ)
    q_B = world.logits.sigmoid()
    expected_B = world.clicks * (q_B - world.buys) / world.propensity
    torch.testing.assert_close(found_BZ[:, 1], expected_B, rtol=0, atol=1e-10)


def test_the_gradient_of_dr_is_doubly_robust_and_the_imputation_learns_its_own_term(
    world: World,
) -> None:
    module, headed = ESCM2("dr", joint_weight=0).build(4, TASKS), _headed(world)
    losses_B = module.row_losses(1, headed, world.targets).losses_B
    assert headed.extra_BX is not None
    by_logits_BZ, by_guess_BX = torch.autograd.grad(
        losses_B.sum(), (headed.logits_BZ, headed.extra_BX)
    )
    q_B, g_B, v_B = world.logits.sigmoid(), world.rates, world.logits
    odds_B = world.clicks / world.propensity
    expected_B = (q_B - g_B) + odds_B * (g_B - world.buys)
    torch.testing.assert_close(by_logits_BZ[:, 1], expected_B, rtol=0, atol=1e-10)
    # the squared error of the imputed loss is ((g - y) v)^2
    imputation_B = odds_B * 2 * (g_B - world.buys) * v_B**2 * g_B * (1 - g_B)
    torch.testing.assert_close(by_guess_BX[:, 0], imputation_B, rtol=0, atol=1e-10)
    full_B = q_B - world.buys
    assert abs(_errors_of_mean(by_logits_BZ[:, 1], full_B)) < 4


@pytest.mark.parametrize("clipped", [0.05, 0.4, 1.0])
def test_propensities_are_clipped_below(clipped: float) -> None:
    module = ESCM2(joint_weight=0, min_propensity=clipped).build(4, TASKS)
    logits_BZ = torch.tensor([[-90.0, 0.0], [90.0, 0.0]])
    targets = Targets(torch.ones(2, 2), torch.ones(2, 2), torch.full((2, 2), OBSERVED))
    found_B = module.row_losses(1, Headed(logits_BZ), targets).losses_B
    expected_B = torch.tensor([2.0, 2.0]).log() / torch.tensor([clipped, 1.0])
    torch.testing.assert_close(found_B, expected_B)


def test_the_propensity_of_a_chain_is_the_product_of_all_outer_probabilities() -> None:
    tasks = (TASKS[1], Binary("view", label="view"), Binary("ctr", label="click", within="view"))
    module = ESCM2(joint_weight=0, min_propensity=1e-6).build(4, tasks)
    logits_BZ = torch.randn(5, 3, dtype=torch.float64)
    targets = Targets(torch.ones(5, 3).double(), torch.ones(5, 3), torch.full((5, 3), OBSERVED))
    found_B = module.row_losses(0, Headed(logits_BZ), targets).losses_B
    buy, view, click = logits_BZ.sigmoid().unbind(dim=1)
    torch.testing.assert_close(found_B, -buy.log() / (view * click), rtol=1e-12, atol=0)


def test_the_terms_are_weighted_and_the_joint_one_is_that_of_esmm(world: World) -> None:
    headed = Headed(_headed(world).logits_BZ)

    def losses(own: float, joint: float) -> Tensor:
        spec = ESCM2(own_weight=own, joint_weight=joint)
        return spec.build(4, TASKS).row_losses(1, headed, world.targets).losses_B

    esmm_B = ESMM().build(4, TASKS).row_losses(1, headed, world.targets).losses_B
    torch.testing.assert_close(losses(0, 1), esmm_B, rtol=0, atol=0)
    torch.testing.assert_close(losses(0.25, 3), 0.25 * losses(1, 0) + 3 * esmm_B)


@pytest.mark.parametrize("method", ["ipw", "dr"])
def test_losses_are_finite_at_extreme_logits_in_float32(method: str) -> None:
    module = ESCM2(method).build(4, TASKS)
    logits_BZ = torch.cartesian_prod(*[torch.tensor([-90.0, 0.0, 90.0])] * 3).requires_grad_()
    for clicks, buys in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)):
        labels_BT = torch.tensor([[clicks, buys]]).expand(27, 2)
        states_BT = torch.tensor([[OBSERVED, OBSERVED if clicks else OUT_OF_SPACE]]).expand(27, 2)
        targets = Targets(labels_BT, torch.ones(27, 2), states_BT)
        headed = Headed(logits_BZ[:, :2], logits_BZ[:, 2:] if method == "dr" else None)
        losses_B = module.row_losses(1, headed, targets).losses_B
        (gradient_BZ,) = torch.autograd.grad(losses_B.sum(), logits_BZ)
        assert losses_B.isfinite().all()
        assert gradient_BZ.isfinite().all()


def test_only_doubly_robust_heads_impute_with_a_tower_of_the_task() -> None:
    inputs = tuple(torch.randn(2, 5, 4))
    assert ESCM2("ipw").build(4, TASKS)(inputs).extra_BX is None
    module = ESCM2("dr").build(4, TASKS)
    module.set_bias(torch.tensor([-1.0, -2.0]))
    headed = module(tuple(torch.zeros(2, 5, 4)))
    assert headed.extra_BX is not None
    assert headed.extra_BX.tolist() == [[-2.0]] * 5  # the rate that conversions start at
    names = {name.split(".")[1] for name, _ in module.named_parameters() if "imputation" in name}
    assert names == {"1"}


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SchemaError, match="'escm2' need a binary task that is within another"):
        ESCM2().build(4, TASKS[:1])
    with pytest.raises(SchemaError, match="must not both be 0"):
        ESCM2(own_weight=0, joint_weight=0)
    with pytest.raises(SchemaError, match="min_propensity"):
        ESCM2(min_propensity=0)
