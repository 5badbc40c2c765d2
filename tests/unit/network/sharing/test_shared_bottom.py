import torch
from torch import nn

from recsys_mtl.network import SharedBottom
from recsys_mtl.network.sharing import Columns


def test_all_tasks_read_the_output_of_one_mlp() -> None:
    bottom, x_BVI = (
        SharedBottom(dims=(4, 2)).build(3, ("a", "b"), Columns()).double(),
        torch.randn(5, 1, 3).double(),
    )
    expected_BH = x_BVI[:, 0]
    for layer in bottom.bottom:
        if isinstance(layer, nn.Linear):
            expected_BH = (expected_BH @ layer.weight.T + layer.bias).clamp(min=0)
    for task_BH in bottom(x_BVI).tasks:
        torch.testing.assert_close(task_BH, expected_BH, rtol=0, atol=1e-12)
    assert bottom(x_BVI).gates == ()


def test_the_gradient_of_the_bottom_is_the_sum_over_tasks() -> None:
    bottom, x_BVI = (
        SharedBottom(dims=(4,)).build(3, ("a", "b"), Columns()).double(),
        torch.randn(5, 1, 3).double(),
    )
    losses = [(k + 1) * task_BH.square().sum() for k, task_BH in enumerate(bottom(x_BVI).tasks)]
    weight = bottom.bottom[0].weight
    alone = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    together = torch.autograd.grad(sum(losses), weight)[0]
    assert alone[0].abs().max() > 0
    torch.testing.assert_close(together, alone[0] + alone[1], rtol=1e-12, atol=1e-12)


def test_without_layers_tasks_read_the_input_itself() -> None:
    bottom, x_BVI = SharedBottom(dims=()).build(3, ("a", "b"), Columns()), torch.randn(5, 1, 3)
    assert bottom.output_dim == 3
    assert all(torch.equal(task_BH, x_BVI[:, 0]) for task_BH in bottom(x_BVI).tasks)
