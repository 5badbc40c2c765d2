import itertools

import pytest
import torch

from recsys_mtl.training.balancing import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    DualProj,
    FairGrad,
    Fixed,
    PCGrad,
    UPGrad,
)

pytest.importorskip("torchjd", reason="needs the extra `balancing`")

DETERMINISTIC = [MGDA(), UPGrad(), DualProj(), IMTLG(), AlignedMTL(), FairGrad(), CAGrad()]
ALL = [PCGrad(), *DETERMINISTIC]
HARMLESS = [MGDA(), UPGrad(), DualProj()]

CONFLICT = torch.tensor([[1, 0], [-0.5, 1]], dtype=torch.float64)
# worked by hand or read off the papers' definitions, all but the last; the last is torchjd's
VALUES = [
    (PCGrad(), [0.8, 1.4], 1e-9),
    (MGDA(), [0.307692, 0.461538], 1e-6),
    (UPGrad(), [0.4, 0.7], 1e-9),
    (DualProj(), [0.25, 0.5], 1e-9),
    (IMTLG(), [0.291796, 0.472136], 1e-6),
    (AlignedMTL(), [0.284049, 0.473415], 1e-6),
    (FairGrad(), [0.743496, 1.203002], 1e-5),
    (CAGrad(0.5), [0.457892, 0.686831], 1e-3),
]


def _name(value):
    return value.kind if hasattr(value, "kind") else ""


@pytest.mark.parametrize(("balance", "expected", "tolerance"), VALUES, ids=_name)
def test_two_conflicting_gradients_are_combined_as_the_paper_says(
    combine, balance, expected, tolerance
):
    found = combine(balance, CONFLICT)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize(("balance", "expected", "tolerance"), VALUES, ids=_name)
def test_small_and_large_gradients_are_combined_alike(combine, balance, expected, tolerance, scale):
    """FairGrad's solution has a norm of its own, whatever the gradients' scale."""
    found = combine(balance, CONFLICT * scale)
    power = 0 if balance.kind == "fair_grad" else 1
    wanted = torch.tensor(expected, dtype=torch.float64) * scale**power
    torch.testing.assert_close(found, wanted, rtol=10 * tolerance, atol=0)


def test_fair_grad_at_alpha_one_is_the_bargain_of_nash_mtl(combine):
    found = combine(FairGrad(), CONFLICT)
    expected = torch.tensor([0.525731, 0.850651], dtype=torch.float64)
    torch.testing.assert_close(found / found.norm(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fair_grad_solves_its_equation(combine, alpha):
    jacobian = torch.randn(3, 5, dtype=torch.float64) * 0.01
    gains_T = jacobian @ combine(FairGrad(alpha), jacobian)
    weights_T = gains_T**-alpha
    torch.testing.assert_close(jacobian @ (weights_T @ jacobian), gains_T, rtol=1e-3, atol=0)


def test_aligned_mtl_makes_singular_values_equal(combine):
    """Through its definition: U V' of the gradients' matrix, times the chosen singular value."""
    jacobian = torch.randn(3, 5, dtype=torch.float64)
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    scales = {"min": values.min(), "rmse": values.square().mean().sqrt()}
    for name, scale in scales.items():
        expected = (scale * left @ right).mean(dim=0)
        found = combine(AlignedMTL(name), jacobian)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_imtl_g_has_equal_projections_on_all_gradients(combine):
    jacobian = torch.randn(4, 9, dtype=torch.float64)
    units = jacobian / jacobian.norm(dim=1, keepdim=True)
    projections = units @ combine(IMTLG(), jacobian)
    torch.testing.assert_close(projections, projections[:1].expand(4), rtol=1e-8, atol=0)


def test_pcgrad_is_the_sum_where_gradients_are_orthogonal(combine):
    jacobian = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64)).Q.T
    jacobian = jacobian * torch.tensor([[1.0], [2.0], [3.0], [1e-3]])
    torch.testing.assert_close(
        combine(PCGrad(), jacobian), jacobian.sum(dim=0), rtol=1e-9, atol=1e-12
    )


def test_cagrad_without_radius_is_the_mean(combine):
    jacobian = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        combine(CAGrad(0), jacobian), jacobian.mean(dim=0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize("balance", HARMLESS, ids=_name)
def test_no_task_loses(combine, balance, num_tasks):
    for width in (2, 5, 20):
        jacobian = torch.randn(num_tasks, width, dtype=torch.float64)
        jacobian[0] *= 30
        direction = combine(balance, jacobian)
        gains_T = jacobian @ direction
        bound = 1e-6 * jacobian.norm(dim=1) * jacobian.norm()
        assert (gains_T >= -bound).all()


@pytest.mark.parametrize("balance", DETERMINISTIC, ids=_name)
def test_the_order_of_tasks_does_not_matter(combine, balance):
    jacobian = torch.randn(3, 6, dtype=torch.float64)
    expected = combine(balance, jacobian)
    for order in itertools.permutations(range(3)):
        found = combine(balance, jacobian[list(order)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_equal_and_opposed_gradients_give_finite_directions(combine, balance):
    row = torch.randn(5, dtype=torch.float64)
    for jacobian in (torch.stack([row, row, row]), torch.stack([row, -row, row])):
        assert combine(balance, jacobian).isfinite().all()


@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_absent_tasks_are_left_out_as_if_they_did_not_exist(combine, balance):
    three = torch.stack([CONFLICT[0], torch.ones(2, dtype=torch.float64), CONFLICT[1]])
    found = combine(balance, three, present=[True, False, True])
    torch.testing.assert_close(found, combine(balance, CONFLICT), rtol=0, atol=1e-6)


@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_a_batch_without_labels_gives_gradients_of_zero(combine, balance):
    found = combine(balance, CONFLICT, present=[False, False])
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_losses_that_are_not_finite_end_in_gradients_that_are_not(combine, balance):
    """The trainer stops on them; a solver must neither raise nor hide them."""
    assert combine(balance, CONFLICT * torch.nan).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measured_at", ["both", "embeddings", "dense"])
@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_shared_parts_get_the_weighted_sum_and_own_parts_their_plain_gradient(
    network, build, balance, measured_at, dtype
):
    """Against whole gradients, one task at a time, in one concatenated matrix."""
    spec = type(balance)(measured_at=measured_at)
    net = network(3, dtype=dtype)
    by_task = []
    for task in range(3):
        net.losses()[task].backward()
        by_task.append(net.taken())
    balanced = build(spec, 3).backward(net.losses(), torch.ones(3).bool(), net.boundary)
    found = net.taken()
    num_leaves, num_bottom = 2, 4
    parts = {"both": (0, 6), "embeddings": (0, 2), "dense": (2, 6)}[measured_at]
    jacobian = torch.stack(
        [torch.cat([one.flatten() for one in gradients[slice(*parts)]]) for gradients in by_task]
    )
    torch.testing.assert_close(balanced.gramian_TT, jacobian @ jacobian.T, rtol=1e-4, atol=1e-7)
    for place in range(num_leaves + num_bottom):
        expected = sum(
            weight * gradients[place]
            for weight, gradients in zip(balanced.weights_T, by_task, strict=True)
        )
        torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-8)
    for place in range(num_leaves + num_bottom, len(found)):
        own = (place - num_leaves - num_bottom) // 4
        assert torch.equal(found[place], by_task[own][place])


@pytest.mark.parametrize("balance", ALL, ids=_name)
def test_the_penalty_is_added_as_it_is(network, build, balance):
    net, present_T = network(2), torch.ones(2).bool()
    build(balance, 2).backward(net.losses(), present_T, net.boundary)
    without = net.taken()
    net.penalty().backward()
    alone = [
        None if one.grad is None else one.grad.clone() for one in (*net.leaves, *net.parameters())
    ]
    net.clear()
    build(balance, 2).backward(net.losses(), present_T, net.boundary, penalty=net.penalty())
    for found, base, extra in zip(net.taken(), without, alone, strict=True):
        expected = base if extra is None else base + extra
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_shared_part_stays_shared_when_a_task_has_no_labels(network, build):
    """Its gradient then comes from one task, whose weight it still gets: here 1 + c of CAGrad."""
    net, balancer = network(2), build(CAGrad(0.5), 2)
    balancer.backward(net.losses(), torch.ones(2).bool(), net.boundary)
    net.clear()
    net.losses()[0].backward()
    plain = net.leaves[0].grad.clone()
    net.clear()
    present = [True, False]
    balancer.backward(net.losses(present), torch.tensor(present), net.boundary)
    torch.testing.assert_close(net.leaves[0].grad, 1.5 * plain, rtol=1e-4, atol=0)
    own = net.towers[0][0].weight.grad
    net.clear()
    net.losses()[0].backward()
    torch.testing.assert_close(own, net.towers[0][0].weight.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("balance", [Fixed(), *ALL], ids=_name)
def test_one_task_alone_gets_its_plain_gradient(network, build, balance):
    net = network(1)
    net.losses().sum().backward()
    expected = net.taken()
    build(balance, 1).backward(net.losses(), torch.ones(1).bool(), net.boundary)
    for found, plain in zip(net.taken(), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)


def _conflicting(num_steps):
    """Return rows of which many conflict, so that PCGrad's order matters."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_steps, 4, 3, generator=generator, dtype=torch.float64)


def test_pcgrad_follows_its_own_seed_and_leaves_torch_s_alone(combine, build):
    runs = []
    for seed, noise in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        balancer = build(PCGrad(), 4, seed=seed)
        runs.append([combine(PCGrad(), rows, balancer=balancer) for rows in _conflicting(8)])
        assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, runs[0], runs[1]))
    assert not all(map(torch.equal, runs[0], runs[2]))


def test_pcgrad_goes_on_after_a_break_as_if_there_was_none(combine, build):
    steps = list(_conflicting(8))
    whole = build(PCGrad(), 4)
    expected = [combine(PCGrad(), rows, balancer=whole) for rows in steps]
    first, second = build(PCGrad(), 4), build(PCGrad(), 4, seed=9)
    for rows in steps[:4]:
        combine(PCGrad(), rows, balancer=first)
    second.load_state_dict(first.state_dict())
    found = [combine(PCGrad(), rows, balancer=second) for rows in steps[4:]]
    assert all(map(torch.equal, found, expected[4:]))
