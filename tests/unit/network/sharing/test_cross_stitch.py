import pytest
import torch
from torch import nn

from recsys_mtl.network import SharedBottom
from recsys_mtl.network.sharing import Columns, CrossStitch, SharingModule

NAMES = ("a", "b", "c")


def _net(names: tuple[str, ...] = NAMES) -> SharingModule:
    return CrossStitch((7, 4)).build(5, names, Columns()).double()


def test_stitches_of_the_identity_leave_a_network_per_task() -> None:
    net, x_BVI = _net(), torch.randn(9, 1, 5).double()
    for stitch_TT in net.stitches:
        nn.init.eye_(stitch_TT)
    for task, found_BH in enumerate(net(x_BVI).tasks):
        expected_BH = x_BVI[:, 0]
        for layers in net.layers:
            expected_BH = layers[task](expected_BH)
        torch.testing.assert_close(found_BH, expected_BH, rtol=0, atol=1e-12)


def test_stitches_are_the_formula_worked_by_hand() -> None:
    net, x_BVI = _net(), torch.randn(9, 1, 5).double()
    for stitch_TT in net.stitches:
        nn.init.normal_(stitch_TT)
    tasks = [x_BVI[:, 0]] * 3
    for layers, a in zip(net.layers, net.stitches, strict=True):
        h = [(tasks[k] @ layers[k][0].weight.T + layers[k][0].bias).clamp(min=0) for k in range(3)]
        tasks = [sum(a[k, j] * h[j] for j in range(3)) for k in range(3)]
    for found_BH, expected_BH in zip(net(x_BVI).tasks, tasks, strict=True):
        torch.testing.assert_close(found_BH, expected_BH, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_tasks", [1, 2, 3])
def test_stitches_start_near_the_identity_and_keep_the_scale(num_tasks: int) -> None:
    for stitch_TT in _net(NAMES[:num_tasks]).stitches:
        assert torch.allclose(stitch_TT.sum(dim=1), torch.ones(num_tasks).double())
        own = stitch_TT.diagonal().tolist()
        assert own == pytest.approx([0.9 if num_tasks > 1 else 1.0] * num_tasks)


def test_one_task_is_a_shared_bottom() -> None:
    net, x_BVI = _net(("a",)), torch.randn(9, 1, 5).double()
    bottom = SharedBottom((7, 4)).build(5, ("a",), Columns()).double()
    weights = [value for name, value in net.state_dict().items() if name.startswith("layers.")]
    bottom.load_state_dict(dict(zip(bottom.state_dict(), weights, strict=True)))
    torch.testing.assert_close(net(x_BVI).tasks[0], bottom(x_BVI).tasks[0], rtol=0, atol=1e-12)
