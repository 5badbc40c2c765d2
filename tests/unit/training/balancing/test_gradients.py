import torch
from torch import nn

from recsys_mtl.training.balancing import Boundary, Fixed, conflict, task_gramian
from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.gradients import task_gradients
from recsys_mtl.training.balancing.mgda import MGDA


def _matrix(net, place):
    """Return whole gradients at the shared tensors, one row per task."""
    shared = (*net.leaves, *net.bottom.parameters())
    targets = shared[slice(*{"both": (0, 6), "embeddings": (0, 2), "dense": (2, 6)}[place])]
    rows = [torch.autograd.grad(loss, targets, retain_graph=True) for loss in net.losses()]
    return torch.stack([torch.cat([one.flatten() for one in row]) for row in rows])


def test_the_gramian_is_that_of_whole_gradients_at_shared_tensors(network):
    net = network(3)
    for place in ("both", "embeddings", "dense"):
        matrix = _matrix(net, place)
        found = task_gramian(net.losses(), net.boundary, place)
        torch.testing.assert_close(found, matrix @ matrix.T, rtol=1e-10, atol=1e-14)


def test_large_tensors_have_the_gramian_of_small_ones():
    leaf = torch.randn(300, 300, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(3, 300, 300, dtype=torch.float64)
    losses_T = (factors * leaf).sum(dim=(1, 2))
    rows = factors.flatten(1)
    found = task_gramian(losses_T, Boundary((leaf,), ()))
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-10, atol=1e-9)


def test_gramians_are_of_single_precision_under_half_precision(network):
    """A product in bfloat16 would be off by 1e-3."""
    net = network(2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = task_gradients(net.losses().float(), net.boundary, keep_graph=False)
    assert gradients.gramians_PTT.dtype == torch.float32
    for found, gramian in zip(gradients.found[:6], gradients.gramians_PTT, strict=False):
        rows = torch.stack([one.flatten().double() for one in found])
        torch.testing.assert_close(gramian.double(), rows @ rows.T, rtol=1e-5, atol=1e-9)


def test_gradients_of_half_precision_have_gramians_of_single_precision():
    leaf = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    losses_T = torch.stack([(leaf * 257).sum(), leaf.sum()])
    gramian = task_gramian(losses_T, Boundary((leaf,), ()))
    assert gramian.dtype == torch.float32
    assert gramian[0].tolist() == [3 * 256**2, 3 * 256]  # 257 rounds to 256


def test_looking_at_the_gramian_leaves_graph_and_gradients_alone(network):
    net = network(2)
    losses_T = net.losses()
    losses_T.sum().backward(retain_graph=True)
    plain = net.taken()
    task_gramian(losses_T, net.boundary)
    assert all(one.grad is None for one in (*net.leaves, *net.parameters()))
    losses_T.sum().backward()
    assert all(map(torch.equal, net.taken(), plain))


def test_a_parameter_that_autograd_cannot_reach_is_no_one_s():
    leaf = torch.ones(2, requires_grad=True)
    lonely, own = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    losses_T = torch.stack([(leaf * own).sum(), leaf.sum()])
    boundary = Boundary((leaf,), (lonely, own))
    gradients = task_gradients(losses_T, boundary, keep_graph=False)
    assert gradients.reached().tolist() == [[True, True], [False, False], [True, False]]
    gradients.fill(torch.ones(3, 2))
    assert lonely.grad is None
    assert own.grad.tolist() == [1, 1]
    assert leaf.grad.tolist() == [2, 2]


def test_one_gradient_of_two_parameters_is_not_scaled_twice():
    """Autograd hands the very same tensor to both sides of an addition."""
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    total = first + second
    losses_T = torch.stack([total.sum(), 2 * total.sum()])
    boundary = Boundary((), (first, second))
    task_gradients(losses_T, boundary, keep_graph=False).fill(torch.tensor([[3.0, 5.0]] * 2))
    assert first.grad.tolist() == second.grad.tolist() == [13, 13, 13]


def test_conflict_is_the_cosine():
    rows = torch.randn(4, 9, dtype=torch.float64)
    found = conflict(rows @ rows.T)
    expected = torch.nn.functional.cosine_similarity(rows[:, None], rows, dim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_task_without_gradient_conflicts_with_none():
    rows = torch.tensor([[1.0, 0], [0, 0], [-2, 0]])
    assert conflict(rows @ rows.T).tolist() == [[1, 0, -1], [0, 0, 0], [-1, 0, 1]]


def test_fixed_weights_fill_what_a_plain_backward_fills(network, build):
    net = network(3)
    (net.losses().sum() + net.penalty()).backward()
    expected = net.taken()
    balancer = build(Fixed(), 3)
    balancer.backward(net.losses(), torch.ones(3).bool(), net.boundary, penalty=net.penalty())
    for found, plain in zip(net.taken(), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)


def test_a_sum_of_task_gradients_is_a_plain_backward(network, build, monkeypatch):
    """The adapter with the weights of a sum: graph, shared and own parts, down to the leaves."""
    net = network(3)
    net.losses().sum().backward()
    expected = net.taken()
    monkeypatch.setattr(
        MGDA, "weighting", lambda self: lambda gramian: torch.ones(len(gramian)).double()
    )
    assert issubclass(MGDA, Aggregation)
    build(MGDA(), 3).backward(net.losses(), torch.ones(3).bool(), net.boundary)
    for found, plain in zip(net.taken(), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)
